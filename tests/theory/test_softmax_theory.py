"""Closed forms of the true softmax against direct sums, quadrature and simulated walks."""

import math

import pytest
import torch
from scipy import integrate

from qkrepro.errors import ArgumentError
from qkrepro.theory.attention import attention_entropy, softmax_attention
from qkrepro.theory.entropy import geometric_attention, geometric_entropy, normalised_walk_deficit
from qkrepro.theory.tokens import random_walk


@pytest.mark.parametrize("xi", [1e-6, 0.1, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("length", [2, 7, 300])
def test_geometric_entropy_is_the_entropy_of_geometric_attention(xi, length):
    direct = float(attention_entropy(geometric_attention(xi, length)))
    assert float(geometric_entropy(xi, length)) == pytest.approx(direct, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("xi", [-6.0, -0.5, -0.009, 0.0, 0.009, 0.011, 0.5, 3.0, 20.0])
def test_normalised_walk_deficit_is_the_quadrature_of_its_integrals(xi):
    z = integrate.quad(lambda t: math.exp(xi * math.sqrt(t)), 0, 1, epsabs=1e-13, epsrel=1e-12)[0]
    weighted = integrate.quad(lambda t: math.sqrt(t) * math.exp(xi * math.sqrt(t)), 0, 1, epsabs=1e-13, epsrel=1e-12)[0]
    expected = xi * weighted / z - math.log(z)
    assert float(normalised_walk_deficit(xi)) == pytest.approx(expected, abs=2e-9)


@pytest.mark.parametrize("xi", [0.3, 1.0])
def test_geometric_attention_matches_simulated_raw_walks(xi):
    dim, length, walks = 4000, 12, 150
    x = random_walk(length, dim, batch=walks, generator=torch.Generator().manual_seed(3))
    attention = softmax_attention(xi * (x * x[:, -1:]).sum(-1) / dim)  # (walks, length)
    error = attention.std(0) / walks**0.5
    distance = (attention.mean(0) - geometric_attention(xi, length)).abs()
    assert bool((distance < 4 * error + 0.01 * xi).all())  # plus the bias of order T/d


@pytest.mark.parametrize("xi", [-3.0, 2.0, 6.0])
def test_normalised_walk_deficit_matches_simulated_walks_within_a_hundredth(xi):
    dim, length, walks = 1000, 300, 40
    x = random_walk(length, dim, batch=walks, generator=torch.Generator().manual_seed(4))
    x = torch.nn.functional.layer_norm(x, (dim,))
    entropy = attention_entropy(softmax_attention(xi * (x * x[:, -1:]).sum(-1) / dim))
    error = float(entropy.std()) / walks**0.5
    assert abs(math.log(length) - float(entropy.mean()) - float(normalised_walk_deficit(xi))) < 4 * error + 0.01


def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match="scaled_mean"):
        geometric_attention(math.nan, 4)
    with pytest.raises(ArgumentError, match=r"length must .*, got 1"):
        geometric_entropy(1.0, 1)
    with pytest.raises(ArgumentError, match="scaled_mean"):
        normalised_walk_deficit(math.inf)

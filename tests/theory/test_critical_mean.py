"""Layers of a simplex: the closed forms against attention computed in full, the three regimes, and depth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from row_oracles import entropy, softmax

from qkrepro.errors import ArgumentError
from qkrepro.theory.critical_mean import (
    cosine_limit,
    critical_mean,
    own_advantage,
    own_weight,
    simplex_layers,
)


def simplex_tokens(length, similarity):
    """T unit tokens with pairwise cosine ϱ, (T, T): the rows of a root of their Gram matrix."""
    across, along = math.sqrt(1 - similarity), math.sqrt(1 + (length - 1) * similarity)
    ones = np.full((length, length), 1 / length)
    return across * (np.eye(length) - ones) + along * ones


def simplex_entropy(length, similarity, mean):
    """Entropy of a row with a weight a on the token itself and the rest evenly on the other T − 1, nats."""
    logit = (1 - similarity) * mean - math.log(length - 1)
    log_own, log_others = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)
    return -np.exp(log_own) * log_own - np.exp(log_others) * (log_others - math.log(length - 1))


def independent_exponent(growth, layers):
    """Exponent e with odds of the cosine ≈ T^e after these layers, for tokens at right angles and 0 < growth < 1."""
    return 2 * layers * (1 - growth) - 1


def layers_in_full(x, mean, layers, residual):
    """Cosine of the first two tokens over depth, by attention on the tokens themselves."""
    cosines = [x[0] @ x[1]]
    for _ in range(layers):
        mixed = softmax(mean * x @ x.T) @ x
        x = np.c_[x, mixed] if residual else mixed  # an independent value matrix puts the branch at right angles
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosines.append(x[0] @ x[1])
    return cosines


@given(length=st.integers(2, 40), similarity=st.floats(0, 0.95), mean=st.floats(-8, 30), residual=st.booleans())
@settings(max_examples=60)
def test_prop_simplex_layers_equal_attention_on_the_tokens(length, similarity, mean, residual):
    x = simplex_tokens(length, similarity)
    np.testing.assert_allclose(x @ x.T, np.eye(length) * (1 - similarity) + similarity, atol=1e-12)
    weights = softmax(mean * x @ x.T)
    assert float(own_weight(length, similarity, mean)) == pytest.approx(weights[0, 0], rel=1e-9, abs=1e-300)
    advantage = weights[0, 0] - weights[0, 1]
    assert float(own_advantage(length, similarity, mean)) == pytest.approx(advantage, rel=1e-9, abs=1e-15)
    assert simplex_entropy(length, similarity, mean) == pytest.approx(entropy(weights[0]), rel=1e-7, abs=1e-12)
    if abs(advantage) > 1e-5 or residual:
        expected = layers_in_full(x, mean, 3, residual)
        np.testing.assert_allclose(simplex_layers(length, similarity, mean, 3, residual=residual), expected, atol=1e-6)


def test_prop_simplex_layers_keep_their_form_through_random_value_matrices():
    rng = np.random.default_rng(0)
    length, dim, mean = 32, 4000, 4.0
    x = np.c_[simplex_tokens(length, 0.2), np.zeros((length, dim - length))]
    for expected in simplex_layers(length, 0.2, mean, 2)[1:]:
        x = softmax(mean * x @ x.T) @ x @ rng.standard_normal((dim, dim))
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        off = (x @ x.T)[~np.eye(length, dtype=bool)]
        assert off.mean() == pytest.approx(float(expected), abs=0.02)
        assert off.std() < 0.03


@pytest.mark.parametrize("similarity", [0.1, 0.3, 0.7])
def test_prop_simplex_has_three_regimes(similarity):
    length = 10**9
    critical = 1 / (1 - similarity)
    for growth, own, share in ((0.6 * critical, 0, 1), (critical, 0.5, 0.5), (1.4 * critical, 1, 0)):
        mean = growth * math.log(length)
        cosine = float(simplex_layers(length, similarity, mean, 1)[1])
        assert cosine == pytest.approx(float(cosine_limit(growth, similarity)), abs=0.01)
        assert float(own_weight(length, similarity, mean)) == pytest.approx(own, abs=0.01)
        assert simplex_entropy(length, similarity, mean) / math.log(length) == pytest.approx(share, abs=0.04)
    assert float(cosine_limit(critical, similarity)) == pytest.approx(4 * similarity / (1 + 3 * similarity))
    half = own_weight(length, similarity, critical_mean(length, similarity))
    assert float(half) == pytest.approx(0.5)


def test_prop_simplex_finite_size_is_large():
    for length, cosine in ((1024, 0.915), (10**5, 0.981)):
        mean = 0.8 / 0.7 * math.log(length)
        assert float(simplex_layers(length, 0.3, mean, 1)[1]) == pytest.approx(cosine, abs=5e-4)
    errors = [1 - float(simplex_layers(n, 0.3, 0.8 / 0.7 * math.log(n), 1)[1]) for n in (10**6, 10**8, 10**10)]
    slopes = np.diff(np.log(errors)) / math.log(100)
    np.testing.assert_allclose(slopes, -2 * (1 - 0.8), atol=0.03)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_prop_simplex_depth_from_right_angles_collapses_below_its_growth(layers):
    threshold = 1 - 1 / (2 * layers)
    for growth, end in ((threshold - 0.06, 1.0), (threshold + 0.06, 0.0)):
        cosines = [float(simplex_layers(10**n, 0.0, growth * n * math.log(10), layers)[-1]) for n in (12, 60, 120)]
        assert np.all(np.diff(cosines) >= 0) if end else np.all(np.diff(cosines) < 0)
        assert cosines[-1] == pytest.approx(end, abs=0.02)
        assert (independent_exponent(growth, layers) > 0) is bool(end)


def test_prop_simplex_depth_exponent_is_the_slope_of_the_odds():
    growth, layers = 0.9, 3
    odds = []
    for power in (20, 40):
        cosine = float(simplex_layers(10**power, 0.0, growth * power * math.log(10), layers)[-1])
        odds.append(math.log10(cosine / (1 - cosine)))
    assert (odds[1] - odds[0]) / 20 == pytest.approx(independent_exponent(growth, layers), abs=0.01)


@given(length=st.integers(2, 10**6), mean=st.floats(-5, 40), layers=st.integers(1, 12))
@settings(max_examples=40)
def test_prop_simplex_depth_a_residual_connection_at_most_doubles_the_odds(length, mean, layers):
    plain = simplex_layers(length, 0.0, mean, layers)
    joined = simplex_layers(length, 0.0, mean, layers, residual=True)
    assert bool((joined <= plain + 1e-12).all())
    z = 1 / length + joined / (1 - joined)
    assert bool((z[1:] <= 2 * z[:-1] * (1 + 1e-9)).all())


def test_bad_input_is_refused_by_name():
    for call, name in (
        (lambda: own_weight(1, 0.5, 1.0), "length"),
        (lambda: own_weight(4, 0.1, math.inf), "scaled_mean"),
        (lambda: own_weight(4, 1.0, 1.0), "similarity"),
        (lambda: own_weight(4, -0.1, 1.0), "similarity"),
        (lambda: simplex_layers(4, 0.1, 1.0, 0), "layers"),
        (lambda: critical_mean(2, 0.1), "length"),
        (lambda: cosine_limit(1.0, 0.0), "similarity"),
    ):
        with pytest.raises(ArgumentError, match=name):
            call()


def test_tensors_keep_their_shape():
    means = torch.zeros(2, 3)
    assert own_weight(5, 0.1, means).shape == (2, 3)
    assert cosine_limit(means, 0.1).shape == (2, 3)

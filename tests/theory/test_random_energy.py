"""Entropy of rows with independent logits: the exact form against simulation, the limit against the exact form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from row_oracles import close, entropy, softmax

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.theory.random_energy import (
    concentrated_row,
    entropy_limit,
    expected_row,
    log_partition_limit,
    mean_entropy,
    own_token_threshold,
    spread_ratio,
)


@pytest.mark.parametrize(("count", "spread"), [(2, 3.0), (64, 1.0), (64, 6.0), (1024, 3.0), (65_536, 2.826)])
def test_prop_expected_entropy_of_independent_logits_matches_simulation(count, spread):
    rng = np.random.default_rng(count)
    draws = max(100, min(20_000, 2_000_000 // count))
    simulated = entropy(softmax(spread * rng.standard_normal((draws, count))))
    assert close(simulated, mean_entropy(count, spread))


@pytest.mark.parametrize(
    ("count", "spread", "own"), [(63, 0.0, 5.0), (63, 2.0, 5.0), (63, 2.0, -5.0), (1023, 0.5, 7.0)]
)
def test_prop_expected_entropy_with_an_own_logit_matches_simulation(count, spread, own):
    rng = np.random.default_rng(1)
    logits = np.c_[spread * rng.standard_normal((10_000, count)), np.full(10_000, own)]
    weights, row = softmax(logits), expected_row(count, spread, torch.tensor(own))
    assert close(entropy(weights), float(row.entropy))
    assert close(weights[:, -1], float(row.own_weight))


def test_expected_entropy_has_its_closed_forms():
    assert mean_entropy(1, 2.0) == pytest.approx(0, abs=1e-12)
    assert mean_entropy(7, 0.0) == pytest.approx(math.log(7), abs=1e-12)
    row = expected_row(3, 0.0, torch.tensor([0.0, 2.0]))
    weight = math.exp(2) / (math.exp(2) + 3)
    assert float(row.entropy[0]) == pytest.approx(math.log(4), abs=1e-12)
    assert float(row.own_weight[1]) == pytest.approx(weight, abs=1e-12)
    assert float(row.entropy[1]) == pytest.approx(
        -weight * math.log(weight) - (1 - weight) * math.log((1 - weight) / 3)
    )


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9, 1.2])
def test_prop_random_energy_law_is_approached_as_the_row_grows(ratio):
    error = []
    for count in (2**8, 2**16, 2**40):
        spread = ratio * math.sqrt(2 * math.log(count))
        error.append(abs(mean_entropy(count, spread) / math.log(count) - float(entropy_limit(ratio))))
    assert error[0] > error[1] > error[2]
    assert error[2] < (0.005 if ratio < 0.8 else 0.15)  # corrections near b = 1 fall like 1/log n only


def test_prop_random_energy_numbers_at_65536_tokens():
    unit = math.sqrt(2 * math.log(65_536))
    assert mean_entropy(65_536, 0.3 * unit) / math.log(65_536) == pytest.approx(0.910, abs=5e-4)
    assert mean_entropy(65_536, 0.6 * unit) / math.log(65_536) == pytest.approx(0.648, abs=5e-4)


@given(count=st.integers(2, 500), low=st.floats(0, 6), step=st.floats(0.01, 4))
@settings(max_examples=25)
def test_prop_entropy_ray_expected_entropy_falls_with_the_spread(count, low, step):
    assert mean_entropy(count, low + step) <= mean_entropy(count, low) + 1e-9


def test_prop_own_token_takes_half_at_its_threshold_on_tokens_of_many_dimensions():
    length, dim = 1024, 512
    rng = np.random.default_rng(2)
    x = rng.standard_normal((40, length, dim))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    cosines = np.einsum("bid,bd->bi", x, x[:, -1])
    means = torch.tensor([6.0, 7.0, 8.0], dtype=torch.float64)
    predicted = concentrated_row(length, dim, means)
    for mean, own_weight, expected in zip(means.tolist(), *predicted[::-1], strict=True):
        weights = softmax(mean * cosines)
        assert weights[:, -1].mean() == pytest.approx(float(own_weight), abs=0.004)
        assert entropy(weights).mean() == pytest.approx(float(expected), abs=0.02)
    assert float(predicted.own_weight[1]) == pytest.approx(0.51, abs=0.005)
    threshold = own_token_threshold(7 / math.sqrt(dim), length - 1)
    assert threshold == pytest.approx(math.log(length) + 49 / dim / 2, abs=2e-3)


def test_prop_own_token_limit_switches_at_the_partition_function():
    count = 2**40
    for ratio in (0.2, 0.8, 1.5):
        spread = ratio * math.sqrt(2 * math.log(count))
        at = float(log_partition_limit(ratio)) * math.log(count)
        below, above = expected_row(count, spread, torch.tensor([0.8 * at, 1.2 * at])).own_weight
        assert float(below) < 0.01
        assert float(above) > 0.99
        assert own_token_threshold(spread, count) == pytest.approx(at)


def test_prop_dispersion_raises_entropy_where_the_own_token_has_taken_all():
    length, dim, mean = 1024, 4096, 9.0  # log T < ξ/λ < 2 log T
    expected = [float(concentrated_row(length, dim, torch.tensor([mean]), x).entropy) for x in (0.0, 1.5, 2.5)]
    assert expected[0] < expected[1] < expected[2]
    assert expected[2] > 2 * expected[0]
    rng = np.random.default_rng(3)
    simulated = []
    for _ in range(300):  # a symmetric W of this spectrum, by its action on one query of norm √d
        others = math.sqrt(mean**2 / dim + 2.5**2) * rng.standard_normal(length - 1)
        own = mean + math.sqrt(2) * 2.5 * rng.standard_normal()
        simulated.append(entropy(softmax(np.append(others, own))))
    assert close(simulated, expected[2])


def test_concentrated_row_matches_matrices_with_a_drawn_spectrum():
    length, dim, mean, dispersion = 256, 384, 6.0, 2.0
    rng = np.random.default_rng(4)
    measured = []
    for _ in range(40):
        rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        values = rng.standard_normal(dim)
        values = (values - values.mean()) / values.std() * dispersion / math.sqrt(dim) + mean / dim
        x = rng.standard_normal((length, dim))
        x *= math.sqrt(dim) / np.linalg.norm(x, axis=1, keepdims=True)
        projected = x @ rotation
        measured.append(entropy(softmax((projected[-64:] * values) @ projected.T)).mean())
    expected = float(concentrated_row(length, dim, torch.tensor([mean]), dispersion).entropy)
    assert np.mean(measured) == pytest.approx(expected, abs=0.06)


def test_bad_input_is_refused_by_name():
    with pytest.raises(ArgumentError, match="count"):
        mean_entropy(0, 1.0)
    with pytest.raises(ArgumentError, match="spread"):
        mean_entropy(4, -1.0)
    with pytest.raises(ArgumentError, match="own"):
        expected_row(4, 1.0, torch.tensor(math.inf))
    with pytest.raises(ArgumentError, match="count"):
        spread_ratio(1.0, 1)
    with pytest.raises(ArgumentError, match="ratio"):
        entropy_limit(-0.1)
    with pytest.raises(ShapeError, match="scaled_mean"):
        concentrated_row(8, 4, torch.ones(2, 2))

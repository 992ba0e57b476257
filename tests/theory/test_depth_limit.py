"""Cosines over depth as d → ∞: the recursion against stacks of drawn matrices, its collapse, long walks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from row_oracles import entropy, softmax
from scipy import integrate

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment
from qkrepro.theory.depth_limit import (
    ar1_cosines,
    cosine_residual,
    depth_limit,
    dispersed_logits,
    smallest_mean,
    walk_cosines,
)


def contraction_bound(mean, length, layers, residual):
    """Upper bound on 1 − min_t C_t1 after these layers, (1 − e^{−|ξ|/λ}/T)^L, with 2T beside a residual connection."""
    return (1 - math.exp(-abs(mean)) / length / (2 if residual else 1)) ** layers


def uniform_residual(layers):
    """Residual of a long walk after these layers of uniform causal attention, d → ∞ first and T → ∞ after.

    r² = 1 − I_{ℓ+1}/I_ℓ with I_ℓ = ∫ dω/((¼ + ω²)(1 + ω²)^ℓ).
    """
    top, bottom = (
        integrate.quad(lambda w, n=n: 1 / ((0.25 + w * w) * (1 + w * w) ** n), -np.inf, np.inf, epsabs=1e-13)[0]
        for n in (layers + 1, layers)
    )
    return math.sqrt(1 - top / bottom)


def random_cosines(rng, length, rank):
    x = np.abs(rng.standard_normal((length, rank)))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return torch.tensor(x @ x.T).clamp(max=1).fill_diagonal_(1.0)


def drawn_stack(rng, law, length, dim, mean, layers, residual):
    """Residual after the last layer of one stack of drawn matrices, and the first layer's attention."""
    x = rng.standard_normal((length, dim))
    x = x.cumsum(0) if law == "random walk" else x
    hidden, first = np.triu(np.ones((length, length), bool), 1), None
    for layer in range(layers + 1):
        x = x - x.mean(1, keepdims=True)
        x /= x.std(1, keepdims=True)
        if layer == layers:
            break
        logits = np.where(hidden, -np.inf, mean * x @ x.T / dim)
        weights = softmax(logits)
        first = weights if first is None else first
        mixed = weights @ x @ rng.standard_normal((dim, dim)) / math.sqrt(dim)
        x = x + mixed if residual else mixed
    return np.linalg.norm(x - x.mean(0)) / np.linalg.norm(x), first


@pytest.mark.parametrize(("law", "start"), [("random walk", walk_cosines(48)), ("independent", ar1_cosines(48, 0.0))])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("mean", [0.0, 4.0, 16.0])
def test_prop_depth_limit_predicts_stacks_of_many_dimensions(law, start, residual, mean):
    limit = depth_limit(start, mean, 5, residual=residual)
    rng = np.random.default_rng(0)
    drawn, first = zip(*(drawn_stack(rng, law, 48, 512, mean, 5, residual) for _ in range(10)), strict=True)
    predicted = float(cosine_residual(limit.cosines[-1]))
    assert abs(np.mean(drawn) - predicted) < 4 * np.std(drawn) / math.sqrt(10) + 0.04 * predicted
    expected = entropy(limit.attention[0].numpy())[24:].mean()
    assert entropy(np.stack(first))[:, 24:].mean() == pytest.approx(expected, abs=0.12)


def test_prop_depth_limit_numbers_of_eight_layers():
    start = walk_cosines(64)
    ratio = [
        float(cosine_residual(depth_limit(start, mean, 8).cosines[-1]) / cosine_residual(start))
        for mean in (16.0, 0.0, -16.0)
    ]
    assert ratio == pytest.approx([0.677, 0.054, 0.002], abs=6e-4)


def test_prop_depth_limit_error_falls_with_the_width():
    predicted = float(cosine_residual(depth_limit(walk_cosines(32), 8.0, 4).cosines[-1]))
    errors = []
    for dim in (64, 512):
        rng = np.random.default_rng(dim)
        drawn = [drawn_stack(rng, "random walk", 32, dim, 8.0, 4, False)[0] for _ in range(12)]
        errors.append(np.sqrt(np.mean((np.array(drawn) - predicted) ** 2)))
    assert errors[1] < errors[0] / 2  # like 1/√d


def test_prop_dispersed_limit_logits_have_their_covariance():
    cosines = ar1_cosines(3, 0.6)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([dispersed_logits(cosines, generator) for _ in range(20_000)])
    for (t, i), (s, j) in (((0, 1), (0, 1)), ((0, 0), (0, 0)), ((0, 1), (1, 2)), ((0, 0), (1, 2))):
        expected = float(cosines[t, s] * cosines[i, j] + cosines[t, j] * cosines[i, s])
        product = (draws[:, t, i] * draws[:, s, j]).numpy()
        assert abs(product.mean() - expected) < 4.5 * product.std() / math.sqrt(len(product))


def test_prop_dispersed_limit_matches_drawn_stacks():
    generator = torch.Generator().manual_seed(1)
    limit = []
    for _ in range(60):
        end = depth_limit(walk_cosines(24), 6.0, 3, dispersion=4.0, generator=generator)
        limit.append(float(cosine_residual(end.cosines[-1])))
    stack = Stack(layers=3, length=24, dim=192)
    table = depth_experiment([Spectrum(6.0, 4.0)], stack, seeds=range(40), measure_at=[3], measures=["residual"])
    drawn = table.loc[table["layer"] == 3, "residual"].to_numpy()
    error = math.sqrt(np.var(limit) / 60 + np.var(drawn) / 40)
    assert abs(np.mean(limit) - np.mean(drawn)) < 4 * error + 0.01


@given(
    length=st.integers(2, 12),
    mean=st.floats(-6, 6),
    layers=st.integers(1, 15),
    residual=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_prop_limit_collapse_contracts_towards_the_first_token(length, mean, layers, residual, seed):
    start = random_cosines(np.random.default_rng(seed), length, 4)
    end = depth_limit(start, mean, layers, residual=residual).cosines[-1]
    gap = 1 - float(start[:, 0].min())
    assert 1 - float(end[:, 0].min()) <= gap * contraction_bound(mean, length, layers, residual) + 1e-9
    assert 1 - float(end.min()) <= 4 * (1 - float(end[:, 0].min())) + 1e-9


@pytest.mark.parametrize("residual", [False, True])
def test_prop_limit_collapse_comes_for_dispersed_spectra_too(residual):
    generator = torch.Generator().manual_seed(2)
    limit = depth_limit(walk_cosines(6), 2.0, 400, dispersion=1.5, residual=residual, generator=generator)
    assert float(cosine_residual(limit.cosines[-1])) < 1e-3


def test_prop_limit_collapse_needs_cosines_that_are_not_negative():
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    attention = torch.softmax(torch.tensor([[2.0, -torch.inf], [-2.0, 2.0]], dtype=torch.float64), -1)
    mixed = attention @ opposite @ attention.mT
    scale = mixed.diagonal().rsqrt()
    torch.testing.assert_close(mixed * scale * scale[:, None], opposite)
    with pytest.raises(ArgumentError, match="not negative"):
        depth_limit(opposite, 2.0, 1)


def test_prop_running_means_of_independent_tokens_are_a_walk():
    limit = depth_limit(ar1_cosines(40, 0.0), 0.0, 1)
    torch.testing.assert_close(limit.cosines[1], walk_cosines(40))
    rng = np.random.default_rng(5)
    x = rng.standard_normal((40, 20_000)).cumsum(0) / np.arange(1, 41)[:, None]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(x @ x.T, walk_cosines(40), atol=0.04)


def test_prop_log_time_uniform_residual_is_the_limit_of_long_walks_and_falls_like_a_root():
    assert uniform_residual(40) * math.sqrt(80) == pytest.approx(1, abs=0.06)
    residuals = cosine_residual(depth_limit(walk_cosines(1500), 0.0, 3).cosines)
    assert residuals.tolist() == pytest.approx([uniform_residual(layers) for layers in range(4)], abs=0.025)


def test_prop_log_time_cosines_depend_on_the_ratio_of_positions_alone():
    limit = depth_limit(walk_cosines(1200), 6.0, 2).cosines[-1]
    for late, early in ((1200, 600), (800, 400), (400, 200)):
        assert float(limit[late - 1, early - 1]) == pytest.approx(float(limit[1199, 599]), abs=0.02)
    # the same recursion on a function of log-time, by quadrature
    eta = np.linspace(0, 14, 1401)
    step = eta[1]
    c = np.exp(-eta / 2)
    for _ in range(2):
        p = np.exp(-eta + 6.0 * c)
        p[[0, -1]] /= 2
        p /= p.sum()
        even = np.concatenate([c[:0:-1], c])  # c on −14 … 14
        smooth = np.convolve(np.convolve(even, p), p[::-1])[len(eta) - 1 + len(eta) - 1 :][: len(eta)]
        c = smooth / smooth[0]
    assert float(limit[1199, 599]) == pytest.approx(float(np.interp(math.log(2), eta, c)), abs=0.02)
    assert step == pytest.approx(0.01)


@pytest.mark.parametrize("residual", [False, True])
def test_conj_smallest_mean_holds_on_a_grid(residual):
    means = [0, 0.1, 0.3, 1, 2, 4, 8, 16, 32, 64, 200]
    for length in (4, 16, 48):
        runs = [depth_limit(walk_cosines(length), mean, 8, residual=residual).cosines for mean in means]
        residuals = torch.stack([cosine_residual(run) for run in runs])  # (means, layers + 1)
        assert bool((residuals.diff(dim=0) >= -1e-9).all())
    depths, lengths = (2, 4, 8), (16, 32, 64)
    least = np.array(
        [[smallest_mean(walk_cosines(length), depth, residual=residual) for depth in depths] for length in lengths]
    )
    assert np.all(np.diff(least, axis=1) >= 0)
    assert np.all(np.diff(least, axis=0) <= 0)
    assert smallest_mean(walk_cosines(8), 12) < smallest_mean(walk_cosines(16), 12)  # T < 2L: not there


def test_smallest_mean_is_where_half_of_the_residual_is_left():
    start = walk_cosines(32)
    mean = smallest_mean(start, 8)
    ratio = cosine_residual(depth_limit(start, mean, 8).cosines[-1]) / cosine_residual(start)
    assert float(ratio) == pytest.approx(0.5, abs=1e-3)
    assert smallest_mean(start, 1) == 0
    assert math.isinf(smallest_mean(start, 8, kept=0.9999, largest=4.0))
    assert smallest_mean(start, 8, residual=True) < mean


def test_bad_input_is_refused_by_name():
    eye = torch.eye(3, dtype=torch.float64)
    for call, error, name in (
        (lambda: depth_limit(torch.ones(2, 3), 1.0, 1), ShapeError, "cosines"),
        (lambda: depth_limit(2 * eye, 1.0, 1), ArgumentError, "diagonal"),
        (lambda: depth_limit(eye, 1.0, 0), ArgumentError, "layers"),
        (lambda: depth_limit(eye, 1.0, 1, dispersion=1.0), ArgumentError, "generator"),
        (lambda: walk_cosines(1), ArgumentError, "length"),
        (lambda: ar1_cosines(4, 1.0), ArgumentError, "coefficient"),
    ):
        with pytest.raises(error, match=name):
            call()

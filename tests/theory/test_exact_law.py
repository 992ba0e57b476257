"""The exact law of the bilinear form against closed forms, quadrature, gx2 and itself under symmetries."""

import itertools
import math

import gx2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.theory.exact_law import (
    _by_shared_nodes,
    _by_single_laws,
    _plan,
    _reduce,
    interval_probability,
    weighted_chi_square_tail,
)

SLOPES = torch.linspace(-1.7, 1.7, 11, dtype=torch.float64)  # |γ|/√c stays below √3 at every length


def matrix(dim, seed, symmetric=False):
    m = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (m + m.mT) / 2 if symmetric else m


def integral(f, points):
    """∫ f over [points[0], points[-1]], piece by piece."""
    ends = sorted(set(points))
    return sum(integrate.quad(f, a, b, epsabs=1e-14, epsrel=1e-12, limit=500)[0] for a, b in itertools.pairwise(ends))


def scalar_matrix_probability(dim, slope, lower, upper):
    """M = I: given s = ‖U‖², Q ~ N(slope·s, s), so one χ²_dim integral (written over r = √s)."""

    def density(r):
        q, v = r * r, r
        inner = special.ndtr((upper - slope * q) / v) - special.ndtr((lower - slope * q) / v)
        return inner * stats.chi.pdf(r, dim)

    kinks = [abs(lower), abs(upper), *(math.sqrt(abs(x / slope)) for x in (lower, upper) if slope)]
    grid = [1e-12, 1e-9, 1e-6, 1e-3, 0.1, *np.linspace(0.5, math.sqrt(dim) + 9, 12)]
    return integral(density, [*grid, *(k for k in kinks if 1e-12 < k < grid[-1])])


@pytest.mark.parametrize("dim", [1, 2, 3, 16, 200])
@pytest.mark.parametrize(("lower", "upper"), [(-0.3, 2.0), (-1e-3, 1e3), (-30.0, 30.0), (-1e-7, 1e-7)])
def test_multiple_of_the_identity_is_a_chi_square_integral(dim, lower, upper):
    expected = [scalar_matrix_probability(dim, float(g), lower, upper) for g in SLOPES]
    computed = interval_probability(torch.eye(dim), SLOPES, 1.0, lower, upper)
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("lower", "upper"), [(-0.3, 2.0), (-1e-6, 50.0), (-5.0, 1e-4)])
def test_rank_one_nilpotent_is_a_product_of_two_normals(lower, upper):
    m = torch.zeros(5, 5)
    m[0, 1] = 1.0  # Q = (g u_0 + z_0) u_1, of density K_0(|x|)/π after division by √(1 + g²)
    expected = []
    for g in SLOPES.tolist():
        half = [
            integral(lambda x: special.k0(x) / math.pi, [0, *(p for p in (1e-6, 1e-3, 0.1) if p < end), end])
            for end in (abs(lower) / math.hypot(1, g), min(abs(upper) / math.hypot(1, g), 60))
        ]
        expected.append(sum(half))
    np.testing.assert_allclose(interval_probability(m, SLOPES, 1.0, lower, upper), expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")  # gx2's quadrature at few dimensions
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dim", [2, 3, 6])
def test_interval_agrees_with_gx2_on_the_whole_quadratic_form_of_x_and_y(dim, symmetric):
    m, alpha, beta, gamma = matrix(dim, dim, symmetric), 7.0, 12.0, 4.5
    quadratic = np.block([[np.zeros((dim, dim)), m.numpy() / 2], [m.numpy().T / 2, np.zeros((dim, dim))]])
    covariance = np.kron([[alpha, gamma], [gamma, beta]], np.eye(dim))
    quad = {"q2": quadratic, "q1": np.zeros((2 * dim, 1)), "q0": 0.0}
    law = gx2.norm_quad_to_gx2_params(np.zeros((2 * dim, 1)), covariance, quad)
    below = [float(np.squeeze(gx2.cdf(x, *law, method="imhof", AbsTol=1e-10, RelTol=1e-8))) for x in (-6.0, 25.0)]
    computed = interval_probability(m, torch.tensor(gamma), math.sqrt(alpha * beta - gamma**2), -6.0, 25.0)
    assert float(computed) == pytest.approx(below[1] - below[0], abs=2e-6)  # gx2's own error at so few dimensions


@pytest.mark.parametrize(
    ("weights", "points"),
    [
        ([1.0, -0.5, 0.25, 0.1, 0.6, -0.4], (-1.0, 0.2, 5.0)),
        ([3.0, *[1e-2] * 6, *[-2e-2] * 6], (-0.1, 0.3, 12.0)),  # one that dominates
        ([1.0] * 30 + [-2.0] * 20, (-60.0, -10.0, 20.0)),
        ([0.5, 2.0, 2.0, 2.0, 4.0, 4.0], (3.0, 12.0, 40.0)),
    ],
)
def test_weighted_chi_square_tail_agrees_with_gx2(weights, points):
    ones, zeros = np.ones(len(weights)), np.zeros(len(weights))
    expected = gx2.cdf(np.array(points), np.array(weights), ones, zeros, 0.0, 0.0, side="upper", method="imhof")
    rows = torch.tensor(weights, dtype=torch.float64).expand(len(points), -1)
    computed = weighted_chi_square_tail(rows, torch.tensor(points, dtype=torch.float64))
    np.testing.assert_allclose(computed, np.ravel(expected), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dim", [1, 2, 5, 40])
def test_equal_weights_give_the_chi_square_tail_far_out(dim):
    x = torch.tensor([0.01, 0.5 * dim, dim, 3.0 * dim, 20.0 * dim + 30], dtype=torch.float64)
    computed = weighted_chi_square_tail(torch.ones(len(x), dim, dtype=torch.float64), x)
    np.testing.assert_allclose(computed, stats.chi2.sf(x, dim), rtol=1e-11)


def test_chi_square_tail_is_one_or_zero_where_it_must_be():
    weights = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0]], dtype=torch.float64)
    computed = weighted_chi_square_tail(weights, torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64))
    assert computed.tolist() == [1.0, 0.0, 1.0]


@settings(max_examples=25, deadline=None)
@given(
    dim=st.integers(12, 40),
    seed=st.integers(0, 10**6),
    symmetric=st.booleans(),
    lower=st.floats(-3, -1e-3),
    upper=st.floats(1e-3, 3),
)
def test_the_two_inversions_agree(dim, seed, symmetric, lower, upper):
    m = matrix(dim, seed, symmetric) + torch.eye(dim)
    core = _reduce(m / m.norm())
    nodes, step, edges = _plan(core, SLOPES, torch.tensor([[lower], [upper]], dtype=torch.float64))
    shared = _by_shared_nodes(core, SLOPES, edges, nodes, step)
    single = _by_single_laws(core, SLOPES, edges)
    assert float((shared - single).abs().max()) < 1e-12


@settings(max_examples=25, deadline=None)
@given(dim=st.integers(1, 12), seed=st.integers(0, 10**6), size=st.floats(-280, 280))
def test_scaling_matrix_and_thresholds_together_changes_nothing(dim, seed, size):
    m, scale = matrix(dim, seed), 10.0**size
    plain = interval_probability(m, SLOPES, 1.0, -0.7, 1.9)
    scaled = interval_probability(scale * m, SLOPES, 1.0, -0.7 * scale, 1.9 * scale)
    assert float((plain - scaled).abs().max()) < 1e-12


@settings(max_examples=15, deadline=None)
@given(rank=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_a_low_rank_matrix_in_a_large_space_has_the_law_of_its_core(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, 30, rank, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([left, right], 1)).Q  # (30, 2 rank)
    small = (basis.mT @ left) @ (basis.mT @ right).mT  # (2 rank, 2 rank)
    whole = interval_probability(left @ right.mT, SLOPES, 1.0, -1.0, 4.0)
    assert float((whole - interval_probability(small, SLOPES, 1.0, -1.0, 4.0)).abs().max()) < 1e-12


@settings(max_examples=20, deadline=None)
@given(dim=st.integers(1, 20), seed=st.integers(0, 10**6), cut=st.floats(-5, 5))
def test_two_half_lines_make_one(dim, seed, cut):
    m = matrix(dim, seed)
    below = interval_probability(m, SLOPES, 1.0, -math.inf, cut)
    above = interval_probability(m, SLOPES, 1.0, cut, math.inf)
    assert float((below + above - 1).abs().max()) < 1e-12


@settings(max_examples=20, deadline=None)
@given(dim=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_transposing_changes_nothing_and_negation_mirrors(dim, seed):
    m = matrix(dim, seed)
    law = interval_probability(m, SLOPES, 1.0, -0.5, 2.0)
    assert float((law - interval_probability(-m, -SLOPES, 1.0, -0.5, 2.0)).abs().max()) < 1e-12
    assert float((law - interval_probability(m.mT, SLOPES, 1.0, -0.5, 2.0)).abs().max()) < 1e-12


def test_antisymmetric_matrix_has_one_law_for_every_drift():
    m = matrix(9, 3)
    computed = interval_probability(m - m.mT, SLOPES, 1.0, -0.4, 3.0)
    assert float(computed.max() - computed.min()) < 1e-13


def test_dominated_spectrum_agrees_with_conditional_quadrature():
    # M = diag(1, δ, …, δ): given u_0 and s = Σ u_k² over the others, Q ~ N(g(u_0² + δs), u_0² + δ²s)
    delta, others, lower, upper, g = 0.01, 7, -0.2, 1.5, 1.1
    x, weight = np.polynomial.legendre.leggauss(200)
    u = np.exp(11 * x - 9)[:, None]  # e^-20 … e^2
    r = 4.5 * (x + 1)  # √s in 0 … 9
    mean, std = g * (u**2 + delta * r**2), np.sqrt(u**2 + delta**2 * r**2)
    inner = special.ndtr((upper - mean) / std) - special.ndtr((lower - mean) / std)
    density = 2 * stats.norm.pdf(u) * u * 11 * weight[:, None] * stats.chi.pdf(r, others) * 4.5 * weight
    expected = float((density * inner).sum() / density.sum())
    m = torch.diag(torch.tensor([1.0, *[delta] * others], dtype=torch.float64))
    assert float(interval_probability(m, torch.tensor(g), 1.0, lower, upper)) == pytest.approx(expected, abs=1e-8)


def test_zero_matrix_puts_all_mass_at_zero():
    assert interval_probability(torch.zeros(3, 3), SLOPES, 1.0, -1.0, 1.0).tolist() == [1.0] * len(SLOPES)
    assert interval_probability(torch.zeros(3, 3), SLOPES, 1.0, 1.0, 2.0).tolist() == [0.0] * len(SLOPES)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"m": torch.zeros(2, 3)}, ShapeError, "m must have shape"),
        ({"m": torch.zeros(2, 3, 3)}, ShapeError, "m must have shape"),
        ({"m": torch.full((2, 2), torch.nan)}, ArgumentError, "non-finite"),
        ({"drift": torch.tensor([torch.inf])}, ArgumentError, "drift"),
        ({"spread": 0.0}, ArgumentError, "spread must .*, got 0.0"),
        ({"lower": 2.0}, ArgumentError, "lower must .*, got 2.0"),
        ({"upper": math.nan}, ArgumentError, "lower must be < upper, got -1.0 and nan"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = {"m": torch.eye(2), "drift": SLOPES, "spread": 1.0, "lower": -1.0, "upper": 1.0, **change}
    with pytest.raises(error, match=words):
        interval_probability(**arguments)

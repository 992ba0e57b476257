"""Logits that do not change while LocAteR's penalty falls, and the quantities that no change of coordinates moves."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.theory.evasion import change_coordinates, evading_map
from qkrepro.theory.propagation import whiten


def matrix_penalty(w, tau=1.0):
    """LocAteR's Ω of a whole matrix."""
    return float(w.square().sum() + (w.trace() - tau) ** 2)


def least_by_scale(w, tau):
    """Least Ω of W/c² over all c > 0: τ²/(1 + N_W) for a positive trace, and τ² (an infimum) otherwise."""
    number = float(w.trace() ** 2 / w.square().sum())  # N_W
    return tau**2 / (1 + number) if float(w.trace()) > 0 else tau**2


def positive_directions(w):
    """Number of positive eigenvalues of the symmetric part of w; those up to 1e-10 of the largest count as zero."""
    values = torch.linalg.eigvalsh((w + w.mT) / 2)
    return int((values > 1e-10 * values.abs().max()).sum())


def least_by_linear_map(w, tau=1.0):
    """Lower and upper bound on the infimum of Ω(B⁻ᵀ W B⁻¹) over all invertible B; equal for symmetric W."""
    count = positive_directions(w)
    low = tau**2 / (count + 1)
    return low, low if torch.allclose(w, w.mT, rtol=1e-10) or count == 0 else tau**2 / 2


def symmetric(rng, values):
    rotation = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    return torch.tensor(rotation * np.array(values) @ rotation.T)


@given(seed=st.integers(0, 10**6), dim=st.integers(1, 6), tau=st.floats(0.2, 4))
@settings(max_examples=40)
def test_prop_evasion_scale_is_the_minimum_of_a_search_over_the_scale(seed, dim, tau):
    w = torch.tensor(np.random.default_rng(seed).standard_normal((dim, dim)))
    trace, size = float(w.trace()), float(w.square().sum())
    best_scale = optimize.minimize_scalar(
        lambda y: y**2 * size + (y * trace - tau) ** 2, bounds=(0, 1e3), method="bounded"
    )
    assert least_by_scale(w, tau) == pytest.approx(min(best_scale.fun, tau**2), rel=1e-3, abs=1e-6)
    if trace > 0:
        best = (size + trace**2) / (tau * trace)
        assert matrix_penalty(w / best, tau) == pytest.approx(least_by_scale(w, tau))


@pytest.mark.parametrize("values", [[0.01, 0.3, 5.0, 40.0], [1.0, 1.0, 2.0, 0.0], [3.0, 0.2, -1.0, -7.0]])
def test_prop_evasion_linear_map_reaches_its_infimum_with_the_same_logits(values):
    rng = np.random.default_rng(0)
    w, tau = symmetric(rng, values), 1.5
    b = evading_map(w, tau, small=1e-3)
    moved = change_coordinates(w, b)
    x = torch.tensor(rng.standard_normal((9, 4)))
    torch.testing.assert_close((x @ b.T) @ moved @ (x @ b.T).T, x @ w @ x.T, atol=1e-8, rtol=1e-8)
    count = sum(value > 0 for value in values)
    low, high = least_by_linear_map(w, tau)
    assert low == high == pytest.approx(tau**2 / (count + 1))
    assert matrix_penalty(moved, tau) == pytest.approx(low, abs=1e-4)


@given(seed=st.integers(0, 10**6), dim=st.integers(1, 5), rank=st.integers(1, 5))
@settings(max_examples=60)
def test_prop_evasion_linear_no_map_goes_below_the_bound(seed, dim, rank):
    rng = np.random.default_rng(seed)
    rank = min(rank, dim)
    w = torch.tensor(rng.standard_normal((dim, rank)) @ rng.standard_normal((rank, dim)))
    low, _ = least_by_linear_map(w)
    assert positive_directions(w) <= rank
    for _ in range(10):
        b = torch.tensor(rng.standard_normal((dim, dim)) * rng.uniform(0.2, 5))
        assert positive_directions(change_coordinates(w, b)) == positive_directions(w)
        assert matrix_penalty(change_coordinates(w, b)) >= low - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_prop_evasion_linear_infimum_of_a_search_lies_between_its_bounds(seed):
    rng = np.random.default_rng(seed)
    w = torch.tensor(rng.standard_normal((3, 3)))
    low, high = least_by_linear_map(w)

    def of_inverse(entries):
        inverse = torch.tensor(entries.reshape(3, 3))
        return matrix_penalty(inverse.T @ w @ inverse)

    best = min(optimize.minimize(of_inverse, rng.standard_normal(9), method="BFGS").fun for _ in range(6))
    assert low - 1e-6 <= best <= high + 1e-4


def test_prop_evasion_linear_without_a_positive_direction_only_shrinking_helps():
    w = symmetric(np.random.default_rng(1), [-1.0, -2.0, 0.0])
    assert least_by_linear_map(w, 2.0) == (4.0, 4.0)
    assert matrix_penalty(w / 1e6, 2.0) == pytest.approx(4.0, abs=1e-4)


@given(seed=st.integers(0, 10**6), dim=st.integers(2, 6))
@settings(max_examples=30)
def test_prop_evasion_tokens_the_matrix_of_the_increments_is_the_same_in_all_coordinates(seed, dim):
    rng = np.random.default_rng(seed)
    w, b, root = (torch.tensor(rng.standard_normal((dim, dim))) for _ in range(3))
    b = b + 2 * torch.eye(dim, dtype=torch.float64)
    assume(float(torch.linalg.cond(b)) < 50)
    cov = root @ root.T + 0.1 * torch.eye(dim, dtype=torch.float64)
    before = whiten(w, cov)
    after = whiten(change_coordinates(w, b), b @ cov @ b.T)
    torch.testing.assert_close(torch.linalg.svdvals(after), torch.linalg.svdvals(before), rtol=1e-6, atol=1e-8)
    assert float(after.trace()) == pytest.approx(float(before.trace()), rel=1e-6, abs=1e-7)
    assert matrix_penalty(after) == pytest.approx(matrix_penalty(before), rel=1e-6)


def test_prop_evasion_tokens_a_gain_of_layernorm_is_enough_for_a_diagonal_head():
    values = torch.tensor([0.2, 1.0, 6.0, 9.0], dtype=torch.float64)
    moved = change_coordinates(values.diag(), (values * 5 / 1.0).sqrt().diag())
    torch.testing.assert_close(moved, torch.eye(4, dtype=torch.float64) / 5)
    assert matrix_penalty(moved) == pytest.approx(1 / 5)
    rng = np.random.default_rng(2)
    w = torch.tensor(rng.standard_normal((4, 4)))
    x = torch.nn.functional.layer_norm(torch.tensor(rng.standard_normal((50, 4))), (4,), eps=1e-5)
    bound = 4 * float(torch.linalg.matrix_norm(w, 2))
    assert float((x @ w @ x.T).abs().max()) <= bound <= 4 * matrix_penalty(w) ** 0.5


def test_bad_input_is_refused_by_name():
    eye = torch.eye(2)
    for call, error, name in (
        (lambda: change_coordinates(eye, torch.eye(3)), ShapeError, "shape"),
        (lambda: evading_map(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), ArgumentError, "symmetric"),
        (lambda: evading_map(-eye), ArgumentError, "positive eigenvalue"),
        (lambda: evading_map(eye, 0.0), ArgumentError, "tau"),
    ):
        with pytest.raises(error, match=name):
            call()

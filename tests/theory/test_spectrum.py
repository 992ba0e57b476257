"""The spectrum's small products against full matrices, and the matrices with a chosen spectrum."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkrepro.errors import ArgumentError, QKReproError, ShapeError
from qkrepro.theory.spectrum import (
    covariance_root,
    factor,
    matrix_moments,
    qk_eigenvalues,
    qk_matrix,
    qk_moments,
    random_rotation,
    random_spectrum_matrix,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heads(seed: int, batch: tuple[int, ...], d_head: int, d_model: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.randn(2, *batch, d_head, d_model, generator=seeded(seed), dtype=torch.float64)
    return draws[0], draws[1]


@st.composite
def head_shapes(draw: st.DrawFn) -> tuple[int, tuple[int, ...], int, int]:
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    d_head = draw(st.integers(1, 6))
    return draw(st.integers(0, 10_000)), batch, d_head, d_head + draw(st.integers(0, 8))


@settings(deadline=None, max_examples=40)
@given(head_shapes())
def test_small_product_has_the_nonzero_eigenvalues_of_the_full_matrix(shape):
    seed, batch, d_head, d_model = shape
    w_q, w_k = heads(seed, batch, d_head, d_model)
    small = qk_eigenvalues(w_q, w_k)
    assert small.shape == (*batch, d_head)
    assert small.dtype == torch.complex128
    full = torch.linalg.eigvals(w_q.mT @ w_k)  # (..., d_model)
    for power in (1, 2, 3):  # power sums determine the non-zero eigenvalues, without pairing them up
        expected = full.pow(power).sum(-1)
        scale = full.abs().pow(power).sum(-1)
        assert bool(((small.pow(power).sum(-1) - expected).abs() <= 1e-9 * scale).all())


@settings(deadline=None, max_examples=40)
@given(head_shapes())
def test_moments_equal_those_of_the_full_matrix(shape):
    w_q, w_k = heads(*shape)
    full = (w_q.mT @ w_k).numpy()
    moments = qk_moments(w_q, w_k)
    assert moments.d_model == shape[-1]
    norms = np.linalg.svd(full, compute_uv=False)
    scale = (norms**2).sum(-1)
    np.testing.assert_allclose(moments.frobenius_sq, scale, rtol=1e-12)
    np.testing.assert_allclose(moments.spectral_norm, norms[..., 0], rtol=1e-12)
    np.testing.assert_allclose(moments.spectral_energy_share, norms[..., 0] ** 2 / scale, rtol=1e-12)
    symmetric = (full + np.swapaxes(full, -2, -1)) / 2
    score = (symmetric**2).sum((-2, -1)) / scale
    np.testing.assert_allclose(moments.symmetry_score, score, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_less(
        np.abs(moments.trace.numpy() - np.trace(full, axis1=-2, axis2=-1)), 1e-11 * np.sqrt(scale) + 1e-300
    )
    np.testing.assert_array_less(
        np.abs(moments.trace_sq.numpy() - np.trace(full @ full, axis1=-2, axis2=-1)), 1e-11 * scale
    )


def test_eigen_mean_and_variance_run_over_the_zeros_too():
    w_q, w_k = heads(3, (2, 3), 4, 10)
    moments = qk_moments(w_q, w_k)
    all_values = torch.linalg.eigvals(qk_matrix(w_q, w_k))  # (2, 3, 10), six of them zero
    torch.testing.assert_close(moments.eigen_mean, all_values.mean(-1).real)
    variance = all_values.square().mean(-1) - all_values.mean(-1).square()
    torch.testing.assert_close(moments.eigen_variance, variance.real)


def test_variance_of_a_complex_spectrum_can_be_negative():
    quarter_turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    assert float(matrix_moments(quarter_turn).eigen_variance) == -1.0


def test_frobenius_norm_of_nearly_orthogonal_factors_keeps_its_digits():
    w_q = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    tilted = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0 + 1e-7, 0.0]], dtype=torch.float64)
    w = factor(torch.diag(torch.tensor([1.0, 1e-9, 0.0], dtype=torch.float64)), 2)
    moments = qk_moments(*w)
    assert float(moments.frobenius_sq) == pytest.approx(1 + 1e-18, rel=1e-15)
    pair = qk_moments(tilted, torch.linalg.pinv(tilted).mT)  # W is a projection on a plane: singular values 1, 1
    assert float(pair.spectral_norm) == pytest.approx(1.0, abs=1e-6)
    assert float(qk_moments(w_q, w_q).spectral_norm) == pytest.approx(2.0, rel=1e-15)


def test_half_precision_weights_are_read_in_double():
    w_q, w_k = heads(5, (), 3, 7)
    half = qk_moments(w_q.bfloat16(), w_k.bfloat16())
    assert half.trace.dtype == torch.float64
    torch.testing.assert_close(half.trace, qk_moments(w_q.bfloat16().double(), w_k.bfloat16().double()).trace)


def test_matrix_moments_equal_those_of_the_eigenvalues_and_singular_values():
    w = torch.randn(2, 6, 6, generator=seeded(2), dtype=torch.float64)
    moments, values = matrix_moments(w), np.linalg.eigvals(w.numpy())
    np.testing.assert_allclose(moments.trace, values.sum(-1).real, rtol=1e-11)
    np.testing.assert_allclose(moments.trace_sq, (values**2).sum(-1).real, rtol=1e-11)
    np.testing.assert_allclose(moments.spectral_norm, np.linalg.norm(w.numpy(), 2, axis=(-2, -1)), rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 24), st.floats(-5, 5), st.floats(0, 9), st.booleans(), st.integers(0, 10_000))
def test_random_spectrum_has_exactly_the_mean_and_variance(dim, mean, variance, symmetric, seed):
    w = random_spectrum_matrix(dim, mean, variance, symmetric=symmetric, generator=seeded(seed))
    moments = matrix_moments(w)
    scale = mean**2 + variance + 1e-12
    assert float(moments.eigen_mean) == pytest.approx(mean, abs=1e-11 * math.sqrt(scale))
    assert float(moments.eigen_variance) == pytest.approx(variance, abs=1e-11 * scale * dim)


def test_symmetric_draw_is_symmetric_and_its_eigenvalues_vary_as_asked():
    w = random_spectrum_matrix(30, -0.7, 2.5, generator=seeded(1))
    assert torch.equal(w, w.mT)
    values = np.linalg.eigvalsh(w.numpy())
    assert values.mean() == pytest.approx(-0.7, abs=1e-12)
    assert values.var() == pytest.approx(2.5, abs=1e-12)


def test_non_symmetric_draw_has_real_eigenvalues_and_the_frobenius_norm_asked_for():
    w = random_spectrum_matrix(12, 0.5, 4.0, symmetric=False, non_normality=3.0, generator=seeded(4))
    values = np.linalg.eigvals(w.numpy())
    assert np.abs(values.imag).max() < 1e-9
    assert values.real.mean() == pytest.approx(0.5, abs=1e-9)
    assert values.real.var() == pytest.approx(4.0, abs=1e-8)
    assert float(w.square().sum()) == pytest.approx(12 * (0.25 + 4.0) + 9.0, rel=1e-12)


def test_default_non_symmetric_draw_doubles_the_squared_frobenius_norm():
    moments = matrix_moments(random_spectrum_matrix(20, 1.0, 1.0, symmetric=False, batch=(3,), generator=seeded(8)))
    torch.testing.assert_close(moments.frobenius_sq, 2 * moments.trace_sq)


def test_zero_variance_gives_a_multiple_of_the_identity():
    w = random_spectrum_matrix(9, 0.3, 0.0, generator=seeded(2))
    torch.testing.assert_close(w, 0.3 * torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-14)


def test_same_seed_same_matrix_and_batch_entries_differ():
    first, again = (random_spectrum_matrix(5, 0.0, 1.0, batch=(2,), generator=seeded(6)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[1])


def test_rotation_is_orthogonal_and_its_entries_have_variance_one_over_dim():
    rotations = random_rotation(8, batch=(4000,), generator=seeded(3))
    torch.testing.assert_close(rotations[:9] @ rotations[:9].mT, torch.eye(8, dtype=torch.float64).expand(9, 8, 8))
    corner = rotations[:, 0, 0].numpy()  # Haar: mean 0, variance 1/8; without the sign fix the mean is not 0
    assert abs(corner.mean()) < 4 * math.sqrt(1 / 8 / 4000)
    assert abs((corner**2).mean() - 1 / 8) < 4 * (corner**2).std() / math.sqrt(4000)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 1000))
def test_factors_are_balanced_and_multiply_back(rank, extra, seed):
    dim = rank + extra + 1
    left, right = heads(seed, (2,), rank, dim)
    w = left.mT @ right
    w_q, w_k = factor(w, rank)
    assert w_q.shape == w_k.shape == (2, rank, dim)
    torch.testing.assert_close(w_q.mT @ w_k, w, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(w_q @ w_q.mT, w_k @ w_k.mT, rtol=1e-9, atol=1e-9)


def test_rank_is_judged_at_the_precision_of_the_dtype():
    left, right = heads(1, (), 3, 12)
    w_q, _ = factor((left.mT @ right).float(), 3)  # rounding to float32 leaves singular values of 1e-7, not rank
    assert w_q.shape == (3, 12)


def test_factor_refuses_a_rank_above_d_head():
    with pytest.raises(ArgumentError, match="w must have rank at most d_head = 4, got 5"):
        factor(torch.eye(5), 4)


@pytest.mark.parametrize(
    ("w", "d_head", "message"),
    [
        (torch.ones(3, 4), 2, r"w must have shape .*, got \(3, 4\)"),
        (torch.eye(3), 4, "d_head must be at most d_model = 3"),
        (torch.eye(3), 0, "d_head must .*, got 0"),
        (torch.full((3, 3), math.nan), 2, "w must be finite, got 9 non-finite values"),
    ],
)
def test_factor_names_what_is_wrong(w, d_head, message):
    with pytest.raises(QKReproError, match=message):
        factor(w, d_head)


@pytest.mark.parametrize("call", [qk_matrix, qk_eigenvalues, qk_moments])
@pytest.mark.parametrize(
    ("w_q", "w_k", "error", "message"),
    [
        (
            torch.ones(2, 4),
            torch.ones(2, 5),
            ShapeError,
            r"w_q and w_k must have equal shapes, got \(2, 4\) and \(2, 5\)",
        ),
        (torch.ones(4), torch.ones(4), ShapeError, r"must have shape \(..., d_head, d_model\)"),
        (torch.ones(5, 4), torch.ones(5, 4), ShapeError, "d_head must not exceed d_model = 4, got 5"),
        (
            torch.full((2, 4), math.inf),
            torch.ones(2, 4),
            ArgumentError,
            "w_q must be finite, got 8 non-finite values of 8",
        ),
        (
            torch.ones(2, 4),
            torch.full((2, 4), math.nan),
            ArgumentError,
            "w_k must be finite, got 8 non-finite values of 8",
        ),
    ],
)
def test_bad_weights_are_refused_by_name(call, w_q, w_k, error, message):
    with pytest.raises(error, match=message):
        call(w_q, w_k)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must .*, got 0"),
        ({"variance": -1.0}, "variance must be finite and >= 0"),
        ({"variance": math.nan}, "variance must .*, got nan"),
        ({"mean": math.inf}, "mean must be finite, got inf"),
        ({"dim": 1, "variance": 2.0}, "variance must be 0 at dim 1, .*, got 2.0"),
        ({"non_normality": 1.0}, "non_normality must be None with symmetric=True, got 1.0"),
        ({"non_normality": -1.0, "symmetric": False}, "non_normality must .*, got -1.0"),
    ],
)
def test_bad_spectra_are_refused_by_name(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        random_spectrum_matrix(**({"dim": 4, "mean": 0.0, "variance": 1.0, "generator": seeded()} | arguments))


def test_covariance_root_squares_back_even_when_singular():
    rows, _ = heads(2, (), 2, 5)
    cov = rows.mT @ rows  # rank 2
    root = covariance_root(cov, 5)
    torch.testing.assert_close(root @ root, cov, rtol=1e-9, atol=1e-7)
    assert torch.equal(root, root.mT) or torch.allclose(root, root.mT, atol=1e-12)


@pytest.mark.parametrize(
    ("cov", "error", "message"),
    [
        (torch.eye(3), ShapeError, r"cov must have shape .*, got \(3, 3\)"),
        (
            torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
            ArgumentError,
            "cov must be positive semi-definite, got the eigenvalue -1",
        ),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), ArgumentError, "cov must be symmetric, got a difference of 0.5"),
        (torch.tensor([[math.nan, 0.0], [0.0, 1.0]]), ArgumentError, "cov must be finite, got 1 non-finite values"),
    ],
)
def test_what_is_no_covariance_is_refused(cov, error, message):
    with pytest.raises(error, match=message):
        covariance_root(cov, 2)


def test_a_matrix_that_is_not_square_has_no_moments():
    with pytest.raises(ShapeError, match=r"w must have shape .*, got \(2, 3\)"):
        matrix_moments(torch.ones(2, 3))

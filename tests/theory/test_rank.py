import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from qkrepro.chapters.rank_collapse import smallest_l1_linf_residual
from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.theory.rank import l1_linf_norm, mean_cosine_similarity, rank_residual, stable_rank

SHAPES = st.tuples(st.integers(2, 7), st.integers(1, 5), st.integers(0, 10_000))


def tokens(length: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, dim, generator=generator, dtype=torch.float64) + torch.randn(
        dim, generator=generator, dtype=torch.float64
    )


def composite(x: np.ndarray) -> float:
    return float(np.sqrt(np.linalg.norm(x, 1) * np.linalg.norm(x, np.inf)))


@settings(deadline=None)
@given(SHAPES)
def test_frobenius_residual_is_the_brute_force_minimum(shape):
    x = tokens(*shape).numpy()
    best = optimize.minimize(lambda y: np.square(x - y).sum(), np.zeros(x.shape[1]), method="BFGS")
    assert float(rank_residual(torch.tensor(x))) == pytest.approx(np.sqrt(best.fun / np.square(x).sum()), abs=1e-6)


@settings(deadline=None)
@given(SHAPES)
def test_composite_norm_is_that_of_numpy(shape):
    x = tokens(*shape)
    assert float(l1_linf_norm(x)) == pytest.approx(composite(x.numpy()), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(0, 10_000))
def test_smallest_composite_residual_is_the_minimum_over_a_fine_grid(length, seed):
    x = tokens(length, 1, seed).numpy()
    grid = np.concatenate([np.linspace(x.min(), x.max(), 2001), x.ravel(), [(x.min() + x.max()) / 2]])
    least = min(composite(x - y) for y in grid) / composite(x)
    assert smallest_l1_linf_residual(torch.tensor(x)) == pytest.approx(least, rel=1e-3)


@settings(deadline=None)
@given(SHAPES)
def test_smallest_composite_residual_is_not_above_that_of_any_token_tried(shape):
    x = tokens(*shape).numpy()
    rng = np.random.default_rng(shape[2])
    tried = [x.mean(0), np.median(x, 0), (x.min(0) + x.max(0)) / 2, *x, *rng.dirichlet(np.ones(len(x)), 50) @ x]
    least = min(composite(x - y) for y in tried) / composite(x)
    assert smallest_l1_linf_residual(torch.tensor(x)) <= least * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_smallest_composite_residual_is_what_a_direct_search_reaches(seed):
    x = tokens(5, 2, seed).numpy()
    starts = [x.mean(0), np.median(x, 0), *x]
    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
    best = min(
        optimize.minimize(lambda y: composite(x - y), start, method="Nelder-Mead", options=options).fun
        for start in starts
    )
    assert smallest_l1_linf_residual(torch.tensor(x)) == pytest.approx(best / composite(x), rel=5e-3)


@settings(deadline=None)
@given(SHAPES)
def test_mean_token_comes_within_a_factor_of_two_of_the_smallest_composite_residual(shape):
    x = tokens(*shape)
    ratio = float(rank_residual(x, "l1-linf")) / smallest_l1_linf_residual(x)
    assert 1 - 1e-6 <= ratio <= 2


@pytest.mark.parametrize("length", [6, 12, 40])
def test_one_outlier_among_equal_tokens_has_the_composite_residuals_of_its_closed_form(length):
    x = torch.zeros(length, 1, dtype=torch.float64)
    x[0] = 1.0
    assert smallest_l1_linf_residual(x) == pytest.approx(1.0, rel=1e-6)  # y = 0: one column sum 1, one row sum 1
    assert float(rank_residual(x, "l1-linf")) == pytest.approx(2**0.5 * (length - 1) / length, rel=1e-12)


@pytest.mark.parametrize("norm", ["frobenius", "l1-linf"])
def test_equal_tokens_have_no_residual(norm):
    x = torch.tensor([[1.0, -2.0, 4.0]]).expand(5, 3)
    assert float(rank_residual(x, norm)) == pytest.approx(0.0, abs=1e-15)
    assert smallest_l1_linf_residual(x) == 0


def test_residual_of_a_random_walk_is_that_of_its_closed_form_within_four_standard_errors():
    length, dim, walks = 32, 16, 4000
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(walks, length, dim, generator=generator, dtype=torch.float64).cumsum(-2)
    centred = (rank_residual(x) * x.norm(dim=(-2, -1))).square()  # ‖x − 1x̄ᵀ‖², expected d (T² − 1)/6
    error = float(centred.std()) / walks**0.5
    assert float(centred.mean()) == pytest.approx(dim * (length**2 - 1) / 6, abs=4 * error)


@settings(deadline=None)
@given(SHAPES)
def test_mean_cosine_similarity_is_the_mean_over_all_pairs(shape):
    x = tokens(*shape)
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    cosines = [float(torch.cosine_similarity(x[i], x[j], dim=0)) for i, j in pairs]
    assert float(mean_cosine_similarity(x)) == pytest.approx(np.mean(cosines), abs=1e-12)


@settings(deadline=None)
@given(SHAPES)
def test_stable_rank_is_that_of_the_singular_values(shape):
    x = tokens(*shape)
    values = np.linalg.svd(x.numpy(), compute_uv=False)
    assert float(stable_rank(x)) == pytest.approx(np.square(values / values[0]).sum(), rel=1e-9)


def test_stable_rank_of_orthonormal_tokens_is_their_number_and_of_equal_tokens_one():
    assert float(stable_rank(torch.eye(4, 9))) == pytest.approx(4)
    assert float(stable_rank(torch.ones(6, 3))) == pytest.approx(1)


@pytest.mark.parametrize("measure", [rank_residual, lambda x: rank_residual(x, "l1-linf"), stable_rank])
@settings(deadline=None)
@given(shape=SHAPES, factor=st.floats(1e-3, 1e3))
def test_measures_do_not_depend_on_the_scale_of_the_tokens(measure, shape, factor):
    x = tokens(*shape)
    assert float(measure(factor * x)) == pytest.approx(float(measure(x)), rel=1e-9)


@pytest.mark.parametrize("measure", [rank_residual, mean_cosine_similarity, stable_rank])
def test_measures_of_a_batch_are_those_of_its_sequences(measure):
    x = torch.stack([torch.stack([tokens(5, 3, 10 * i + j) for j in range(3)]) for i in range(2)])  # (2, 3, 5, 3)
    assert measure(x).shape == (2, 3)
    assert float(measure(x)[1, 2]) == pytest.approx(float(measure(x[1, 2])), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rank_residual(torch.ones(3)), ShapeError, r"x must have shape .*, got \(3,\)"),
        (lambda: rank_residual(torch.ones(3, 2), "l2"), ArgumentError, "norm must .*, got 'l2'"),
        (lambda: rank_residual(torch.zeros(3, 2)), ArgumentError, "must hold at least one non-zero token"),
        (lambda: stable_rank(torch.zeros(3, 2)), ArgumentError, "must hold at least one non-zero token"),
        (
            lambda: rank_residual(torch.tensor([[1.0], [torch.nan]])),
            ArgumentError,
            "x must be finite, got 1 non-finite",
        ),
        (lambda: mean_cosine_similarity(torch.ones(1, 2)), ShapeError, "T >= 2"),
        (lambda: mean_cosine_similarity(torch.eye(3, 2)), ArgumentError, "must hold no zero tokens, .*, got 1"),
        (lambda: smallest_l1_linf_residual(torch.ones(2, 3, 4)), ShapeError, r"allowed: \(T, d\)"),
        (lambda: smallest_l1_linf_residual(torch.eye(2), tolerance=0), ArgumentError, "tolerance must .*, got 0"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()

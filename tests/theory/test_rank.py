import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

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
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()

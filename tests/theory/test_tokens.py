"""The laws of the synthetic tokens: covariances over positions against their closed forms."""

import math

import pytest
import torch

from qkrepro.errors import ArgumentError, QKReproError, ShapeError
from qkrepro.theory.tokens import ar1_tokens, independent_tokens, random_walk

COV = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
SAMPLES = 20_000
LAWS = {
    "random_walk": (random_walk, {}, lambda s, t: min(s, t)),
    "independent_tokens": (independent_tokens, {}, lambda s, t: float(s == t)),
    "ar1_tokens": (ar1_tokens, {"coefficient": 0.8}, lambda s, t: 0.8 ** abs(s - t)),
    "ar1_tokens, alternating": (ar1_tokens, {"coefficient": -0.5}, lambda s, t: (-0.5) ** abs(s - t)),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("law", LAWS)
def test_covariance_between_positions_is_the_closed_form_within_five_standard_errors(law):
    draw, options, correlation = LAWS[law]
    x = draw(5, 3, cov=COV, batch=SAMPLES, generator=seeded(7), **options)  # (samples, 5, 3)
    expected = torch.tensor([[correlation(s, t) for t in range(1, 6)] for s in range(1, 6)], dtype=torch.float64)
    products = torch.einsum("bsi,btj->bstij", x, x)
    error = products.mean(0) - expected[:, :, None, None] * COV
    assert bool((error.abs() <= 5 * products.std(0) / math.sqrt(SAMPLES)).all())
    assert bool((x.mean(0).abs() <= 5 * x.std(0) / math.sqrt(SAMPLES)).all())


@pytest.mark.parametrize("law", LAWS)
def test_shape_dtype_and_seed_are_the_callers(law):
    draw, options, _ = LAWS[law]
    x = draw(6, 2, batch=(3, 2), generator=seeded(1), **options)
    assert x.shape == (3, 2, 6, 2)
    assert x.dtype == torch.float64
    assert torch.equal(x, draw(6, 2, batch=(3, 2), generator=seeded(1), **options))
    assert not torch.equal(x, draw(6, 2, batch=(3, 2), generator=seeded(2), **options))


def test_increments_of_the_walk_are_the_independent_tokens():
    walk = random_walk(9, 4, batch=3, generator=seeded(5))
    steps = torch.diff(walk, dim=-2, prepend=torch.zeros(3, 1, 4, dtype=torch.float64))
    torch.testing.assert_close(steps, independent_tokens(9, 4, batch=3, generator=seeded(5)))


def test_no_memory_means_independent_tokens():
    assert torch.equal(
        ar1_tokens(7, 3, coefficient=0.0, batch=2, generator=seeded(3)),
        independent_tokens(7, 3, batch=2, generator=seeded(3)),
    )


def test_singular_covariance_keeps_tokens_on_its_support():
    line = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    x = random_walk(10, 2, cov=line, batch=1, generator=seeded(2))
    torch.testing.assert_close(x[..., 1], 2 * x[..., 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": 1}, ArgumentError, "length must be an integer >= 2"),
        ({"dim": 0}, ArgumentError, "dim must .*, got 0"),
        ({"batch": 0}, ArgumentError, "batch must .*, got 0"),
        ({"cov": torch.eye(3)}, ShapeError, r"cov must have shape .*, got \(3, 3\)"),
        ({"cov": -torch.eye(2)}, ArgumentError, "cov must be positive semi-definite, got the eigenvalue -1"),
    ],
)
def test_bad_arguments_are_refused_by_name(law, arguments, error, message):
    draw, options, _ = LAWS[law]
    with pytest.raises(error, match=message):
        draw(**({"length": 4, "dim": 2, "batch": 1, "generator": seeded()} | options | arguments))


@pytest.mark.parametrize("coefficient", [1.0, -1.0, 1.5, math.nan])
def test_an_ar1_without_a_stationary_law_is_refused(coefficient):
    with pytest.raises(QKReproError, match=f"coefficient must .*, got {coefficient}"):
        ar1_tokens(4, 2, coefficient=coefficient, batch=1, generator=seeded())

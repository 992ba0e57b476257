"""Statistics of tokens on walks and on independent tokens, whose values are known."""

import math

import numpy as np
import pytest
import torch

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.theory.tokens import increment_covariance, independent_tokens, random_walk
from qkrepro.theory.walk_statistics import (
    covariance_change,
    increment_correlation,
    normal_share,
    open_share,
    path_share,
    variance_growth,
    walk_checks,
    walk_like,
)

COV = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64))


def walks() -> torch.Tensor:
    return random_walk(40, 3, cov=COV, batch=2000, generator=torch.Generator().manual_seed(0))


def words() -> torch.Tensor:
    return independent_tokens(40, 3, cov=COV, batch=2000, generator=torch.Generator().manual_seed(1))


def test_increments_of_a_walk_are_uncorrelated_and_those_of_independent_tokens_half_at_one_lag():
    assert increment_correlation(walks(), [1, 2, 5]).tolist() == pytest.approx([0, 0, 0], abs=0.01)
    assert increment_correlation(words(), [1, 2, 5]).tolist() == pytest.approx([-0.5, 0, 0], abs=0.01)
    with pytest.raises(ArgumentError, match="lags"):
        increment_correlation(walks(), [0])


def test_variance_of_a_walk_grows_with_the_location_and_that_of_independent_tokens_stays_at_one_half():
    steps = torch.arange(1, 41, dtype=torch.float64)
    assert (variance_growth(walks()) / steps).tolist() == pytest.approx([1] * 40, rel=0.08)
    assert variance_growth(words()).tolist() == pytest.approx([0.5] * 40, rel=0.08)
    with pytest.raises(ShapeError, match="sequences >= 2"):
        variance_growth(walks()[:1])


def test_covariance_changes_where_the_second_half_of_a_walk_has_other_steps():
    x = walks()
    louder = torch.cat([x[:, :20], x[:, 19:20] + 2 * (x[:, 20:] - x[:, 19:20])], dim=1)  # Σ, then 4Σ
    assert covariance_change(x) < 0.1
    assert covariance_change(louder) == pytest.approx(3 / 2.5, rel=0.1)


def test_path_share_is_what_an_added_path_brings_to_the_increments():
    steps = torch.arange(40, dtype=torch.float64)[:, None] % 2  # (40, 1), a path of steps ±1 in each direction
    x = words() + 3 * steps
    assert path_share(x) == pytest.approx(27 / (27 + 2 * 5.25), rel=0.02)
    few = walks()[:50].split(5)
    assert sum(path_share(part) for part in few) / len(few) == pytest.approx(0, abs=0.02)  # five sequences: unbiased


def test_checks_of_a_walk_have_the_values_of_the_theory():
    found = walk_checks(random_walk(40, 200, batch=100, generator=torch.Generator().manual_seed(2)))
    assert found["residual"] == pytest.approx(math.sqrt(39 / 120), abs=0.02)
    assert found["growth"] == pytest.approx(1, abs=0.05)


def test_walk_like_has_the_covariance_of_the_increments_of_its_model():
    x = walk_like(words(), torch.Generator().manual_seed(3))
    assert x.shape == (2000, 40, 3)
    np.testing.assert_allclose(increment_covariance(x), 2 * COV, atol=0.2)


def test_normal_share_equals_the_counted_share_of_normal_logits():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(20_000, 24, generator=generator, dtype=torch.float64) * 1.5 + torch.linspace(-2, 2, 24)
    np.testing.assert_allclose(normal_share(logits), open_share(logits), atol=0.015)

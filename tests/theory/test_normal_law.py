"""Φ for arrays against SciPy's, over its whole range and in both tails."""

import numpy as np
import pytest
from scipy.special import log_ndtr, ndtr

from qkrepro.theory.normal_law import normal_cdf


@pytest.mark.parametrize(("low", "high", "tolerance"), [(-8, 9, 2e-14), (-37, -8, 1e-12)])
def test_the_distribution_function_is_that_of_scipy_to_the_last_digits(
    low: float, high: float, tolerance: float
) -> None:
    x = np.linspace(low, high, 200_001)
    np.testing.assert_allclose(normal_cdf(x), ndtr(x), rtol=tolerance, atol=0)


def test_the_lower_tail_keeps_its_relative_accuracy() -> None:
    x = np.linspace(-37, -20, 1001)
    np.testing.assert_allclose(np.log(normal_cdf(x)), log_ndtr(x), rtol=1e-14)


def test_infinite_arguments_give_the_limits_and_nan_stays() -> None:
    values = normal_cdf(np.array([-np.inf, -1e300, -39.0, 0.0, 1e300, np.inf, np.nan]))
    np.testing.assert_array_equal(values, [0, 0, 0, 0.5, 1, 1, np.nan])


def test_the_shape_is_kept() -> None:
    assert normal_cdf(np.zeros((2, 0, 3))).shape == (2, 0, 3)

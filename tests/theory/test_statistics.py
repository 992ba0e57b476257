"""Intervals cover the truth as often as they say, and agree with another implementation."""

import numpy as np
import pytest
from scipy import stats

from qkrepro.errors import ArgumentError
from qkrepro.theory.statistics import spearman_interval, t_interval


def test_t_interval_reaches_the_quantile_of_student_times_the_standard_error():
    values = np.random.default_rng(0).normal(1.0, 2.0, size=7)
    half = stats.t.ppf(0.975, 6) * values.std(ddof=1) / np.sqrt(7)
    assert np.allclose(t_interval(values), (values.mean(), values.mean() - half, values.mean() + half), rtol=1e-12)


def test_t_interval_of_small_samples_covers_the_mean_at_its_level():
    draws = np.random.default_rng(1).normal(size=(4000, 4))
    covered = np.mean([interval.low <= 0 <= interval.high for interval in map(t_interval, draws)])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)


def test_equal_values_give_an_interval_of_width_zero():
    assert t_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_spearman_interval_brackets_the_population_value_and_is_seeded():
    rng = np.random.default_rng(2)
    x = rng.normal(size=200)
    y = 0.7 * x + np.sqrt(1 - 0.49) * rng.normal(size=200)
    population = 6 / np.pi * np.arcsin(0.7 / 2)
    interval = spearman_interval(x, y, seed=3)
    assert interval.low < population < interval.high
    assert interval == spearman_interval(x, y, seed=3)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_too_few_or_non_finite_values_are_refused(values):
    with pytest.raises(ArgumentError, match="values must be"):
        t_interval(values)


def test_unpaired_data_are_refused():
    with pytest.raises(ArgumentError, match=r"got \(5,\) and \(6,\)"):
        spearman_interval(range(5), range(6), seed=0)

"""Intervals cover the truth as often as they say, and agree with another implementation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qkrepro.errors import ArgumentError
from qkrepro.theory.statistics import (
    holm,
    intervals,
    median_interval,
    median_intervals,
    quartiles,
    spearman_interval,
    t_interval,
)


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


@pytest.mark.parametrize("n", [6, 10, 12])
def test_median_interval_of_skewed_values_covers_the_median_at_least_at_its_level(n):
    draws = np.random.default_rng(4).lognormal(sigma=2.0, size=(2000, n))
    covered = np.mean([interval.low <= 1 <= interval.high for interval in map(median_interval, draws)])
    assert covered > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_median_interval_ends_are_the_order_statistics_of_the_sign_test():
    assert median_interval(np.arange(10.0)[::-1]) == (4.5, 1.0, 8.0)
    assert stats.binomtest(1, 10).pvalue < 0.05 < stats.binomtest(2, 10).pvalue  # so the second and ninth of ten


def test_five_values_hold_no_interval_of_the_median():
    estimate, low, high = median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert estimate == 3
    assert np.isnan([low, high]).all()
    with pytest.raises(ArgumentError, match="finite numbers, at least one"):
        median_interval([])


def test_tables_of_intervals_are_those_of_each_group_alone():
    table = pd.DataFrame({"cell": ["a"] * 6 + ["b"] * 6, "value": [1.0, 2, 3, 4, 5, 6, 5, 5, 5, 5, 5, 5]})
    table_of_intervals = intervals(table, ["cell"], "value").set_index("cell")
    assert table_of_intervals.loc["a"].tolist() == pytest.approx(list(t_interval([1.0, 2, 3, 4, 5, 6])))
    assert table_of_intervals.loc["b"].tolist() == pytest.approx([5, 5, 5])
    assert median_intervals(table, ["cell"], "value").set_index("cell").loc["a"].tolist() == [3.5, 1, 6]
    assert quartiles(table, ["cell"], "value").loc[0, ["low", "median", "high"]].tolist() == [2.25, 3.5, 4.75]


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


def test_blocks_are_resampled_whole():
    """Two blocks that disagree: a resample holds them 2:0, 1:1 or 0:2, so the interval reaches from -1 to 1."""
    x = np.arange(10.0)
    y = np.where(x < 5, x, 20 - x)
    interval = spearman_interval(x, y, seed=0, blocks=np.repeat([0, 1], 5))
    assert (interval.low, interval.high) == pytest.approx((-1, 1))


def test_blocks_of_one_pair_are_the_plain_bootstrap_and_unequal_ones_are_refused():
    x = np.random.default_rng(4).normal(size=(2, 12))
    assert spearman_interval(*x, seed=1) == spearman_interval(*x, seed=1, blocks=np.arange(12))
    with pytest.raises(ArgumentError, match=r"sizes \[5, 7\]"):
        spearman_interval(*x, seed=1, blocks=[0] * 5 + [1] * 7)


def test_holm_keeps_the_order_and_multiplies_step_by_step():
    """The four p-values of Holm's own kind of example, worked by hand: 0.01·4, 0.02·3, 0.03·2 raised to 0.06, 0.04."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == pytest.approx([1, 1])
    assert holm([]).size == 0

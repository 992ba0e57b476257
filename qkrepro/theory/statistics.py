"""Intervals, means over seeds, distances of profiles: thin calls of SciPy with this book's conventions."""

import warnings
from collections.abc import Sequence
from functools import cache
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from qkrepro.errors import ArgumentError, ShapeError, check_integer

NO_INTERVAL = float("nan")
CONFIDENCE = 0.95  # of every interval unless it says otherwise


class Interval(NamedTuple):
    """An estimate and the ends of its interval, all in the unit of the data."""

    estimate: float
    low: float
    high: float


def t_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of independent values, (n,), with its Student t interval; of differences: the paired one.

    Equal values give an interval of width zero. Raises ArgumentError below two values or when one is not finite.
    Source: textbook; used wherever the book compares seeds.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) < 2 or not np.isfinite(data).all():
        raise ArgumentError(f"values must be at least two finite numbers, got {data!r}")
    with warnings.catch_warnings():  # SciPy warns of nearly equal values, whose interval is what is wanted
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = stats.ttest_1samp(data, 0.0).confidence_interval(confidence)
    return Interval(float(data.mean()), float(low), float(high))


def median_interval(values: ArrayLike) -> Interval:
    """Return the median of independent values, (n,), with its distribution-free interval; of differences: sign test.

    The ends are order statistics, so that skewed values
    widen it and nothing is assumed of their law. NaN ends below six values, which hold no 95% interval.
    Raises ArgumentError for no value or one that is not finite.
    Source: textbook (binomial interval of a quantile); used wherever ratios over seeds are skewed.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data) or not np.isfinite(data).all():
        raise ArgumentError(f"values must be finite numbers, at least one, got {data!r}")
    padded = np.append(np.sort(data), NO_INTERVAL)
    low, high = padded[list(_median_ranks(len(data)))]
    return Interval(float(np.median(data)), float(low), float(high))


@cache
def _median_ranks(count: int) -> tuple[int, int]:
    """Return the ranks, from 0, of the order statistics that end a median's interval; `count` where there is none."""
    ranks = np.arange(count, dtype=np.float64)
    ends: Any = stats.quantile_test(ranks, q=float(np.median(ranks)), p=0.5).confidence_interval(CONFIDENCE)
    low, high = (int(end) if np.isfinite(end) else count for end in (ends.low, ends.high))
    return low, high


def spearman_interval(
    x: ArrayLike,
    y: ArrayLike,
    *,
    seed: int,
    resamples: int = 2000,
    blocks: ArrayLike | None = None,
) -> Interval:
    """Return Spearman's rank correlation of paired values with a seeded percentile-bootstrap interval.

    Parameters
    ----------
    x, y
        Paired values, (n,) each, n >= 5.
    seed
        Of the resampled pairs. A resample of one repeated value counts as uncorrelated.
    resamples
        Number of resamples.
    blocks
        Labels, (n,), of blocks of one size that are resampled whole, for pairs that share what their block shares.

    Raises ArgumentError when lengths differ, fewer than five pairs are given, or blocks differ in size.
    Source: textbook; used for the heads of real models.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 5:
        raise ArgumentError(f"x and y must have equal shapes (n,) with n >= 5, got {first.shape} and {second.shape}")
    members = _members(np.arange(len(first)) if blocks is None else np.asarray(blocks))  # (blocks, pairs of each)

    def statistic(chosen: NDArray[Any], axis: int = -1) -> NDArray[Any]:
        places = members[np.moveaxis(chosen, axis, -1)].reshape(*chosen.shape[:-1], -1)
        return _rank_correlation(first[places], second[places])

    resampled = stats.bootstrap(
        (np.arange(len(members)),),
        statistic,
        n_resamples=resamples,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=seed,
    )
    low, high = resampled.confidence_interval
    return Interval(float(stats.spearmanr(first, second).statistic), float(low), float(high))


def _rank_correlation(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """Return Spearman's correlation along the last axis; `stats.spearmanr` takes one pair of samples at a time."""
    ranks = [stats.rankdata(values, axis=-1) - (x.shape[-1] + 1) / 2 for values in (x, y)]
    size = np.sqrt((ranks[0] ** 2).sum(-1) * (ranks[1] ** 2).sum(-1))
    return np.asarray((ranks[0] * ranks[1]).sum(-1) / np.where(size > 0, size, 1))


def _members(blocks: NDArray[Any]) -> NDArray[np.int64]:
    """Return the places of each block, (blocks, size); ArgumentError unless all blocks have one size."""
    names, sizes = np.unique(blocks, return_counts=True)
    if len(set(sizes.tolist())) > 1:
        raise ArgumentError(f"blocks must have one size, got sizes {sorted(set(sizes.tolist()))}")
    return np.stack([np.flatnonzero(blocks == name) for name in names])


def dose_correlation(doses: ArrayLike, responses: ArrayLike) -> tuple[float, float, list[float]]:
    """Return the mean over seeds of the rank correlation of doses and responses, its p-value, and that of each seed.

    doses, responses: (seeds, doses). The two-sided p-value is exact: doses change places in all seeds at once, because
    the same dose at three seeds is not three independent doses.
    """
    first, second = (stats.rankdata(np.asarray(table, dtype=np.float64), axis=1) for table in (doses, responses))
    first, second = (ranks - ranks.mean(1, keepdims=True) for ranks in (first, second))
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))  # (seeds,)
    of_seed = (first * second).sum(1) / scale
    orders = np.array(list(permutations(range(first.shape[1]))))  # (orders, doses)
    null = np.einsum("sok,sk,s->o", first[:, orders], second, 1 / scale) / len(scale)  # (orders,)
    extreme = np.abs(null) >= abs(of_seed.mean()) - 1e-9
    return float(of_seed.mean()), float(extreme.mean()), of_seed.tolist()


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return the p-values, (n,), after Holm's correction for n comparisons, in the order given; at most 1.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    adjusted = np.empty_like(given)
    adjusted[order] = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)).clip(max=1)
    return adjusted


def mean_interval(values: Sequence[float]) -> Interval:
    """Return `t_interval`, and below two values their mean alone: the ends of the interval are NaN."""
    if len(values) < 2:
        return Interval(float(np.mean(values)) if len(values) else NO_INTERVAL, NO_INTERVAL, NO_INTERVAL)
    return t_interval(values)


def correlations(
    table: pd.DataFrame,
    target: str,
    quantities: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
    blocks: str | None = None,
) -> pd.DataFrame:
    """Return Spearman's correlation of each quantity with the target over heads, with its bootstrap interval.

    Heads of one model share a training and a text, so the interval says nothing of other models.

    Parameters
    ----------
    table
        One row per head.
    target, quantities
        Columns of it.
    seed, resamples
        As for `spearman_interval`.
    blocks
        A column, such as "layer", whose groups are resampled whole; None resamples single heads.

    Returns
    -------
    DataFrame
        Columns quantity, correlation, low, high.

    Raises as `spearman_interval` does.
    """
    whole = None if blocks is None else table[blocks]
    rows = []
    for name in quantities:
        interval = spearman_interval(table[name], table[target], seed=seed, resamples=resamples, blocks=whole)
        rows.append({"quantity": name, "correlation": interval.estimate, "low": interval.low, "high": interval.high})
    return pd.DataFrame(rows)


def total_variation(first: ArrayLike, second: ArrayLike) -> float:
    """Return ½ Σ |p − q| between two profiles, (n,) each, non-negative, divided by their sums: 0 equal, 1 disjoint.

    Raises ShapeError when they differ in shape, ArgumentError for a negative value or a sum of 0.
    """
    profiles = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    if profiles[0].shape != profiles[1].shape or profiles[0].ndim != 1:
        raise ShapeError(f"profiles must have equal shapes (n,), got {profiles[0].shape} and {profiles[1].shape}")
    for profile in profiles:
        if not (profile >= 0).all() or not profile.sum() > 0:
            raise ArgumentError(f"profile must hold values >= 0, not all of them 0, got the sum {profile.sum():g}")
    return float(np.abs(profiles[0] / profiles[0].sum() - profiles[1] / profiles[1].sum()).sum() / 2)


def bin_middles(location: pd.Series, bins: int) -> NDArray[Any]:
    """Return the middles of the `bins` >= 1 equal bins of (0, 1] in which the locations lie."""
    check_integer("bins", bins, at_least=1)
    place = np.minimum((location.to_numpy(float) * bins - 1e-9).astype(int), bins - 1)
    middles: NDArray[Any] = (place + 0.5) / bins
    return middles


def over_seeds(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Return the mean of each group with its 95% t interval (NaN for one row): columns `by`, estimate, low, high."""
    rows = [
        dict(zip(by, keys, strict=True)) | mean_interval(values.tolist())._asdict()
        for keys, values in table.groupby(list(by), sort=False)[value]
    ]
    return pd.DataFrame(rows, columns=[*by, "estimate", "low", "high"])


intervals = over_seeds  # over anything else that repeats: draws, prompts, heads


def median_intervals(table: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Return the median of each group with its `median_interval`: columns of `by`, then estimate, low, high."""
    groups = table.groupby(list(by), sort=False)[column]
    rows = [dict(zip(by, keys, strict=True)) | median_interval(values)._asdict() for keys, values in groups]
    return pd.DataFrame(rows)


def quartiles(table: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Return the median and quartiles over the rows of each group: columns of `by`, then low, median, high."""
    groups = table.groupby(list(by))[column].quantile(np.array([0.25, 0.5, 0.75])).unstack()
    return groups.set_axis(["low", "median", "high"], axis=1).reset_index()

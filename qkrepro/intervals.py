"""Intervals for means, paired differences and rank correlations: thin calls of SciPy with this book's conventions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from qkrepro.errors import ArgumentError


class Interval(NamedTuple):
    """An estimate and the ends of its interval, all in the unit of the data."""

    estimate: float
    low: float
    high: float


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent values, (n,), with its Student t interval; of paired differences: the paired t interval.

    Equal values give an interval of width zero. Raises ArgumentError below two values or when one is not finite.
    Source: textbook; used wherever the book compares seeds.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) < 2 or not np.isfinite(data).all():
        raise ArgumentError(f"values is {data!r}; allowed: at least two finite numbers")
    mean, error = float(data.mean()), float(stats.sem(data))
    half = float(stats.t.ppf((1 + confidence) / 2, len(data) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def spearman_interval(
    x: ArrayLike, y: ArrayLike, *, seed: int, resamples: int = 2000, confidence: float = 0.95
) -> Interval:
    """Spearman rank correlation of paired values, (n,) and (n,), with a seeded percentile-bootstrap interval.

    Raises ArgumentError when lengths differ or fewer than five pairs are given.
    Source: textbook; used for the heads of real models.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 5:
        raise ArgumentError(f"x and y have shapes {first.shape} and {second.shape}; allowed: two equal (n,), n >= 5")
    draws = np.random.default_rng(seed).integers(0, len(first), size=(resamples, len(first)))
    ranks = [stats.rankdata(data[draws], axis=1) - (len(first) + 1) / 2 for data in (first, second)]
    with np.errstate(invalid="ignore"):  # a resample of one repeated value has no correlation
        values = (ranks[0] * ranks[1]).sum(1) / np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    low, high = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(stats.spearmanr(first, second).statistic), float(low), float(high))

"""Learning from different starts of W_QK: who is behind, and does the loss rest on a plateau?

A plateau, by our criterion: a stretch of training in which the loss falls at less than a given share of the rate that
it reaches later. A curve that only slows down has none. Source: book, "Plateaus".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from qkrepro.errors import ArgumentError, ShapeError, check_number

STARTS = ("xavier", "collapsed", "uniform", "concentrated")
JUDGED = ("xavier", "collapsed", "concentrated")  # those that the rule of the verdict compares
REFERENCE = "xavier"


class Plateau(NamedTuple):
    """The longest plateau of a learning curve, in updates; length 0 and NaN where there is none."""

    length: float
    begin: float
    loss: float  # nats, where it begins
    slowest: float  # least ratio of a rate to the greatest later one; at least 1 for a curve that only slows down


def start_name(gain: float, mean: float | None, deviation: float | None) -> str:
    """Which start a run's start_gain, start_mean and start_deviation ask for.

    xavier, collapsed (larger: dispersed eigenvalues, low entropy), uniform (near zero: attention even, tokens alike),
    concentrated (a chosen mean, no deviation). Raises ArgumentError for another.
    """
    if mean is None or pd.isna(mean):
        return "xavier" if gain == 1 else "collapsed" if gain > 1 else "uniform"
    if deviation != 0 or mean == 0:
        raise ArgumentError(f"start has mean {mean!r} and deviation {deviation!r}; allowed: a mean alone, not 0")
    return "concentrated"


def named_starts(table: pd.DataFrame) -> pd.DataFrame:
    """The table of runs or evaluations with a column `start`."""
    entries = zip(table["start_gain"], table["start_mean"], table["start_deviation"], strict=True)
    names = [start_name(*entry) for entry in entries]
    return table.assign(start=pd.Series(names, index=table.index, dtype=object))


def start_table(curves: pd.DataFrame) -> pd.DataFrame:
    """One row a run: start, seed, and what the first half of its training was like.

    curves: start, seed, update, train_loss, valid_loss, valid_entropy. early_loss is the mean training loss over the
    updates of the first half (each row of train_loss is a mean over the updates since the row before); early_entropy
    the mean attention entropy of the evaluations in it; first_entropy and last_entropy those at both ends; last_loss
    the last validation loss. Losses nats a token, entropies nats. Raises ArgumentError for a run without an evaluation
    in the first half of its training.
    """
    rows = []
    for (start, seed), run in curves.groupby(["start", "seed"], sort=False):
        run = run.sort_values("update")
        early = run[run["update"] <= run["update"].max() / 2]
        since = early["update"].diff().iloc[1:].to_numpy(float)  # updates that each row of train_loss is a mean over
        if not since.size:
            raise ArgumentError(
                f"curves of start {start}, seed {seed} have no evaluation in the first half; allowed: some"
            )
        entropy = run["valid_entropy"].to_numpy(float)
        row: dict[str, Any] = {"start": start, "seed": seed}
        row |= {"early_loss": float(np.average(early["train_loss"].iloc[1:].to_numpy(float), weights=since))}
        row |= {"early_entropy": float(early["valid_entropy"].mean()), "first_entropy": entropy[0]}
        rows.append(row | {"last_entropy": entropy[-1], "last_loss": float(run["valid_loss"].iloc[-1])})
    columns = ["start", "seed", "early_loss", "early_entropy", "first_entropy", "last_entropy", "last_loss"]
    return pd.DataFrame(rows, columns=columns)


def complete_seeds(starts: pd.DataFrame, needed: Sequence[str] = JUDGED) -> pd.DataFrame:
    """The rows of the seeds for which every needed start is there: what a paired comparison may use."""
    whole = starts.groupby("seed")["start"].transform(lambda names: set(needed) <= set(names))
    return starts[whole.astype(bool)].reset_index(drop=True)


def gaps_to_reference(curves: pd.DataFrame, column: str, keys: Sequence[str] = ("seed", "update")) -> pd.DataFrame:
    """Differences to the Xavier start of the same seed (and update): start, keys, `column`, difference."""
    base = curves[curves["start"] == REFERENCE].set_index(list(keys))[column].rename("reference")
    rows = curves[curves["start"] != REFERENCE].join(base, on=list(keys), how="inner")
    rows = rows.assign(difference=(rows[column] - rows["reference"]).astype(float))
    return rows[["start", *keys, column, "difference"]].reset_index(drop=True)


def longest_plateau(
    update: ArrayLike, loss: ArrayLike, *, window: float, share: float = 0.5, least_fall: float = 0.02
) -> Plateau:
    """The longest plateau of a learning curve by the criterion of this module.

    update, loss: (n,), evaluations in order. Rates are falls of the loss over the shortest span of evaluations that
    lasts at least `window` updates. A span is part of a plateau when its rate is below `share` of the greatest rate of
    a span that begins where it ends or later, and the loss there falls by at least `least_fall` nats.
    Raises ShapeError for other shapes, ArgumentError for updates that do not rise or arguments that are not positive.
    """
    time, level = np.asarray(update, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if time.ndim != 1 or time.shape != level.shape:
        raise ShapeError(f"update and loss have shapes {time.shape} and {level.shape}; allowed: two equal (n,)")
    if not (np.diff(time) > 0).all():
        raise ArgumentError("update does not rise; allowed: evaluations in order")
    for name, value in (("window", window), ("share", share), ("least_fall", least_fall)):
        check_number(name, value, above=0)
    ends = np.searchsorted(time, time + window)
    spans = [(first, last) for first, last in enumerate(ends) if last < len(time)]
    fall = {span: level[span[0]] - level[span[1]] for span in spans}
    rate = {span: fall[span] / (time[span[1]] - time[span[0]]) for span in spans}
    slow, slowest = np.zeros(len(time) - 1 if len(time) else 0, dtype=bool), np.inf
    for span in spans:
        later = [other for other in spans if other[0] >= span[1] and fall[other] >= least_fall]
        if later:
            ratio = rate[span] / max(rate[other] for other in later)
            slowest = min(slowest, ratio)
            slow[span[0] : span[1]] |= ratio < share
    return _longest(time, level, slow, float(slowest) if np.isfinite(slowest) else float("nan"))


def plateau_table(curves: pd.DataFrame, **criterion: float) -> pd.DataFrame:
    """The longest plateau of the validation loss of each run: start, seed, length, begin, loss, slowest.

    curves: start, seed, update, valid_loss. criterion: arguments of `longest_plateau`.
    """
    rows = []
    for (start, seed), run in curves.groupby(["start", "seed"], sort=False):
        run = run.sort_values("update")
        found = longest_plateau(run["update"].to_numpy(float), run["valid_loss"].to_numpy(float), **criterion)
        rows.append({"start": start, "seed": seed} | found._asdict())
    return pd.DataFrame(rows, columns=["start", "seed", *Plateau._fields])


def _longest(time: Any, level: Any, slow: Any, slowest: float) -> Plateau:
    """The longest run of slow steps; step i leads from evaluation i to i + 1."""
    best, begin = Plateau(0.0, float("nan"), float("nan"), slowest), None
    for step, marked in enumerate([*slow, False]):
        if marked and begin is None:
            begin = step
        elif not marked and begin is not None:
            if time[step] - time[begin] > best.length:
                best = Plateau(float(time[step] - time[begin]), float(time[begin]), float(level[begin]), slowest)
            begin = None
    return best

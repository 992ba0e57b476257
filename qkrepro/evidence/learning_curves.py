"""What a learning curve says: whether it rests on a plateau, and how many updates it takes to a loss.

A plateau, by our criterion: a stretch of training in which the loss falls at less than a given share of the rate that
it reaches later. A curve that only slows down has none. Source: book, "Plateaus".
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from qkrepro.errors import ArgumentError, ShapeError, check_number


class Plateau(NamedTuple):
    """The longest plateau of a learning curve, in updates; length 0 and NaN where there is none."""

    length: float
    begin: float
    loss: float  # nats, where it begins
    slowest: float  # least ratio of a rate to the greatest later one; at least 1 for a curve that only slows down


def longest_plateau(
    update: ArrayLike, loss: ArrayLike, *, window: float, share: float = 0.5, least_fall: float = 0.02
) -> Plateau:
    """Return the longest plateau of a learning curve by the criterion of this module.

    update, loss: (n,), evaluations in order. Rates are falls of the loss over the shortest span of evaluations that
    lasts at least `window` updates. A span is part of a plateau when its rate is below `share` of the greatest rate of
    a span that begins where it ends or later, and the loss there falls by at least `least_fall` nats.
    Raises ShapeError for other shapes, ArgumentError for updates that do not rise or arguments that are not positive.
    """
    time, level = np.asarray(update, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if time.ndim != 1 or time.shape != level.shape:
        raise ShapeError(f"update and loss must have one shape (n,), got {time.shape} and {level.shape}")
    if not (np.diff(time) > 0).all():
        raise ArgumentError(f"update must rise, got {time.tolist()}")
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


def updates_to(curve: pd.DataFrame, loss: float) -> float:
    """Return the updates until the validation loss is `loss`, linear between evaluations.

    curve: update, valid_loss, one row per evaluation. A loss that is never reached gives the last update plus one
    interval between evaluations.
    """
    update, values = curve["update"].to_numpy(float), curve["valid_loss"].to_numpy(float)
    below = np.flatnonzero(values <= loss)
    if not len(below):
        return float(2 * update[-1] - update[-2])
    last = below[0]
    if last == 0:
        return float(update[0])
    share = (values[last - 1] - loss) / (values[last - 1] - values[last])
    return float(update[last - 1] + share * (update[last] - update[last - 1]))


def _longest(time: Any, level: Any, slow: Any, slowest: float) -> Plateau:
    """Return the longest run of slow steps; step i leads from evaluation i to i + 1."""
    best, begin = Plateau(0.0, float("nan"), float("nan"), slowest), None
    for step, marked in enumerate([*slow, False]):
        if marked and begin is None:
            begin = step
        elif not marked and begin is not None:
            if time[step] - time[begin] > best.length:
                best = Plateau(float(time[step] - time[begin]), float(time[begin]), float(level[begin]), slowest)
            begin = None
    return best

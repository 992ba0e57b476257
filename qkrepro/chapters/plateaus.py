"""Learning from different starts of W_QK: who is behind, and does the loss rest on a plateau?

A plateau, by our criterion: a stretch of training in which the loss falls at less than a given share of the rate that
it reaches later. A curve that only slows down has none. Source: book, "Plateaus".
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from qkrepro.errors import ArgumentError, ShapeError, check_number
from qkrepro.evidence.claims import claims_judged_by
from qkrepro.evidence.paired_runs import FEWEST_SEEDS
from qkrepro.evidence.run_figures import Style, label_empty
from qkrepro.evidence.verdicts import Tables, Verdict, share_verdict
from qkrepro.evidence.wording import change
from qkrepro.theory.statistics import mean_interval, t_interval
from qkrepro.training.tables import NOT_RUN

STARTS = ("xavier", "collapsed", "uniform", "concentrated")
JUDGED = ("xavier", "collapsed", "concentrated")  # those that the rule of the verdict compares
REFERENCE = "xavier"
START_STYLES: Mapping[str, Style] = {
    "xavier": {"label": "Xavier", "color": "0.25"},
    "collapsed": {"label": "dispersed (entropy-collapsed)", "color": "C3", "linestyle": "--"},
    "uniform": {"label": "near zero (rank-collapsed)", "color": "C2", "linestyle": "-."},
    "concentrated": {"label": "concentrated (identity)", "color": "C0"},
}
LOW = ("collapsed", "concentrated")  # the starts whose entropy is low at update 0
START_NAMES = {
    "xavier": "Xavier",
    "collapsed": "dispersed",
    "uniform": "near zero",
    "concentrated": "concentrated",
}


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


def low_entropy_traps(tables: Tables) -> Verdict:
    """Table starts: start (xavier, collapsed, concentrated), seed, early_loss (nats a token, mean of the first half).

    Both other starts have lower attention entropy than xavier. The claim is that low entropy traps: reproduced when
    both learn slower than xavier, partly when one of them does.
    """
    wide = tables["starts"].pivot(index="seed", columns="start", values="early_loss")
    if len(wide) < FEWEST_SEEDS or not {"xavier", "collapsed", "concentrated"} <= set(wide.columns):
        return Verdict("not run", f"{len(wide)} seeds; {FEWEST_SEEDS} with all three starts are needed")
    gaps = {name: t_interval(wide[name] - wide["xavier"]) for name in ("collapsed", "concentrated")}
    because = "; ".join(f"{name} {gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" for name, gap in gaps.items())
    return share_verdict([gap.low > 0 for gap in gaps.values()], f"early loss against xavier: {because}")


def plot_entropy_against_loss(starts: pd.DataFrame, axis: Axes) -> None:
    """Early loss of each run against its early attention entropy, one marker a start; grey lines join a seed's runs.

    starts: start, seed, early_entropy, early_loss.
    """
    if starts.empty:
        return label_empty(axis)
    for _, runs in starts.sort_values("early_entropy").groupby("seed"):
        axis.plot(runs["early_entropy"], runs["early_loss"], color="0.8", linewidth=0.8, zorder=1)
    for (name, style), marker in zip(START_STYLES.items(), "osD^", strict=True):
        points = starts[starts["start"] == name]
        axis.plot(
            points["early_entropy"],
            points["early_loss"],
            marker,
            markersize=7,
            color=style["color"],
            label=style["label"],
        )
    axis.set(xlabel="attention entropy, mean of the first half, nats", ylabel="training loss, first half, nats")
    return None


def gap_text(gaps: pd.DataFrame, column: str = "difference") -> str:
    """Differences to the Xavier start, one clause a start: columns start, `column`, one row a seed."""
    names = [name for name in STARTS[1:] if name in set(gaps["start"])]
    told = [
        f"{START_NAMES[name]} {change(gaps.loc[gaps['start'] == name, column].tolist(), digits=3)}" for name in names
    ]
    return "; ".join(told) or NOT_RUN


def entropy_text(starts: pd.DataFrame) -> str:
    """Attention entropy of each start from the first to the last evaluation, nats, means over seeds."""
    told = []
    for name in (each for each in STARTS if each in set(starts["start"])):
        first, last = (
            float(starts.loc[starts["start"] == name, end].mean()) for end in ("first_entropy", "last_entropy")
        )
        told.append(f"{START_NAMES[name]} {first:.2f} to {last:.2f}")
    return "; ".join(told) or NOT_RUN


def disease_text(starts: pd.DataFrame) -> str:
    """Whether low entropy alone makes slow: which of the two other judged starts have less, and which learn slower.

    starts: start, seed, early_entropy, early_loss, of seeds that have them all; "not run" below three seeds. Less and
    slower: the paired 95% t interval of the difference lies below, above 0.
    """
    if starts["seed"].nunique() < FEWEST_SEEDS or not {REFERENCE, *LOW} <= set(starts["start"]):
        return NOT_RUN
    gaps = {name: gaps_to_reference(starts, name, ["seed"]) for name in ("early_entropy", "early_loss")}
    means = {
        name: {start: mean_interval(part["difference"].tolist()) for start, part in table.groupby("start")}
        for name, table in gaps.items()
    }
    low = [start for start in LOW if means["early_entropy"][start].high < 0]
    slow = [start for start in LOW if means["early_loss"][start].low > 0]
    told = f"less entropy than Xavier over the first half: {_list(low)}; slower than Xavier: {_list(slow)}"
    return (
        f"{told}. {'Low entropy and slow learning go together' if low == slow else 'Low entropy does not decide'} here"
    )


def plateau_text(plateaus: pd.DataFrame) -> str:
    """How many runs have a plateau, by start, and the longest: table of `plateau_table`."""
    if plateaus.empty:
        return NOT_RUN
    have = plateaus["length"] > 0
    if not have.any():
        return f"none of {len(plateaus)} runs has a plateau"
    counts = {name: have[plateaus["start"] == name] for name in STARTS}
    by_start = [f"{START_NAMES[name]} {each.sum()} of {len(each)}" for name, each in counts.items() if len(each)]
    longest: pd.Series = plateaus.sort_values("length", kind="stable").iloc[-1]
    return (
        f"{int(have.sum())} of {len(plateaus)} runs have a plateau ({', '.join(by_start)}); the longest lasts "
        f"{longest['length']:.0f} updates, from update {longest['begin']:.0f} at a loss of {longest['loss']:.2f} nats "
        f"({START_NAMES[str(longest['start'])]}, seed {longest['seed']})"
    )


def _list(names: Sequence[str]) -> str:
    return " and ".join(START_NAMES[name] for name in names) or "neither"


CLAIMS = claims_judged_by(low_entropy_traps)

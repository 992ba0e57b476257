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
from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.outcomes import interval_text
from qkrepro.evidence.paired_runs import FEWEST_SEEDS
from qkrepro.evidence.run_figures import Style
from qkrepro.evidence.style import COLOURS, INK, PALETTE
from qkrepro.theory.statistics import t_interval

READS = ("results/starts-reduced*",)  # what the notebook reads beside the package, relative to the checkout

JUDGED = ("xavier", "collapsed", "concentrated")  # those that the rule of the verdict compares
REFERENCE = "xavier"
SHARE = 0.5  # of a later rate, below which a stretch of learning is a plateau
LOW = ("collapsed", "concentrated")  # the starts whose entropy is low at update 0
START_NAMES = {"xavier": "Xavier", "collapsed": "dispersed", "uniform": "near zero", "concentrated": "concentrated"}
START_STYLES: Mapping[str, Style] = {
    "xavier": {"label": "Xavier", "color": COLOURS["baseline"]},
    "collapsed": {"label": "dispersed", "color": COLOURS["dispersed"], "linestyle": "--"},
    "uniform": {"label": "near zero", "color": PALETTE[4], "linestyle": "-."},
    "concentrated": {"label": "concentrated", "color": COLOURS["concentrated"]},
}


class Plateau(NamedTuple):
    """The longest plateau of a learning curve, in updates; length 0 and NaN where there is none."""

    length: float
    begin: float
    loss: float  # nats, where it begins
    slowest: float  # least ratio of a rate to the greatest later one; at least 1 for a curve that only slows down


def start_name(gain: float, mean: float | None, deviation: float | None) -> str:
    """Return which start a run's start_gain, start_mean and start_deviation ask for.

    xavier, collapsed (larger: dispersed eigenvalues, low entropy), uniform (near zero: attention even, tokens alike),
    concentrated (a chosen mean, no deviation). Raises ArgumentError for another.
    """
    if mean is None or pd.isna(mean):
        return "xavier" if gain == 1 else "collapsed" if gain > 1 else "uniform"
    if deviation != 0 or mean == 0:
        raise ArgumentError(f"start must have a mean other than 0 and no deviation, got {mean!r} and {deviation!r}")
    return "concentrated"


def named_starts(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of runs or evaluations with a column `start`."""
    entries = zip(table["start_gain"], table["start_mean"], table["start_deviation"], strict=True)
    names = [start_name(*entry) for entry in entries]
    return table.assign(start=pd.Series(names, index=table.index, dtype=object))


def start_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Return start, seed, and what the first half of its training was like, one row a run.

    curves: start, seed, update, train_loss, valid_loss, valid_entropy. early_loss is the mean training loss over the
    updates of the first half (a row of train_loss is a mean over the updates since the row before); early_entropy
    the mean attention entropy of the evaluations in it; first_entropy and last_entropy those at both ends; last_loss
    the last validation loss; late_loss the mean training loss after the warm-up (column `warmup`, updates), NaN for a
    run that ended within it. Losses nats a token, entropies nats. Raises ArgumentError for a run without an evaluation
    in the first half of its training.
    """
    rows = []
    for (start, seed), run in curves.groupby(["start", "seed"], sort=False):
        run = run.sort_values("update")
        early = run[run["update"] <= run["update"].max() / 2]
        since = early["update"].diff().iloc[1:].to_numpy(float)  # updates that a row of train_loss is a mean over
        if not since.size:
            raise ArgumentError(f"curves must have evaluations in the first half, got none for {start}, seed {seed}")
        entropy = run["valid_entropy"].to_numpy(float)
        row: dict[str, Any] = {"start": start, "seed": seed}
        row |= {"early_loss": float(np.average(early["train_loss"].iloc[1:].to_numpy(float), weights=since))}
        row |= {"early_entropy": float(early["valid_entropy"].mean()), "first_entropy": entropy[0]}
        late = run.assign(since=run["update"].diff())[run["update"] > run["warmup"]]
        late_loss = np.average(late["train_loss"], weights=late["since"]) if len(late) else np.nan
        row |= {"last_entropy": entropy[-1], "last_loss": float(run["valid_loss"].iloc[-1])}
        rows.append(row | {"late_loss": float(late_loss)})
    columns = ["early_loss", "early_entropy", "first_entropy", "last_entropy", "last_loss", "late_loss"]
    return pd.DataFrame(rows, columns=["start", "seed", *columns])


def complete_seeds(starts: pd.DataFrame, needed: Sequence[str] = JUDGED) -> pd.DataFrame:
    """Return the rows of the seeds for which every needed start is there: what a paired comparison may use."""
    whole = starts.groupby("seed")["start"].transform(lambda names: set(needed) <= set(names))
    return starts[whole.astype(bool)].reset_index(drop=True)


def gaps_to_reference(curves: pd.DataFrame, column: str, keys: Sequence[str] = ("seed", "update")) -> pd.DataFrame:
    """Return differences to the Xavier start of the same seed (and update): start, keys, `column`, difference."""
    base = curves[curves["start"] == REFERENCE].set_index(list(keys))[column].rename("reference")
    rows = curves[curves["start"] != REFERENCE].join(base, on=list(keys), how="inner")
    rows = rows.assign(difference=(rows[column] - rows["reference"]).astype(float))
    return rows[["start", *keys, column, "difference"]].reset_index(drop=True)


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


def plateau_table(curves: pd.DataFrame, **criterion: float) -> pd.DataFrame:
    """Return the longest plateau of the validation loss of every run: start, seed, length, begin, loss, slowest.

    curves: start, seed, update, valid_loss; those after the warm-up alone where the rule asks for it. criterion:
    arguments of `longest_plateau`.
    """
    rows = []
    for (start, seed), run in curves.groupby(["start", "seed"], sort=False):
        run = run.sort_values("update")
        plateau = longest_plateau(run["update"].to_numpy(float), run["valid_loss"].to_numpy(float), **criterion)
        rows.append({"start": start, "seed": seed} | plateau._asdict())
    return pd.DataFrame(rows, columns=["start", "seed", *Plateau._fields])


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


def low_entropy_traps_at(tables: Tables, share: float) -> Verdict:
    """Table plateaus: start, seed, slowest (after the warm-up); a run below `share` has a plateau."""
    table = tables["plateaus"]
    have = {start: runs["slowest"].astype(float) < share for start, runs in table.groupby("start")}
    runs = min((len(have.get(start, [])) for start in JUDGED), default=0)
    if runs < FEWEST_SEEDS:
        return Verdict("not run", f"{runs} seeds; {FEWEST_SEEDS} with all three starts are needed")
    counts = {start: int(have[start].sum()) for start in JUDGED}
    because = "runs with a plateau: " + ", ".join(
        f"{START_NAMES[start]} {count} of {len(have[start])}" for start, count in counts.items()
    )
    holds, of = (sum(values) for values in zip(*((counts[start], len(have[start])) for start in LOW), strict=True))
    trapped = [counts[start] > max(counts[REFERENCE], len(have[start]) / 2) for start in LOW]
    if any(trapped):
        return Verdict("reproduced" if all(trapped) else "partly", because, holds, of)
    return Verdict("not reproduced" if holds == 0 else "inconclusive", because, holds, of)


def low_entropy_traps(tables: Tables) -> Verdict:
    """Table plateaus, as `low_entropy_traps_at`, at the share of the definition."""
    return low_entropy_traps_at(tables, SHARE)


def low_entropy_slows(tables: Tables) -> Verdict:
    """Table starts: start (xavier, collapsed, concentrated), seed, late_loss (nats a token, mean after the warm-up)."""
    wide = tables["starts"].pivot(index="seed", columns="start", values="late_loss")
    if not set(JUDGED) <= set(wide.columns) or len(wide.dropna(subset=list(JUDGED))) < FEWEST_SEEDS:
        return Verdict("not run", f"{FEWEST_SEEDS} seeds with all three starts are needed")
    wide = wide.dropna(subset=list(JUDGED))
    gaps = {start: (wide[start] - wide[REFERENCE]).astype(float) for start in LOW}
    means = {start: t_interval(gap) for start, gap in gaps.items()}
    because = "; ".join(f"{START_NAMES[start]} {interval_text(mean)}" for start, mean in means.items())
    slow, fast = (
        [sign * mean.estimate > 0 and mean.low * mean.high > 0 for mean in means.values()] for sign in (1, -1)
    )
    outcome: Outcome = (
        "reproduced" if all(slow) else "partly" if any(slow) else "not reproduced" if any(fast) else "inconclusive"
    )
    holds = sum(int((gap > 0).sum()) for gap in gaps.values())
    return Verdict(outcome, f"loss after the warm-up against Xavier: {because}", holds, len(LOW) * len(wide))


def plot_starts(eigenvalues: Mapping[str, np.ndarray], axes: Sequence[Axes]) -> None:
    """Draw the eigenvalues of every start in the complex plane, a panel a start; each panel has its own scale."""
    for axis, (name, values) in zip(axes, eigenvalues.items(), strict=True):
        reach = 1.15 * max(float(np.abs(values).max()), 1e-3)
        for line in (axis.axhline, axis.axvline):
            line(0, color=INK, linewidth=0.6, zorder=0)
        axis.scatter(
            values.real,
            values.imag,
            s=12 if np.ptp(values.real) else 50,
            color=START_STYLES[name]["color"],
            linewidths=0,
        )
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", yticks=[], xlabel="Re λ")
        axis.set_title(START_NAMES[name], color=START_STYLES[name]["color"])
        axis.grid(False)
    axes[0].set_ylabel("Im λ")


def plot_entropy_against_loss(starts: pd.DataFrame, axis: Axes) -> None:
    """Draw the late loss of runs against their early attention entropy; grey lines join the runs of a seed.

    starts: start, seed, early_entropy, late_loss.
    """
    for _, runs in starts.sort_values("early_entropy").groupby("seed"):
        axis.plot(runs["early_entropy"], runs["late_loss"], color=INK, alpha=0.5, linewidth=0.8, zorder=1)
    for name, marker in zip(START_STYLES, "osD^", strict=True):
        points = starts[starts["start"] == name]
        axis.plot(points["early_entropy"], points["late_loss"], marker, markersize=8, color=START_STYLES[name]["color"])
        place = (points["early_entropy"].max(), points["late_loss"].max())
        where: dict[str, Any] = {"xytext": (6, 6), "textcoords": "offset points", "color": START_STYLES[name]["color"]}
        axis.annotate(START_NAMES[name], place, **where)
    axis.set(xlabel="attention entropy, mean of the first half, nats", ylabel="training loss after the warm-up, nats")


CLAIMS = (
    Claim(
        name="low-entropy-traps",
        chapter="plateaus",
        provenance="paper",
        statement=(
            "Low attention entropy makes the learning more likely to be trapped in plateaus (one layer, one head, "
            "reduced vocabulary, 408 updates of which 200 are warm-up, three seeds; starts of low entropy: dispersed "
            "and concentrated eigenvalues)."
        ),
        rule=(
            "A run has a plateau when, after the warm-up, its validation loss falls for a while at less than half of a "
            "rate that it reaches later. Reproduced when for both starts of low entropy most runs have one, and more "
            "than with Xavier's; partly for one start; inconclusive when some run has one."
        ),
        refuted_by="no run from a start of low entropy has a plateau",
        tables=("plateaus",),
        judge=low_entropy_traps,
        quote="making the learning dynamics more likely to be trapped in plateaus",
        figure="fig-starts",
        threshold=Threshold(
            "share of the later rate below which a stretch is a plateau",
            SHARE,
            (0.3, 0.4, SHARE, 0.6, 0.7, 0.8, 0.9),
            low_entropy_traps_at,
        ),
    ),
    Claim(
        name="low-entropy-slows",
        chapter="plateaus",
        provenance="ours",
        statement=(
            "Starts of low attention entropy, dispersed and concentrated, learn more slowly than Xavier's (the same "
            "runs; the dispersed start has weights six times as large, so that the steps of Adam are six times "
            "smaller beside them)."
        ),
        rule=(
            "Mean training loss after the warm-up, difference to Xavier's of the same seed, paired 95% t interval "
            "above 0 for both starts; partly for one; inconclusive when both intervals contain 0."
        ),
        refuted_by="no interval above 0 and at least one below",
        tables=("starts",),
        judge=low_entropy_slows,
        figure="fig-starts-entropy",
    ),
)

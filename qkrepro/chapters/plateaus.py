"""Learning from different starts of attention: who is behind, and does the loss rest on a plateau?

First four starts that differ in size and entropy at once, then the five arms of results/PLAN-plateaus.md, which
separate entropy, dispersion and step. Source: book, "Plateaus".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from qkrepro.errors import ArgumentError
from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.learning_curves import Plateau, longest_plateau
from qkrepro.evidence.matched_starts import LOW_AGAINST_HIGH, MARGIN, judge_arms, judge_traps
from qkrepro.evidence.outcomes import interval_text
from qkrepro.evidence.paired_runs import FEWEST_SEEDS
from qkrepro.evidence.run_figures import Style
from qkrepro.evidence.style import COLOURS, INK, PALETTE
from qkrepro.theory.statistics import t_interval

# What the notebook reads beside the package, relative to the checkout
READS = ("results/starts-reduced*", "results/plateaus-anew*", "results/PLAN-plateaus.md")

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

ARM_STYLES: Mapping[str, Style] = {  # of results/PLAN-plateaus.md
    "xavier": START_STYLES["xavier"],
    "cold": {"label": "cold", "color": COLOURS["dispersed"], "linestyle": "--"},
    "concentrated": {"label": "concentrated", "color": COLOURS["concentrated"], "linestyle": "--"},
    "even": {"label": "even", "color": COLOURS["concentrated"]},
    "scaled": {"label": "scaled", "color": PALETTE[4], "linestyle": "-."},
}


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


def plot_entropy_against_updates(runs: pd.DataFrame, axis: Axes) -> None:
    """Draw the updates of runs to Xavier's losses, over Xavier's, against their entropy at update 0. runs: `anew`."""
    axis.axhline(1, color=INK, linewidth=1)
    for (name, style), marker in zip(ARM_STYLES.items(), "osD^v", strict=True):
        points = runs[runs["arm"] == name]
        ratios = np.exp(points["log updates"].astype(float))
        axis.plot(
            points["entropy"], ratios, marker, markersize=6, color=style["color"], alpha=0.8, label=style["label"]
        )
    axis.set(xlabel="entropy at update 0, nats", xlim=(0, 4))


FAIR = "one layer, one head, 2,048 words, 500 updates of which 100 are warm-up, three seeds; a plan before the runs"
WORDS = (
    "Difference above 0 with a p-value below 0.05 after Holm's correction; partly when its 95% paired t interval is "
    "inside the margin of 0.1; inconclusive when the interval leaves the margin and nothing is decided; not a test "
    "when entropies or norms at update 0 are not as planned."
)


def low_entropy_traps_fairly(tables: Tables, margin: float = MARGIN) -> Verdict:
    """Table anew: arm, seed, plateau (share of the updates after the warm-up), entropy, frobenius."""
    return judge_traps(tables, margin)


def _fair_claim(name: str, statement: str, arm: str, against: str) -> Claim:
    def rule(tables: Tables, margin: float = MARGIN) -> Verdict:
        return judge_arms(tables, margin, arm=arm, against=against)

    return Claim(
        name=name,
        chapter="plateaus",
        provenance="ours",
        statement=f"{statement}.",
        conditions=FAIR,
        rule=f"Mean log ratio of updates to two losses of Xavier's after the warm-up, {arm} minus {against}. {WORDS}",
        refuted_by="a difference below 0 with p < 0.05 after Holm, or an interval inside the margin without such a p",
        tables=("anew",),
        judge=rule,
        figure="fig-plateaus-comparisons",
        threshold=Threshold("margin of the log ratio of updates", MARGIN, (0.05, MARGIN, 0.2), rule),
    )


CLAIMS = (
    Claim(
        name="low-entropy-trapped-first-runs",
        chapter="plateaus",
        provenance="ours",
        statement="In the first runs low attention entropy traps the learning in plateaus more often.",
        conditions=(
            "one layer, one head, reduced vocabulary, 408 updates of which 200 are warm-up, three "
            "seeds; starts of low entropy: dispersed and concentrated eigenvalues"
        ),
        rule=(
            "A run has a plateau when, after the warm-up, its validation loss falls for a while at less than half of a "
            "rate that it reaches later. Reproduced when for both starts of low entropy most runs have one, and more "
            "than with Xavier's; partly for one start; inconclusive when some run has one."
        ),
        refuted_by="no run from a start of low entropy has a plateau",
        tables=("plateaus",),
        judge=low_entropy_traps,
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
        statement="Starts of low attention entropy, dispersed and concentrated, learn more slowly than Xavier's.",
        conditions=(
            "the same runs; the dispersed start has weights six times as large, so that the steps of Adam are six times"
            " smaller beside them"
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
    _fair_claim(
        "low-entropy-slows-equal-weights",
        "With the same weights, a softmax so cold that attention starts at 0.5 nats of entropy makes learning slower",
        *LOW_AGAINST_HIGH[0],
    ),
    _fair_claim(
        "low-entropy-slows-concentrated",
        "With W = 0.5 I, attention that starts at 0.5 nats of entropy makes learning slower than even attention does",
        *LOW_AGAINST_HIGH[1],
    ),
    _fair_claim(
        "dispersion-slows-equal-entropy",
        "At 0.5 nats of entropy and equal norms, a start with dispersed eigenvalues is slower than one without",
        "cold",
        "concentrated",
    ),
    _fair_claim(
        "small-steps-slow",
        "With the same attention at update 0, steps four times smaller beside w_q and w_k make learning slower",
        "scaled",
        "cold",
    ),
    Claim(
        name="low-entropy-traps",
        chapter="plateaus",
        provenance="paper",
        statement="Low attention entropy makes the learning more likely to be trapped in plateaus.",
        conditions=FAIR,
        rule=(
            "Longest plateau after the warm-up as a share of the updates after it, cold minus xavier and concentrated "
            f"minus even. {WORDS} Reproduced when both are, partly when one is; counted are runs with a plateau."
        ),
        refuted_by="for both, a difference below 0 with p < 0.05 after Holm, or an interval inside the margin",
        tables=("anew",),
        judge=low_entropy_traps_fairly,
        quote="making the learning dynamics more likely to be trapped in plateaus",
        figure="fig-plateaus-anew",
        threshold=Threshold("margin of the share on a plateau", MARGIN, (0.05, MARGIN, 0.2), low_entropy_traps_fairly),
    ),
)

"""Runs in pairs: means over seeds, and differences to the baseline of the same seed.

Source: book, "LocAteR"; intervals are those of `qkrepro.theory.statistics`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from qkrepro.evidence.wording import passes
from qkrepro.theory.statistics import NO_INTERVAL, Interval, mean_interval

TRAINING = ("best_epoch", "last_epoch", "corpus_words")  # passes until the best, until the last evaluation; words
FEWEST_SEEDS = 3
FRACTIONS = (0.25, 0.5, 1.0)  # of the baseline's budget, after which its losses are to be reached


def seed_means(table: pd.DataFrame, column: str, *, log: bool = False) -> pd.DataFrame:
    """Return the mean over the seeds of a kappa with its 95% t interval, at every epoch that all of them reached.

    table: seed, kappa, epoch and `column`, one row per evaluation. log: mean and interval of the logarithm, given back
    as values (a geometric mean). Returns kappa, epoch, estimate, low, high, seeds; low and high are NaN for one seed.
    """
    rows = []
    for kappa, group in table.groupby("kappa"):
        seeds = group["seed"].nunique()
        for epoch, values in group.groupby("epoch")[column]:
            if len(values) == seeds:
                logged = np.log(values) if log else values
                interval = [float(np.exp(end)) if log else end for end in mean_interval(logged.tolist())]
                rows.append([kappa, epoch, *interval, seeds])
    return pd.DataFrame(rows, columns=["kappa", "epoch", *Interval._fields, "seeds"])


def nearest_epochs(table: pd.DataFrame, wanted: Sequence[float]) -> pd.DataFrame:
    """Return the rows of the evaluations nearest to these epochs; an epoch that was not reached has no row."""
    epochs = np.unique(table["epoch"].to_numpy(float))
    step = np.diff(epochs).max() if len(epochs) > 1 else np.inf
    near = [epochs[np.abs(epochs - target).argmin()] for target in wanted] if len(epochs) else []
    kept = [epoch for epoch, target in zip(near, wanted, strict=False) if abs(epoch - target) <= step / 2]
    return table[table["epoch"].isin(kept)]


def with_arms(table: pd.DataFrame, kappa: float) -> pd.DataFrame:
    """Return the runs with this kappa and their baselines, with column arm ("baseline", "locater"), by arm and seed.

    table: seed, kappa, one row per run; a run without its partner of the same seed is left out.
    """
    chosen = table[table["kappa"].isin([0.0, kappa])]
    partners = chosen.groupby("seed")["kappa"].transform("nunique") == 2
    arm = np.where(chosen["kappa"] == 0, "baseline", "locater")
    return chosen.assign(arm=arm)[partners.astype(bool)].sort_values(["arm", "seed"]).reset_index(drop=True)


def paired_curves(curves: pd.DataFrame, column: str, *, percent: bool = False) -> pd.DataFrame:
    """Return regularised minus baseline (kappa 0) of the same seed at the same update.

    curves: as in RunTables, all runs of one shape. percent: the difference over the baseline's value, in per cent.
    Returns seed, kappa, update, epoch, difference; evaluations that only one of the two runs has are left out.
    """
    base = curves[curves["kappa"] == 0].set_index(["seed", "update"])[column].rename("baseline")
    rows = curves[curves["kappa"] != 0].join(base, on=["seed", "update"], how="inner")
    difference = rows[column] - rows["baseline"]
    rows = rows.assign(difference=100 * difference / rows["baseline"] if percent else difference)
    return rows[["seed", "kappa", "update", "epoch", "difference"]].reset_index(drop=True)


def updates_to(update: ArrayLike, loss: ArrayLike, level: float) -> float:
    """Return after how many updates a loss first reaches a level, linear between evaluations; NaN if it never does."""
    time, value = np.asarray(update, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    below = np.flatnonzero(value <= level)
    if not len(below):
        return float("nan")
    last = below[0]
    if last == 0:
        return float(time[0])
    share = (value[last - 1] - level) / (value[last - 1] - value[last])
    return float(time[last - 1] + share * (time[last] - time[last - 1]))


def pace(curves: pd.DataFrame, kappa: float) -> pd.DataFrame:
    """Return how soon the arm has the validation losses of its baseline: seed, fraction, baseline, locater, reached.

    baseline, locater: updates until the loss that the baseline has after each of FRACTIONS of its budget. An arm that
    does not reach it is entered with its budget and one interval between evaluations more; `reached` is 0 there.
    """
    rows = []
    for seed, runs in curves[curves["kappa"].isin([0.0, kappa])].sort_values("update").groupby("seed"):
        arms = {value: run[["update", "valid_loss"]].to_numpy(float).T for value, run in runs.groupby("kappa")}
        if len(arms) == 2:
            (time, loss), (other, other_loss) = arms[0.0], arms[kappa]
            late = other[-1] + np.diff(other).max()
            for fraction in FRACTIONS:
                level = float(np.interp(fraction * time[-1], time, loss))
                own, needed = updates_to(time, loss, level), updates_to(other, other_loss, level)
                rows.append((seed, fraction, own, late if np.isnan(needed) else needed, int(not np.isnan(needed))))
    return pd.DataFrame(rows, columns=["seed", "fraction", "baseline", "locater", "reached"])


def chosen_kappa(summary: pd.DataFrame) -> float:
    """Return the kappa > 0 of least validation perplexity among these runs of one seed; NaN without one."""
    rows = summary[summary["kappa"] > 0].sort_values("valid_perplexity")
    return float(rows["kappa"].iloc[0]) if len(rows) else NO_INTERVAL


def training_length(table: pd.DataFrame) -> str:
    """Return how long the runs of a table learned, and over how many words.

    Columns best_epoch, last_epoch (of an evaluation) and corpus_words. A run that was best at its last evaluation may
    not be at its best yet: the sentence counts them.
    """
    words = ", ".join(f"{number:,}" for number in sorted(set(table["corpus_words"])))
    length = passes(table["best_epoch"].min(), table["best_epoch"].max())
    ended = int((table["best_epoch"] == table["last_epoch"]).sum())
    return f"best after {length} over the text, in {ended} of {len(table)} runs at the last evaluation; {words} words"

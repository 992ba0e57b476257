"""Runs in pairs: differences to the baseline of the same seed, which records are judged, and the verdict on pairs.

Source: book, "LocAteR"; intervals are those of `qkrepro.theory.statistics`.
"""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd

from qkrepro.evidence.claims import Verdict
from qkrepro.evidence.wording import passes
from qkrepro.theory.statistics import NO_INTERVAL, Interval, mean_interval, t_interval
from qkrepro.training.tables import RunTables

TRAINING = ("best_epoch", "last_epoch", "corpus_words")  # passes until the best, until the last evaluation; words
Tables = TypeVar("Tables", bound=RunTables)
FEWEST_SEEDS = 3


def seed_means(table: pd.DataFrame, column: str, by: Sequence[str] = ("kappa",), *, log: bool = False) -> pd.DataFrame:
    """Mean over seeds with its 95% t interval, at each epoch that all seeds of its group reached.

    table: seed, epoch, columns `by` and `column`; one row an evaluation. log: mean and interval of the logarithm, given
    back as values (a geometric mean). Returns columns of `by`, epoch, estimate, low, high, seeds; low and high are NaN
    for one seed.
    """
    rows = []
    for keys, group in table.groupby(list(by), sort=True):
        seeds = group["seed"].nunique()
        for epoch, values in group.groupby("epoch")[column]:
            if len(values) == seeds:
                logged = np.log(values) if log else values
                interval = [float(np.exp(end)) if log else end for end in mean_interval(logged.tolist())]
                named: dict[Hashable, object] = dict(zip(by, keys, strict=True))
                rows.append(named | {"epoch": epoch} | dict(zip(Interval._fields, interval, strict=True)))
                rows[-1]["seeds"] = seeds
    return pd.DataFrame(rows, columns=[*by, "epoch", *Interval._fields, "seeds"])


def nearest_epochs(table: pd.DataFrame, wanted: Sequence[float]) -> pd.DataFrame:
    """The rows of the evaluations nearest to each of these epochs; an epoch that was not reached has no row."""
    epochs = np.unique(table["epoch"].to_numpy(float))
    step = np.diff(epochs).max() if len(epochs) > 1 else np.inf
    near = [epochs[np.abs(epochs - each).argmin()] for each in wanted] if len(epochs) else []
    kept = [each for each, target in zip(near, wanted, strict=False) if abs(each - target) <= step / 2]
    return table[table["epoch"].isin(kept)]


def paired_curves(curves: pd.DataFrame, column: str, *, percent: bool = False) -> pd.DataFrame:
    """Regularised minus baseline (kappa 0) of the same seed at the same update: seed, kappa, update, epoch, difference.

    curves: as in RunTables, all runs of one shape. percent: the difference over the baseline's value, in per cent.
    Evaluations that only one of the two runs has are left out.
    """
    base = curves[curves["kappa"] == 0].set_index(["seed", "update"])[column].rename("baseline")
    rows = curves[curves["kappa"] != 0].join(base, on=["seed", "update"], how="inner")
    difference = rows[column] - rows["baseline"]
    rows = rows.assign(difference=100 * difference / rows["baseline"] if percent else difference)
    return rows[["seed", "kappa", "update", "epoch", "difference"]].reset_index(drop=True)


def paired_runs(summary: pd.DataFrame, kappa: float) -> pd.DataFrame:
    """Table `paired` of the rules: seed, kappa (0, kappa), test_perplexity, valid_entropy, valid_perplexity, TRAINING.

    One row a run at its best checkpoint; a run without its partner of the same seed is left out.
    """
    chosen = summary[summary["kappa"].isin([0.0, kappa])]
    partners = chosen.groupby("seed")["kappa"].transform("nunique") == 2
    columns = ["seed", "kappa", "test_perplexity", "valid_entropy", "valid_perplexity", *TRAINING]
    return chosen[partners.astype(bool)][columns].sort_values(["seed", "kappa"]).reset_index(drop=True)


def paired_differences(paired: pd.DataFrame, column: str) -> pd.DataFrame:
    """Columns seed, baseline, locater, difference from a table of `paired_runs`; one row a seed."""
    arms = paired.assign(arm=np.where(paired["kappa"] == 0, "baseline", "locater"))
    wide = arms.pivot(index="seed", columns="arm", values=column).reindex(columns=["baseline", "locater"])
    wide = wide.astype(float).reset_index().rename_axis(columns=None)
    return wide.assign(difference=wide["locater"] - wide["baseline"])


def chosen_kappa(summary: pd.DataFrame) -> float:
    """The kappa > 0 of least validation perplexity among these runs of one seed; NaN without one."""
    rows = summary[summary["kappa"] > 0].sort_values("valid_perplexity")
    return float(rows["kappa"].iloc[0]) if len(rows) else NO_INTERVAL


def judged_pairs(sweeps: Sequence[Tables], kappa: float) -> Tables:
    """The first of these sweeps with enough paired seeds for a verdict; the last one when none has."""
    enough = [sweep for sweep in sweeps if len(paired_runs(sweep.summary, kappa)) >= 2 * FEWEST_SEEDS]
    return enough[0] if enough else sweeps[-1]


def kappa_runs(summary: pd.DataFrame) -> pd.DataFrame:
    """Table `kappas` of the rules: seed, kappa, eigen_variance, valid_perplexity, valid_entropy, TRAINING."""
    columns = ["seed", "kappa", "eigen_variance", "valid_perplexity", "valid_entropy", *TRAINING]
    return summary[columns].sort_values(["seed", "kappa"]).reset_index(drop=True)


def training_length(table: pd.DataFrame) -> str:
    """How long the runs of a table learned, and over how many words.

    Columns best_epoch, last_epoch (of an evaluation) and corpus_words. A run that was best at its last evaluation may
    not be at its best yet: how many there are is said.
    """
    words = ", ".join(f"{number:,}" for number in sorted(set(table["corpus_words"])))
    length = passes(table["best_epoch"].min(), table["best_epoch"].max())
    ended = int((table["best_epoch"] == table["last_epoch"]).sum())
    return f"best after {length} over the text, in {ended} of {len(table)} runs at the last evaluation; {words} words"


def paired_verdict(table: pd.DataFrame, value: str, sign: int) -> Verdict:
    """Regularised minus baseline (kappa 0), paired by seed; `sign` is the direction the claim names.

    One row a run. What `_training` reads is said with the verdict: best_epoch and last_epoch (passes over the text
    until the best and until the last evaluation), corpus_words.
    """
    wide = table.assign(arm=np.where(table["kappa"] == 0, "baseline", "locater"))
    wide = wide.pivot(index="seed", columns="arm", values=value)
    pairs = wide.dropna() if {"baseline", "locater"} <= set(wide.columns) else wide.iloc[:0]
    if len(pairs) < FEWEST_SEEDS:
        return Verdict("not run", f"{len(pairs)} paired seeds; at least {FEWEST_SEEDS} are needed")
    gap = t_interval(pairs["locater"] - pairs["baseline"])
    because = f"{value} changes by {gap.estimate:.3f} [{gap.low:.3f}, {gap.high:.3f}] over {len(pairs)} paired seeds"
    because = f"{because}; {training_length(table)}"
    if sign * gap.estimate <= 0:
        return Verdict("not reproduced", because)
    return Verdict("reproduced" if min(sign * gap.low, sign * gap.high) > 0 else "partly", because)

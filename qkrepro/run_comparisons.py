"""Runs against runs: means over seeds, differences to the baseline of the same seed, and which records are judged.

Source: book, "LocAteR"; intervals are those of `qkrepro.intervals`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import fields
from typing import TypeVar

import numpy as np
import pandas as pd

from qkrepro.configuration import RunConfiguration
from qkrepro.intervals import Interval, t_interval
from qkrepro.run_tables import RunTables
from qkrepro.training_rules import FEWEST_SEEDS

TRAINING = ("best_epoch", "last_epoch", "corpus_words")  # passes until the best, until the last evaluation; words
FEWEST_KAPPAS = 4
NO_INTERVAL = float("nan")
Tables = TypeVar("Tables", bound=RunTables)


def mean_interval(values: Sequence[float]) -> Interval:
    """`t_interval`, and below two values their mean alone: the ends of the interval are NaN."""
    if len(values) < 2:
        return Interval(float(np.mean(values)) if len(values) else NO_INTERVAL, NO_INTERVAL, NO_INTERVAL)
    return t_interval(values)


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


def judged_kappas(sweeps: Sequence[Tables]) -> Tables:
    """The first of these sweeps with enough seeds at enough kappas for a verdict; the last one when none has."""
    for sweep in sweeps:
        kappas = sweep.summary.groupby("seed")["kappa"].nunique()
        if (kappas >= FEWEST_KAPPAS).sum() >= FEWEST_SEEDS:
            return sweep
    return sweeps[-1]


def kappa_runs(summary: pd.DataFrame) -> pd.DataFrame:
    """Table `kappas` of the rules: seed, kappa, eigen_variance, valid_perplexity, valid_entropy, TRAINING."""
    columns = ["seed", "kappa", "eigen_variance", "valid_perplexity", "valid_entropy", *TRAINING]
    return summary[columns].sort_values(["seed", "kappa"]).reset_index(drop=True)


def shape_runs(summary: pd.DataFrame) -> pd.DataFrame:
    """Table `shapes` of the rules: layers, heads, seed, kappa, valid_perplexity, valid_entropy, TRAINING."""
    columns = ["layers", "heads", "seed", "kappa", "valid_perplexity", "valid_entropy", *TRAINING]
    return summary[columns].sort_values(columns[:4]).reset_index(drop=True)


def shape_differences(shapes: pd.DataFrame, column: str, *, percent: bool = False) -> pd.DataFrame:
    """Regularised minus baseline of the same seed and shape: layers, heads, seed, kappa, difference; one row a pair."""
    keys = ["layers", "heads", "seed"]
    base = shapes[shapes["kappa"] == 0].set_index(keys)[column].rename("baseline")
    rows = shapes[shapes["kappa"] != 0].join(base, on=keys, how="inner")
    difference = rows[column] - rows["baseline"]
    rows = rows.assign(difference=100 * difference / rows["baseline"] if percent else difference)
    return rows[[*keys, "kappa", "difference"]].astype({"difference": float}).reset_index(drop=True)


def form_differences(
    forms: pd.DataFrame, baselines: pd.DataFrame, column: str, *, percent: bool = False
) -> pd.DataFrame:
    """Each form of the regulariser minus the baseline of its seed: scale, mean, seed, difference; one row a run.

    forms, baselines: summaries. A baseline counts where nothing but the regulariser differs from the form's run; a run
    without one is left out.
    """
    base = baselines[baselines["kappa"] == 0]
    base = pd.DataFrame({"settings": _settings(base), "baseline": base[column]}).drop_duplicates("settings")
    rows = forms.assign(settings=_settings(forms)).merge(base, on="settings")
    difference = rows[column] - rows["baseline"]
    rows = rows.assign(difference=100 * difference / rows["baseline"] if percent else difference)
    return rows[["scale", "mean", "seed", "difference"]].astype({"difference": float})


def difference_means(differences: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean of `difference` over seeds with its paired 95% t interval: columns `by`, estimate, low, high, seeds."""
    rows = []
    for keys, group in differences.groupby(list(by), sort=False):
        mean = mean_interval(group["difference"].tolist())
        found = {"estimate": mean.estimate, "low": mean.low, "high": mean.high, "seeds": len(group)}
        rows.append(dict(zip(by, keys, strict=True)) | found)
    return pd.DataFrame(rows, columns=[*by, "estimate", "low", "high", "seeds"])


def head_values(summary: pd.DataFrame, column: str, layers: int, heads: int) -> pd.DataFrame:
    """A measure of every head at the best checkpoint, runs of one shape: seed, kappa, layer, head, value."""
    runs = summary[(summary["layers"] == layers) & (summary["heads"] == heads)]
    single = layers * heads == 1  # the record of a single head has no columns a head
    rows = [
        {"seed": run["seed"], "kappa": run["kappa"], "layer": layer, "head": head}
        | {"value": float(run[column if single else f"{column}_{layer}_{head}"])}
        for _, run in runs.iterrows()
        for layer in range(layers)
        for head in range(heads)
    ]
    return pd.DataFrame(rows, columns=["seed", "kappa", "layer", "head", "value"])


def _settings(summary: pd.DataFrame) -> list[str]:
    """Of each run, everything it is configured by but the regulariser."""
    regulariser = ("kappa", "scale", "mean", "target_trace")
    names = [field.name for field in fields(RunConfiguration) if field.name not in regulariser]
    return [str(row) for row in summary[names].itertuples(index=False, name=None)]

"""What tables of runs say, as sentences: the text of a chapter follows from its records, whatever they are."""

from collections.abc import Sequence

import pandas as pd
from scipy import stats

from qkrepro.intervals import t_interval
from qkrepro.run_comparisons import FEWEST_KAPPAS, mean_interval
from qkrepro.run_tables import NOT_RUN, RunTables, SweepTables
from qkrepro.wording import passes, signed


def change(differences: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """A mean difference over paired seeds with its 95% interval and what can be told from it.

    "+0.53 (−0.66 to +1.73, 3 seeds): no difference can be told"; "not run" without a pair; one pair has no interval.
    """
    if not len(differences):
        return NOT_RUN
    if len(differences) == 1:
        return f"{signed(differences[0], digits)}{unit} (one seed): nothing can be told"
    gap = t_interval(differences)
    low, high = signed(gap.low, digits), signed(gap.high, digits)
    told = "higher" if gap.low > 0 else "lower" if gap.high < 0 else "no difference can be told"
    return f"{signed(gap.estimate, digits)}{unit} ({low} to {high}, {len(differences)} seeds): {told}"


def told_by_group(differences: pd.DataFrame, by: Sequence[str], unit: str = "", digits: int = 2) -> str:
    """`change` of every group, in the order they come: "frobenius, penalty −3.10% (…): lower; …"; "not run" for none.

    differences: columns `by`, difference; one row a pair.
    """
    groups = differences.groupby(list(by), sort=False)["difference"]
    told = [f"{', '.join(map(str, keys))} {change(values.tolist(), unit, digits)}" for keys, values in groups]
    return "; ".join(told) if told else NOT_RUN


def gap_over_training(means: pd.DataFrame, unit: str = "%") -> str:
    """Where the paired difference stands at the first and the last evaluation that all seeds share, and what follows.

    means: epoch, estimate, low, high of the difference (regularised minus baseline), one kappa, after update 0.
    """
    if means.empty:
        return NOT_RUN
    first, last = means.iloc[0], means.iloc[-1]
    if not means["low"].notna().all():
        return f"{_at(first, unit)}, {_at(last, unit)}; one seed, no interval"
    gained, lost = first["high"] < 0, last["low"] > 0
    if gained and last["high"] < 0:
        told = "the gain lasts"
    elif gained:
        told = "the gain of the beginning has turned into a loss" if lost else "the gain of the beginning is gone"
    else:
        told = "it is a loss in the end" if lost else "no gain at the beginning can be told"
    return f"{_at(first, unit)}, {_at(last, unit)}: {told}"


def last_gain(means: pd.DataFrame) -> float:
    """The last epoch up to which the interval of the difference lies below 0 without a break; 0 when it never does."""
    below = (means["high"] < 0).to_numpy()
    held = below.argmin() if not below.all() else len(below)
    return float(means["epoch"].iloc[held - 1]) if held else 0.0


def order_over_kappa(kappas: pd.DataFrame) -> str:
    """Rank correlations of perplexity and entropy with eigenvalue variance over kappa, and where perplexity is least.

    kappas: seed, kappa, eigen_variance, valid_perplexity, valid_entropy; seeds with fewer kappas than the rule takes
    are left out.
    """
    groups = [group for _, group in kappas.groupby("seed") if len(group) >= FEWEST_KAPPAS]
    if not groups:
        return NOT_RUN
    told = []
    for column, name in (("valid_perplexity", "validation perplexity"), ("valid_entropy", "attention entropy")):
        values = [float(stats.spearmanr(group["eigen_variance"], group[column]).statistic) for group in groups]
        mean = mean_interval(values)
        interval = f"{signed(mean.low)} to {signed(mean.high)}, {len(values)} seeds" if len(values) > 1 else "one seed"
        told.append(f"{name} has a rank correlation of {signed(mean.estimate)} ({interval}) with eigenvalue variance")
    means = pd.concat(groups).groupby("kappa")["valid_perplexity"].mean()
    return f"{'; '.join(told)}. Perplexity is least at κ = {means.idxmin():g} and largest at κ = {means.idxmax():g}"


def course(means: pd.DataFrame, digits: int = 2) -> str:
    """Where a mean over seeds starts and ends, and its largest value in between where that is elsewhere.

    means: epoch, estimate; one kappa. "0.5 at the start, at most 8.0 (after 0.5 passes), 4.5 in the end".
    """
    if means.empty:
        return NOT_RUN
    first, most, last = means.iloc[0], means.sort_values("estimate").iloc[-1], means.iloc[-1]
    start, top, end = (signed(row["estimate"], digits).lstrip("+") for row in (first, most, last))
    between = f"at most {top} (after {passes(most['epoch'])}), " if top not in (start, end) else ""
    return f"{start} at the start, {between}{end} in the end"


def progress(sweep: SweepTables) -> str:
    """How much of a sweep is recorded, "6 of 15 runs", and the command for the rest."""
    done = len(sweep.summary)
    told = f"{done} of {len(sweep.planned)} runs recorded"
    return told if done == len(sweep.planned) else f"{told}; the rest is completed by {sweep.command}"


def still_improving(tables: RunTables) -> str:
    """How many runs had their best validation loss at their last evaluation, and were so stopped on the way down."""
    if tables.summary.empty:
        return NOT_RUN
    ended, runs = int((tables.summary["best_epoch"] == tables.summary["last_epoch"]).sum()), len(tables.summary)
    return f"{ended} of {runs} runs had their best validation perplexity at their last evaluation"


def _at(row: pd.Series, unit: str) -> str:
    interval = f" ({signed(row['low'])} to {signed(row['high'])})" if row["low"] == row["low"] else ""
    return f"{signed(row['estimate'])}{unit}{interval} after {passes(row['epoch'])}"

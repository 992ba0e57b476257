"""LocAteR: what its runs say of perplexity, entropy and the order over κ, in sentences, figures and verdicts."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from qkrepro.evidence.claims import claims_judged_by
from qkrepro.evidence.paired_runs import FEWEST_KAPPAS, FEWEST_SEEDS, paired_verdict, training_length
from qkrepro.evidence.run_figures import by_kappa, kappa_colour, kappa_label, label_empty
from qkrepro.evidence.verdicts import Outcome, Tables, Verdict
from qkrepro.evidence.wording import change, passes, signed
from qkrepro.theory.statistics import mean_interval, t_interval
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.tables import NOT_RUN, RunTables


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


def still_improving(tables: RunTables) -> str:
    """How many runs had their best validation loss at their last evaluation, and were so stopped on the way down."""
    if tables.summary.empty:
        return NOT_RUN
    ended, runs = int((tables.summary["best_epoch"] == tables.summary["last_epoch"]).sum()), len(tables.summary)
    return f"{ended} of {runs} runs had their best validation perplexity at their last evaluation"


def _at(row: pd.Series, unit: str) -> str:
    interval = f" ({signed(row['low'])} to {signed(row['high'])})" if row["low"] == row["low"] else ""
    return f"{signed(row['estimate'])}{unit}{interval} after {passes(row['epoch'])}"


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


def _settings(summary: pd.DataFrame) -> list[str]:
    """Of each run, everything it is configured by but the regulariser."""
    regulariser = ("kappa", "scale", "mean", "target_trace")
    names = [field.name for field in fields(RunConfiguration) if field.name not in regulariser]
    return [str(row) for row in summary[names].itertuples(index=False, name=None)]


def plot_against_variance(kappas: pd.DataFrame, column: str, axis: Axes) -> None:
    """A measure of each run against its eigenvalue variance: a line a seed, colours for kappa.

    kappas: seed, kappa, eigen_variance, `column`. The variance axis is logarithmic where all variances are positive.
    """
    if kappas.empty:
        return label_empty(axis)
    for _, line in kappas.sort_values("eigen_variance").groupby("seed"):
        axis.plot(line["eigen_variance"], line[column], color="0.75", linewidth=1, zorder=1)
    for kappa, points in by_kappa(kappas):
        style: dict[str, Any] = {"color": kappa_colour(kappa), "label": kappa_label(kappa)}
        axis.scatter(points["eigen_variance"].tolist(), points[column].tolist(), s=34, zorder=2, **style)
    axis.set_xlabel(r"eigenvalue variance over $d_{model}$")
    if (kappas["eigen_variance"] > 0).all():
        axis.set_xscale("log")
    return None


def perplexity_improves(tables: Tables) -> Verdict:
    """Table paired: seed, kappa (0 and the one chosen on validation), test_perplexity and what `_paired` reads."""
    return paired_verdict(tables["paired"], "test_perplexity", -1)


def entropy_rises(tables: Tables) -> Verdict:
    """Table paired: seed, kappa, valid_entropy (nats, mean over queries, best checkpoint) and what `_paired` reads."""
    return paired_verdict(tables["paired"], "valid_entropy", +1)


def perplexity_follows_variance(tables: Tables) -> Verdict:
    """Table kappas: seed, kappa, eigen_variance (d_model eigenvalues), valid_perplexity and what `_training` reads.

    One row a run. Per seed the rank correlation over kappa; reproduced when its t interval over seeds lies above 0.
    """
    values = [
        float(stats.spearmanr(group["eigen_variance"], group["valid_perplexity"]).statistic)
        for _, group in tables["kappas"].groupby("seed")
        if len(group) >= 4
    ]
    if len(values) < FEWEST_SEEDS:
        return Verdict("not run", f"{len(values)} seeds with at least four kappas; {FEWEST_SEEDS} are needed")
    mean = t_interval(values)
    because = f"rank correlation over kappa {mean.estimate:.2f} [{mean.low:.2f}, {mean.high:.2f}], {len(values)} seeds"
    because = f"{because}; {training_length(tables['kappas'])}"
    outcome: Outcome = "reproduced" if mean.low > 0 else "partly" if mean.estimate > 0 else "not reproduced"
    return Verdict(outcome, because)


CLAIMS = claims_judged_by(perplexity_improves, entropy_rises, perplexity_follows_variance)

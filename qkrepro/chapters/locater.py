"""LocAteR in training: what its penalty does to perplexity, entropy, the rank of the outputs and the pace of learning.

The first runs, with τ = 1. They are judged by the words and margins of results/PLAN.md, and by its manipulation check:
where an arm did not concentrate the spectrum, it is no test of concentration. Source: book, "LocAteR".
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from scipy import stats

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.outcomes import (
    MARGINS,
    TWICE,
    check_text,
    concentration_ratios,
    interval_text,
    outcome_of,
    paired_outcome,
    paired_values,
    passed_by,
    ratio_interval,
    weaker,
)
from qkrepro.evidence.paired_runs import FEWEST_SEEDS
from qkrepro.evidence.rounding import fixed
from qkrepro.evidence.run_figures import by_kappa, kappa_colour, kappa_label, label_empty
from qkrepro.theory.statistics import t_interval
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.tables import RunTables

READS = (
    "results/locater-wikitext-2*",
    "results/kappa-reduced*",
    "results/kappa-short*",
    "results/search-*",
    "results/variants-reduced*",
    "results/shapes-reduced*",
)  # what the notebook reads beside the package, relative to the checkout

FEWEST_KAPPAS = 4
FRACTIONS = (0.25, 0.5, 1.0)  # of the baseline's budget, after which its losses are to be reached
END = ("valid_loss", "valid_entropy", "residual", "cosine", "concentration", "walk_concentration")
MARKERS = "osD^v<>pXPh"  # one an arm, beside the colour
SIZES = ("trace", "frobenius", "walk_trace", "walk_frobenius")


def run_ends(curves: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Return the last evaluation of every run: run, seed, kappa, d_model, what was measured there, and test_loss.

    Losses in nats a token, entropy in nats; residual and cosine are those of the output tokens. test_loss is that of
    the best checkpoint, the one test loss that these runs recorded.
    """
    last = curves.sort_values("update").groupby("run").tail(1)
    last = last[["run", "seed", "kappa", "d_model", *END, *SIZES]]
    return last.merge(summary[["run", "test_loss"]], on="run", how="left").sort_values(["kappa", "seed"])


def pairs(ends: pd.DataFrame, kappa: float) -> pd.DataFrame:
    """Return the runs with this kappa and their baselines, with column `arm`; a run without its partner is left out."""
    chosen = ends[ends["kappa"].isin([0.0, kappa])]
    partners = chosen.groupby("seed")["kappa"].transform("nunique") == 2
    arm = np.where(chosen["kappa"] == 0, "baseline", "locater")
    return chosen.assign(arm=arm)[partners.astype(bool)].drop(columns="run").reset_index(drop=True)


def form_ends(forms: RunTables, baselines: RunTables) -> pd.DataFrame:
    """Return each form's runs with their baselines as `ends` of their own: column `form`, "scale, mean", beside `arm`.

    A baseline counts where nothing but the regulariser differs.
    """
    settings = [
        run_ends(each.curves, each.summary).merge(
            each.summary[["run", "scale", "mean"]].assign(settings=_settings(each.summary)), on="run"
        )
        for each in (forms, baselines)
    ]
    plain = settings[1][settings[1]["kappa"] == 0].drop_duplicates("settings")
    tables = [pd.DataFrame(columns=["form", "arm", *settings[0].columns])]
    for (scale, mean), runs in settings[0].groupby(["scale", "mean"], sort=False):
        base = plain[plain["settings"].isin(runs["settings"])]
        both = pd.concat(
            [base.assign(arm="baseline"), runs[runs["settings"].isin(base["settings"])].assign(arm="form")]
        )
        tables.append(both.drop(columns="settings").assign(form=f"{scale}, {mean}"))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def _settings(table: pd.DataFrame) -> list[str]:
    """Of each run, everything it is configured by but the regulariser."""
    regulariser = ("kappa", "scale", "mean", "target_trace")
    names = [field.name for field in fields(RunConfiguration) if field.name not in regulariser]
    return [str(row) for row in table[names].itertuples(index=False, name=None)]


def equal_norm(ends: pd.DataFrame) -> pd.DataFrame:
    """Return the two forms whose W end with one norm and different traces, as arm and baseline of one comparison.

    ends: of `form_ends`. The baseline is the penalty on ‖W‖_F² (τ = 1), the arm that on the eigenvalue variance.
    """
    names = {"frobenius, penalty": "baseline", "variance, penalty": "spread"}
    chosen = ends[ends["form"].isin(names) & (ends["arm"] == "form")]
    columns = ["seed", "d_model", *END, *SIZES]
    return chosen.assign(arm=chosen["form"].map(names))[["arm", *columns]].reset_index(drop=True)


def arms_table(arms: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return a row an arm: ratios of N_W and N_M to the baseline's, by which it passes, and the words for its outcomes.

    arms: name to `ends` with column arm. Perplexity here is that of the validation text.
    """
    rows = []
    for name, ends in arms.items():
        ratios = concentration_ratios(ends)
        if len(ratios["N_W"]) >= FEWEST_SEEDS:
            loss, entropy = paired_values(ends, "valid_loss"), paired_values(ends, "valid_entropy")
            rows.append(
                {
                    "arm": name,
                    "seeds": len(loss),
                    "N_W, times": ratio_interval(ratios["N_W"]).estimate,
                    "N_M, times": ratio_interval(ratios["N_M"]).estimate,
                    "concentrates by": " and ".join(passed_by(ratios)) or "neither",
                    "perplexity, %": 100 * (np.exp(loss.mean()) - 1),
                    "perplexity improves": outcome_of(loss.tolist(), -1, MARGINS["log perplexity"]),
                    "entropy, nats": entropy.mean(),
                    "entropy rises": outcome_of(entropy.tolist(), +1, MARGINS["entropy"]),
                }
            )
    return pd.DataFrame(rows)


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
    for seed, runs in curves[curves["kappa"].isin([0.0, kappa])].groupby("seed"):
        arms = {value: run.sort_values("update") for value, run in runs.groupby("kappa")}
        if len(arms) < 2:
            continue
        (time, loss), (other, other_loss) = (
            (arms[value]["update"].to_numpy(float), arms[value]["valid_loss"].to_numpy(float)) for value in (0.0, kappa)
        )
        for fraction in FRACTIONS:
            level = float(np.interp(fraction * time[-1], time, loss))
            found, own = updates_to(other, other_loss, level), updates_to(time, loss, level)
            row = {"seed": seed, "fraction": fraction, "baseline": own, "reached": int(found == found)}
            rows.append(row | {"locater": found if found == found else other[-1] + np.diff(other).max()})
    return pd.DataFrame(rows, columns=["seed", "fraction", "baseline", "locater", "reached"])


def dose_response(kappas: pd.DataFrame, x: str, y: str) -> tuple[float, float, list[float]]:
    """Return the rank correlation of x with y over kappa, its mean over seeds, its p-value, and each seed's own.

    kappas: seed, kappa, x, y; seeds with the same kappas, one run each. The p-value is exact: kappas change places in
    all seeds at once, because the same kappa at three seeds is not three independent doses; two-sided.
    """
    columns = [kappas.pivot(index="seed", columns="kappa", values=name).dropna() for name in (x, y)]
    if columns[0].shape[1] < FEWEST_KAPPAS or len(columns[0]) < FEWEST_SEEDS:
        return float("nan"), float("nan"), []
    first, second = (stats.rankdata(table.to_numpy(float), axis=1) for table in columns)  # (seeds, kappas)
    first, second = (ranks - ranks.mean(1, keepdims=True) for ranks in (first, second))
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))  # (seeds,)
    each = (first * second).sum(1) / scale
    orders = np.array(list(permutations(range(first.shape[1]))))  # (orders, kappas)
    null = np.einsum("sok,sk,s->o", first[:, orders], second, 1 / scale) / len(scale)  # (orders,)
    extreme = np.abs(null) >= abs(each.mean()) - 1e-9
    return float(each.mean()), float(extreme.mean()), each.tolist()


def plot_against_variance(kappas: pd.DataFrame, column: str, axis: Axes) -> None:
    """A measure of each run against its eigenvalue variance: a line a seed, colours for kappa.

    kappas: seed, kappa, eigen_variance, `column`. The variance axis is logarithmic where all variances are positive.
    """
    if kappas.empty:
        return label_empty(axis)
    for _, line in kappas.sort_values("eigen_variance").groupby("seed"):
        axis.plot(line["eigen_variance"], line[column], color="0.6", linewidth=1, zorder=1)
    for kappa, points in by_kappa(kappas):
        style: dict[str, Any] = {"color": kappa_colour(kappa), "label": kappa_label(kappa)}
        axis.scatter(points["eigen_variance"].tolist(), points[column].tolist(), s=34, zorder=2, **style)
    axis.set_xlabel(r"eigenvalue variance over $d_{model}$")
    if (kappas["eigen_variance"] > 0).all():
        axis.set_xscale("log")
    return None


def plot_arms(ends: Iterable[tuple[str, pd.DataFrame]], column: str, axis: Axes) -> None:
    """A measure of each arm against its N_W: the mean over seeds of the arm minus its baseline, with its interval.

    ends: name and `ends` with column arm. N_W is the geometric mean of the ratios to the baseline.
    """
    axis.axhline(0, color="0.5", linewidth=1)
    axis.axvline(TWICE, color="0.5", linewidth=1, linestyle=":")
    for number, (name, table) in enumerate(ends):
        ratios = concentration_ratios(table)["N_W"]
        if len(ratios) < FEWEST_SEEDS:
            continue
        ratio, gap = ratio_interval(ratios), t_interval(paired_values(table, column))
        error: dict[str, Any] = {"xerr": [[ratio.estimate - ratio.low], [ratio.high - ratio.estimate]]}
        error |= {"yerr": [[gap.estimate - gap.low], [gap.high - gap.estimate]]}
        style: dict[str, Any] = {"fmt": MARKERS[number % len(MARKERS)], "color": f"C{number % 10}"}
        axis.errorbar([ratio.estimate], [gap.estimate], **error, **style, label=name)
    axis.set(xscale="log", xlabel="$N_W$, times the baseline's")


def _difference(column: str, better: int, margin: str, name: str) -> Callable[[Tables, float], Verdict]:
    """The rule of a difference in table paired: seed, arm, `column`."""

    def rule(tables: Tables, limit: float) -> Verdict:
        return paired_outcome(paired_values(tables["paired"], column).tolist(), better, limit, name)

    return rule


def _margin(name: str, rule: Callable[[Tables, float], Verdict]) -> Threshold:
    """A margin of the plan, with its half and its double."""
    value = MARGINS[name]
    return Threshold(f"margin of equivalence, {name}", value, (value / 2, value, 2 * value), rule)


perplexity_by_margin = _difference("test_loss", -1, "log perplexity", "log test perplexity")
entropy_by_margin = _difference("valid_entropy", +1, "entropy", "attention entropy (nats)")


def perplexity_improves(tables: Tables) -> Verdict:
    """Table paired: seed, arm (baseline, locater), test_loss (nats a token: a difference of log perplexity)."""
    return perplexity_by_margin(tables, MARGINS["log perplexity"])


def entropy_rises(tables: Tables) -> Verdict:
    """Table paired: seed, arm, valid_entropy (nats, mean over queries, last evaluation)."""
    return entropy_by_margin(tables, MARGINS["entropy"])


def trains_faster_by_margin(tables: Tables, limit: float) -> Verdict:
    """Table pace: seed, fraction, baseline, locater (updates), reached."""
    table = tables["pace"]
    logs = (table["locater"].astype(float) / table["baseline"].astype(float)).map(math.log)
    verdict = paired_outcome(logs.groupby(table["seed"]).mean().tolist(), -1, limit, "log of the ratio of updates")
    reached = f"{int(table['reached'].sum())} of {len(table)} losses reached within the budget"
    return verdict._replace(because=f"{verdict.because}; {reached}")


def trains_faster(tables: Tables) -> Verdict:
    """Table pace, as `trains_faster_by_margin`."""
    return trains_faster_by_margin(tables, MARGINS["log updates"])


def collapses_recede_by_margin(tables: Tables, factor: float) -> Verdict:
    """Table paired: seed, arm, valid_entropy, residual; both margins times `factor`."""
    ends = tables["paired"]
    entropy, rank = paired_values(ends, "valid_entropy"), paired_values(ends, "residual")
    words = [
        outcome_of(values.tolist(), +1, factor * MARGINS[name])
        for values, name in ((entropy, "entropy"), (rank, "residual"))
    ]
    if "not run" in words:
        return Verdict("not run", f"{len(entropy)} paired seeds; at least {FEWEST_SEEDS} are needed")
    because = (
        f"entropy {interval_text(t_interval(entropy))} nats ({words[0]}), distance of the output tokens from being "
        f"equal {interval_text(t_interval(rank))} ({words[1]})"
    )
    return Verdict(weaker(*words), because, int(((entropy > 0) & (rank > 0)).sum()), len(entropy))


def collapses_recede(tables: Tables) -> Verdict:
    """Table paired, as `collapses_recede_by_margin`."""
    return collapses_recede_by_margin(tables, 1.0)


def _if_concentrated(table: str, rule: Callable[[Tables], Verdict]) -> Callable[[Tables, float], Verdict]:
    """A rule that speaks of concentration: "not a test" where the runs of `table` did not pass the check."""

    def checked(tables: Tables, least: float) -> Verdict:
        ratios = concentration_ratios(tables[table])
        if len(ratios["N_W"]) < FEWEST_SEEDS:
            return rule(tables)
        passed, told = passed_by(ratios, least), check_text(ratios)
        if not passed:
            return Verdict("not a test", f"the spectrum did not concentrate: {told}; at least {least:g} times is asked")
        verdict = rule(tables)
        return verdict._replace(because=f"{verdict.because}; concentrated by {' and '.join(passed)}: {told}")

    return checked


def equal_norm_perplexity_by_margin(tables: Tables, limit: float) -> Verdict:
    """Table equal_norm: seed, arm, valid_loss."""
    return paired_outcome(
        paired_values(tables["equal_norm"], "valid_loss").tolist(), -1, limit, "log validation perplexity"
    )


def equal_norm_entropy_by_margin(tables: Tables, limit: float) -> Verdict:
    """Table equal_norm: seed, arm, valid_entropy (nats)."""
    return paired_outcome(
        paired_values(tables["equal_norm"], "valid_entropy").tolist(), +1, limit, "attention entropy (nats)"
    )


def _at(table: str, rule: Callable[[Tables, float], Verdict], margin: str) -> Callable[[Tables, float], Verdict]:
    """A rule on concentration, at the plan's ratio and any margin."""

    def judged(tables: Tables, limit: float) -> Verdict:
        return _if_concentrated(table, lambda given: rule(given, limit))(tables, TWICE)

    return judged


concentration_perplexity = _if_concentrated("paired", perplexity_improves)
concentration_entropy = _if_concentrated("paired", entropy_rises)
beyond_perplexity = _at("equal_norm", equal_norm_perplexity_by_margin, "log perplexity")
beyond_entropy = _at("equal_norm", equal_norm_entropy_by_margin, "entropy")


def perplexity_follows_variance(tables: Tables) -> Verdict:
    """Table kappas: seed, kappa, eigen_variance (d_model eigenvalues), valid_perplexity; one row a run."""
    mean, p, each = dose_response(tables["kappas"], "eigen_variance", "valid_perplexity")
    if not each:
        return Verdict("not run", f"at least {FEWEST_SEEDS} seeds with {FEWEST_KAPPAS} kappas are needed")
    because = f"mean rank correlation over κ {fixed(mean)}, exact permutation p = {p:.3f}".replace("-", "−")
    holds = sum(value > 0 for value in each)
    if p >= 0.05:
        return Verdict("inconclusive", because, holds, len(each))
    return Verdict("reproduced" if mean > 0 else "not reproduced", because, holds, len(each))


FULL = "LocAteR with τ = 1 and κ = 1e-3, all words of WikiText-2, eleven passes, one layer, one head, five seeds"
FORMS = (
    "κ = 1e-3, reduced vocabulary, one pass, one layer, one head, three seeds: the penalty on the eigenvalue variance "
    "against the one on the norm"
)
WORDS = (
    "Paired 95% t interval and t test over seeds, arm minus baseline: reproduced when p < 0.05 on the better side; "
    "partly when the interval lies inside the margin all the same"
)
WORSE = "p < 0.05 on the worse side, or an interval inside the margin without such a p"
RATIOS = (1.0, 1.25, 1.5, TWICE, 3.0, 4.0)

CLAIMS = (
    Claim(
        name="locater-improves-perplexity",
        chapter="locater",
        provenance="reported",
        statement=f"LocAteR improves perplexity ({FULL}; test text). In these runs it shrank W: a claim on shrinkage.",
        rule=f"{WORDS} (0.01 of log perplexity).",
        refuted_by=WORSE,
        tables=("paired",),
        judge=perplexity_improves,
        figure="fig-locater-paired",
        threshold=_margin("log perplexity", perplexity_by_margin),
    ),
    Claim(
        name="locater-raises-entropy",
        chapter="locater",
        provenance="reported",
        statement=f"LocAteR raises attention entropy ({FULL}; validation text). A claim on shrinkage, as above.",
        rule=f"{WORDS} (0.05 nats).",
        refuted_by=WORSE,
        tables=("paired",),
        judge=entropy_rises,
        figure="fig-locater-paired",
        threshold=_margin("entropy", entropy_by_margin),
    ),
    Claim(
        name="concentration-improves-perplexity",
        chapter="locater",
        provenance="reported",
        statement=f"A more concentrated spectrum improves perplexity ({FULL}; test text).",
        rule=(
            "A test only where N_W or N_M at the end is at least twice the baseline's (geometric mean over seeds, its "
            f"95% t interval above 1). Then: {WORDS} (0.01 of log perplexity)."
        ),
        refuted_by=f"runs that are a test, with {WORSE}",
        tables=("paired",),
        judge=lambda tables: concentration_perplexity(tables, TWICE),
        figure="fig-arms",
        threshold=Threshold("least ratio of N_W or N_M to the baseline's", TWICE, RATIOS, concentration_perplexity),
    ),
    Claim(
        name="concentration-raises-entropy-in-training",
        chapter="locater",
        provenance="reported",
        statement=f"A more concentrated spectrum raises attention entropy ({FULL}; validation text).",
        rule=(
            "A test only where N_W or N_M at the end is at least twice the baseline's (geometric mean over seeds, its "
            f"95% t interval above 1). Then: {WORDS} (0.05 nats)."
        ),
        refuted_by=f"runs that are a test, with {WORSE}",
        tables=("paired",),
        judge=lambda tables: concentration_entropy(tables, TWICE),
        figure="fig-arms",
        threshold=Threshold("least ratio of N_W or N_M to the baseline's", TWICE, RATIOS, concentration_entropy),
    ),
    Claim(
        name="equal-norm-perplexity",
        chapter="locater",
        provenance="ours",
        statement=f"At equal ‖W‖_F, a more concentrated W improves validation perplexity ({FORMS}).",
        rule=f"Not a test unless N_W or N_M is at least twice that of the other form. Then: {WORDS} (0.01 of its log).",
        refuted_by=WORSE,
        tables=("equal_norm",),
        judge=lambda tables: beyond_perplexity(tables, MARGINS["log perplexity"]),
        figure="fig-arms",
        threshold=_margin("log perplexity", beyond_perplexity),
    ),
    Claim(
        name="equal-norm-entropy",
        chapter="locater",
        provenance="ours",
        statement=f"At equal ‖W‖_F, a more concentrated W raises attention entropy ({FORMS}).",
        rule=f"Not a test unless N_W or N_M is at least twice that of the other form. Then: {WORDS} (0.05 nats).",
        refuted_by=WORSE,
        tables=("equal_norm",),
        judge=lambda tables: beyond_entropy(tables, MARGINS["entropy"]),
        figure="fig-arms",
        threshold=_margin("entropy", beyond_entropy),
    ),
    Claim(
        name="small-variance-eases-both-collapses",
        chapter="locater",
        provenance="paper",
        statement=(
            "Expressivity: with a small eigenvalue variance both collapses recede together, more entropy and more "
            f"different output tokens ({FULL}; the variance is small because W shrank)."
        ),
        rule=(
            "Entropy and the residual of the output tokens each get the word of their paired difference (margins 0.05 "
            "nats and 0.005); not reproduced when either is, reproduced when both are."
        ),
        refuted_by=f"for entropy or for the residual: {WORSE}; a trade-off refutes",
        tables=("paired",),
        judge=collapses_recede,
        quote="leading to better model expressivity",
        figure="fig-both-collapses",
        threshold=Threshold("both margins, times", 1.0, (0.5, 1.0, 2.0), collapses_recede_by_margin),
    ),
    Claim(
        name="small-variance-trains-faster",
        chapter="locater",
        provenance="paper",
        statement=(
            "Trainability: with a small eigenvalue variance a run needs fewer updates for the validation losses that "
            f"its baseline has after a quarter, a half and all of its budget ({FULL}; the variance is small because W "
            "shrank)."
        ),
        rule=f"Mean over the three losses of the logarithm of the ratio of updates, a value a seed. {WORDS} (0.05).",
        refuted_by=WORSE,
        tables=("pace",),
        judge=trains_faster,
        quote="leading to better model expressivity and trainability",
        figure="fig-locater-gap",
        threshold=_margin("log updates", trains_faster_by_margin),
    ),
    Claim(
        name="perplexity-follows-variance",
        chapter="locater",
        provenance="ours",
        statement=(
            "Dose response: over κ = 0 to 0.1 with τ = 1, validation perplexity is the larger, the larger the "
            "eigenvalue variance (reduced vocabulary, four passes, three seeds)."
        ),
        rule=(
            "Per seed the rank correlation over κ, its mean over seeds against an exact permutation of the κ in all "
            "seeds at once: reproduced when p < 0.05 and the mean is positive; inconclusive when p is not below 0.05."
        ),
        refuted_by="p < 0.05 with a negative mean",
        tables=("kappas",),
        judge=perplexity_follows_variance,
        figure="fig-kappa-variance",
    ),
)

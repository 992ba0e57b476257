"""LocAteR in training: what its penalty does to perplexity, entropy, the rank of the outputs and the pace of learning.

The first runs, with τ = 1. They are judged by the words and margins of results/PLAN.md, and by its manipulation check:
where an arm did not concentrate the spectrum, it is no test of concentration. Source: book, "LocAteR".
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

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
from qkrepro.evidence.run_figures import by_kappa, kappa_colour, kappa_label
from qkrepro.evidence.style import COLOURS, INK, PALETTE, WIDTH, label_lines, name_colours
from qkrepro.theory.statistics import dose_correlation, t_interval
from qkrepro.theory.training_dynamics import eigenvalue_flow
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
END = ("valid_loss", "valid_entropy", "residual", "cosine", "concentration", "walk_concentration")
ARM_COLOURS = {
    "full": COLOURS["locater"],
    "reduced": PALETTE[4],
    "frobenius": COLOURS["dispersed"],
    "trace-square": PALETTE[3],
    "variance": COLOURS["concentrated"],
}  # by the beginning of an arm's name
Rule = Callable[..., Verdict]  # of tables, and of a threshold that has a default
SIZES = ("trace", "frobenius", "walk_trace", "walk_frobenius")


def run_ends(curves: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Return the last evaluation of every run: run, seed, kappa, d_model, what was measured there, and test_loss.

    Losses in nats a token, entropy in nats; residual and cosine are those of the output tokens. test_loss is that of
    the best checkpoint, the one test loss that these runs recorded.
    """
    last = curves.sort_values("update").groupby("run").tail(1)
    last = last[["run", "seed", "kappa", "d_model", *END, *SIZES]]
    return last.merge(summary[["run", "test_loss"]], on="run", how="left").sort_values(["kappa", "seed"])


def form_ends(forms: RunTables, baselines: RunTables) -> pd.DataFrame:
    """Return each form's runs with their baselines as `ends` of their own: column `form`, "scale, mean", beside `arm`.

    A baseline counts where nothing but the regulariser differs.
    """
    settings = [
        run_ends(sweep.curves, sweep.summary).merge(
            sweep.summary[["run", "scale", "mean"]].assign(settings=_settings(sweep.summary)), on="run"
        )
        for sweep in (forms, baselines)
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
    """Return everything that each run is configured by but the regulariser."""
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


def dose_response(kappas: pd.DataFrame, x: str, y: str) -> tuple[float, float, list[float]]:
    """Return `dose_correlation` of two columns over kappa; NaN and no seed where kappas or seeds are too few.

    kappas: seed, kappa, x, y; seeds with the same kappas, one run each.
    """
    doses, responses = (kappas.pivot(index="seed", columns="kappa", values=name).dropna() for name in (x, y))
    if doses.shape[1] < FEWEST_KAPPAS or len(doses) < FEWEST_SEEDS:
        return float("nan"), float("nan"), []
    return dose_correlation(doses, responses)


def plot_pull(start: ArrayLike, *, tau: float = 1.0, time: float = 2.5) -> Figure:
    """Draw what LocAteR and a plain penalty on the norm do to the same eigenvalues, a panel each."""
    times = np.linspace(0, time, 200)
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2), sharey=True)
    rest = tau / (np.size(start) + 1)
    titles = ("LocAteR pulls together", "a plain penalty pulls to zero")
    colours = (COLOURS["locater"], COLOURS["dispersed"])
    for axis, title, colour, target in zip(axes, titles, colours, (tau, None), strict=True):
        flow = eigenvalue_flow(start, times, tau=target)
        axis.plot(times, flow, color=colour, linewidth=1.3)
        axis.plot([0, time], flow[[0, -1]], "o", color=colour, markersize=5)
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.set(title=title, xlabel="time of gradient flow", xticks=[])
    axes[0].axhline(rest, color=INK, linewidth=0.8, linestyle=":")
    axes[0].text(time, rest + 0.06, "τ/(d + 1)", ha="right", color=INK)
    axes[1].text(time, 0.06, "0", ha="right", color=INK)
    axes[0].set_ylabel("eigenvalues of W")
    return figure


def plot_flow(paths: pd.DataFrame, balance: pd.DataFrame) -> Figure:
    """Draw N_W along the flow from beside saddles, and how far steps of descent move the conserved matrix."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.3))
    for colour, rank in zip(PALETTE, sorted(paths["rank"].unique()), strict=False):
        path = paths[paths["rank"] == rank]
        axes[0].plot(path["time"], path["N_W"], color=colour)
        axes[0].plot(0, path["N_W"].iloc[0], "o", color=colour)
        axes[0].text(0.1, rank + 0.12, f"rank {rank}" if rank else "origin", color=colour, fontsize="small")
    axes[0].set(title="The flow leaves every saddle", xlabel="time of gradient flow", ylabel="$N_W$")
    for colour, size in zip(PALETTE, sorted(balance["size"].unique()), strict=False):
        path = balance[balance["size"] == size]
        axes[1].plot(path["time"], 100 * path["change"], color=colour, label=f"step {size:g}")
    axes[1].set(title="Small steps keep Δ", xlabel="time of gradient descent", ylabel="change of Δ, %")
    label_lines(axes[1])
    return figure


def plot_hidden(head: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Draw the spectrum of `hidden_head` before and after the change of tokens, and its logits against each other."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    ranks = np.arange(1, len(head["eigenvalues"]) + 1)
    for name, key, label in (("dispersed", "eigenvalues", "W"), ("concentrated", "hidden_eigenvalues", "after B")):
        axes[0].plot(ranks, head[key], "o-", color=COLOURS[name], label=label)
    axes[0].set(yscale="log", xlabel="rank of the eigenvalue", ylabel="λ", title="The spectrum becomes flat,")
    label_lines(axes[0])
    axes[1].plot(head["logits"], head["hidden_logits"], ".", color=COLOURS["locater"], markersize=3)
    axes[1].set(xlabel="logits of x with W", ylabel="logits of Bx", title="and no logit changes")
    return figure


def plot_against_variance(kappas: pd.DataFrame, column: str, axis: Axes) -> None:
    """Draw a measure of runs against their eigenvalue variance: a line a seed, colours for kappa.

    kappas: seed, kappa, eigen_variance, `column`. The variance axis is logarithmic where all variances are positive.
    """
    for _, line in kappas.sort_values("eigen_variance").groupby("seed"):
        axis.plot(line["eigen_variance"], line[column], color=INK, alpha=0.5, linewidth=1, zorder=1)
    for kappa, points in by_kappa(kappas):
        axis.scatter(points["eigen_variance"], points[column], s=34, zorder=2, color=kappa_colour(kappa))
    name_colours(axis, {kappa_label(kappa): kappa_colour(kappa) for kappa, _ in by_kappa(kappas)}, (0.05, 0.4))
    axis.set_xlabel(r"eigenvalue variance over $d_{model}$")
    if (kappas["eigen_variance"] > 0).all():
        axis.set_xscale("log")


def plot_arms(ends: Mapping[str, pd.DataFrame], column: str, axis: Axes) -> None:
    """Draw a measure of every arm against its N_W: the mean over seeds of the arm minus its baseline, with intervals.

    ends: name to `run_ends` with column arm. N_W is the geometric mean of the ratios to the baseline.
    """
    axis.axhline(0, color=INK, linewidth=1)
    axis.axvline(TWICE, color=INK, linewidth=1, linestyle=":")
    for name, table in ends.items():
        ratios = concentration_ratios(table)["N_W"]
        if len(ratios) < FEWEST_SEEDS:
            continue
        ratio, gap = ratio_interval(ratios), t_interval(paired_values(table, column))
        error: dict[str, Any] = {"xerr": [[ratio.estimate - ratio.low], [ratio.high - ratio.estimate]]}
        error |= {"yerr": [[gap.estimate - gap.low], [gap.high - gap.estimate]], "linewidth": 1}
        colour = ARM_COLOURS[name.split(",")[0]]
        axis.errorbar([ratio.estimate], [gap.estimate], **error, fmt="o", color=colour, label=name)
    axis.set(xscale="log", xlabel="$N_W$, times the baseline's")


def _difference(table: str, column: str, better: int, margin: str, quantity: str) -> Rule:
    """Return the rule of a difference in a table with seed, arm and `column`, by default at the plan's margin."""

    def rule(tables: Tables, limit: float = MARGINS[margin]) -> Verdict:
        return paired_outcome(paired_values(tables[table], column).tolist(), better, limit, quantity)

    return rule


def _if_concentrated(table: str, rule: Rule) -> Rule:
    """Return a rule that speaks of concentration: "not a test" where the runs of `table` did not pass the check.

    least: the ratio of N_W or N_M from which it passes. limit: the margin of `rule`, by default its own.
    """

    def checked(tables: Tables, least: float = TWICE, **limit: float) -> Verdict:
        ratios = concentration_ratios(tables[table])
        if len(ratios["N_W"]) < FEWEST_SEEDS:
            return rule(tables, **limit)
        passed, check = passed_by(ratios, least), check_text(ratios)
        if not passed:
            return Verdict(
                "not a test", f"the spectrum did not concentrate: {check}; at least {least:g} times is asked"
            )
        verdict = rule(tables, **limit)
        return verdict._replace(because=f"{verdict.because}; concentrated by {' and '.join(passed)}: {check}")

    return checked


def _margin(name: str, rule: Callable[[Tables, float], Verdict]) -> Threshold:
    """Return a margin of the plan, with its half and its double."""
    value = MARGINS[name]
    return Threshold(f"margin of equivalence, {name}", value, (value / 2, value, 2 * value), rule)


def trains_faster(tables: Tables, limit: float = MARGINS["log updates"]) -> Verdict:
    """Judge table pace: seed, fraction, baseline, locater (updates), reached."""
    table = tables["pace"]
    logs = (table["locater"].astype(float) / table["baseline"].astype(float)).map(math.log)
    verdict = paired_outcome(logs.groupby(table["seed"]).mean().tolist(), -1, limit, "log of the ratio of updates")
    reached = f"{int(table['reached'].sum())} of {len(table)} losses reached within the budget"
    return verdict._replace(because=f"{verdict.because}; {reached}")


def collapses_recede(tables: Tables, factor: float = 1.0) -> Verdict:
    """Judge table paired: seed, arm, valid_entropy, residual; both margins times `factor`."""
    entropy, rank = (paired_values(tables["paired"], column) for column in ("valid_entropy", "residual"))
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


perplexity_improves = _difference("paired", "test_loss", -1, "log perplexity", "log test perplexity")
entropy_rises = _difference("paired", "valid_entropy", +1, "entropy", "attention entropy (nats)")
perplexity_at_equal_norm = _if_concentrated(
    "equal_norm", _difference("equal_norm", "valid_loss", -1, "log perplexity", "log validation perplexity")
)
entropy_at_equal_norm = _if_concentrated(
    "equal_norm", _difference("equal_norm", "valid_entropy", +1, "entropy", "attention entropy (nats)")
)


def perplexity_follows_variance(tables: Tables) -> Verdict:
    """Judge table kappas: seed, kappa, eigen_variance (d_model eigenvalues), valid_perplexity; one row a run."""
    mean, p, of_seeds = dose_response(tables["kappas"], "eigen_variance", "valid_perplexity")
    if not of_seeds:
        return Verdict("not run", f"at least {FEWEST_SEEDS} seeds with {FEWEST_KAPPAS} kappas are needed")
    because = f"mean rank correlation over κ {fixed(mean)}, exact permutation p = {p:.3f}".replace("-", "−")
    holds = sum(value > 0 for value in of_seeds)
    if p >= 0.05:
        return Verdict("inconclusive", because, holds, len(of_seeds))
    return Verdict("reproduced" if mean > 0 else "not reproduced", because, holds, len(of_seeds))


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
CHECKED = (
    "A test only where N_W or N_M at the end is at least twice the baseline's (geometric mean over seeds, its 95% t "
    f"interval above 1). Then: {WORDS}"
)
RATIO = ("least ratio of N_W or N_M to the baseline's", TWICE, (1.0, 1.25, 1.5, TWICE, 3.0, 4.0))
_claim = partial(Claim, chapter="locater", refuted_by=WORSE)

CLAIMS = (
    _claim(
        name="locater-improves-perplexity",
        provenance="reported",
        statement="LocAteR improves perplexity.",
        conditions=f"{FULL}; test text. In these runs it shrank W: a claim on shrinkage",
        rule=f"{WORDS} (0.01 of log perplexity).",
        tables=("paired",),
        judge=perplexity_improves,
        figure="fig-locater-paired",
        threshold=_margin("log perplexity", perplexity_improves),
    ),
    _claim(
        name="locater-raises-entropy",
        provenance="reported",
        statement="LocAteR raises attention entropy.",
        conditions=f"{FULL}; validation text. A claim on shrinkage",
        rule=f"{WORDS} (0.05 nats).",
        tables=("paired",),
        judge=entropy_rises,
        figure="fig-locater-paired",
        threshold=_margin("entropy", entropy_rises),
    ),
    _claim(
        name="concentration-improves-perplexity",
        provenance="reported",
        statement="A more concentrated spectrum improves perplexity.",
        conditions=f"{FULL}; test text",
        rule=f"{CHECKED} (0.01 of log perplexity).",
        refuted_by=f"runs that are a test, with {WORSE}",
        tables=("paired",),
        judge=_if_concentrated("paired", perplexity_improves),
        figure="fig-arms",
        threshold=Threshold(*RATIO, _if_concentrated("paired", perplexity_improves)),
    ),
    _claim(
        name="concentration-raises-entropy-in-training",
        provenance="reported",
        statement="A more concentrated spectrum raises attention entropy.",
        conditions=f"{FULL}; validation text",
        rule=f"{CHECKED} (0.05 nats).",
        refuted_by=f"runs that are a test, with {WORSE}",
        tables=("paired",),
        judge=_if_concentrated("paired", entropy_rises),
        figure="fig-arms",
        threshold=Threshold(*RATIO, _if_concentrated("paired", entropy_rises)),
    ),
    _claim(
        name="equal-norm-perplexity",
        provenance="ours",
        statement="At equal ‖W‖_F, a more concentrated W improves validation perplexity.",
        conditions=FORMS,
        rule=f"Not a test unless N_W or N_M is at least twice that of the other form. Then: {WORDS} (0.01 of its log).",
        tables=("equal_norm",),
        judge=perplexity_at_equal_norm,
        figure="fig-arms",
        threshold=_margin("log perplexity", lambda tables, limit: perplexity_at_equal_norm(tables, limit=limit)),
    ),
    _claim(
        name="equal-norm-entropy",
        provenance="ours",
        statement="At equal ‖W‖_F, a more concentrated W raises attention entropy.",
        conditions=FORMS,
        rule=f"Not a test unless N_W or N_M is at least twice that of the other form. Then: {WORDS} (0.05 nats).",
        tables=("equal_norm",),
        judge=entropy_at_equal_norm,
        figure="fig-arms",
        threshold=_margin("entropy", lambda tables, limit: entropy_at_equal_norm(tables, limit=limit)),
    ),
    _claim(
        name="small-variance-eases-both-collapses",
        provenance="paper",
        statement=(
            "Expressivity: with a small eigenvalue variance both collapses recede together, more entropy and more "
            "different output tokens."
        ),
        conditions=f"{FULL}; the variance is small because W shrank",
        rule=(
            "Entropy and the residual of the output tokens each get the word of their paired difference (margins 0.05 "
            "nats and 0.005); not reproduced when either is, reproduced when both are."
        ),
        refuted_by=f"for entropy or for the residual: {WORSE}; a trade-off refutes",
        tables=("paired",),
        judge=collapses_recede,
        quote="leading to better model expressivity",
        figure="fig-both-collapses",
        threshold=Threshold("both margins, times", 1.0, (0.5, 1.0, 2.0), collapses_recede),
    ),
    _claim(
        name="small-variance-trains-faster",
        provenance="paper",
        statement=(
            "Trainability: with a small eigenvalue variance a run needs fewer updates for the validation losses that "
            "its baseline has after a quarter, a half and all of its budget."
        ),
        conditions=f"{FULL}; the variance is small because W shrank",
        rule=f"Mean over the three losses of the logarithm of the ratio of updates, a value a seed. {WORDS} (0.05).",
        tables=("pace",),
        judge=trains_faster,
        quote="leading to better model expressivity and trainability",
        figure="fig-locater-gap",
        threshold=_margin("log updates", trains_faster),
    ),
    _claim(
        name="perplexity-follows-variance",
        provenance="ours",
        statement=(
            "Dose response: over κ = 0 to 0.1 with τ = 1, validation perplexity is the larger, the larger the "
            "eigenvalue variance."
        ),
        conditions="reduced vocabulary, four passes, three seeds",
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

"""What the recorded eigenvalues of a run come to: where they lie over training, spread about the mean, rotation.

Source: book, "The eigenspectrum in training".
"""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.outcomes import (
    CONCENTRATIONS,
    TWICE,
    check_text,
    concentration_ratios,
    passed_by,
    ratio_interval,
)
from qkrepro.evidence.paired_runs import FEWEST_SEEDS, with_arms
from qkrepro.evidence.run_figures import by_kappa, kappa_colour, kappa_label, plot_runs
from qkrepro.evidence.style import INK, WIDTH, name_colours
from qkrepro.training.tables import RunTables

READS = (
    "results/locater-wikitext-2*",
    "results/kappa-reduced*",
    "results/kappa-short*",
)  # what the notebook reads beside the package, relative to the checkout


def spectrum_course(tables: RunTables) -> pd.DataFrame:
    """Return what the eigenvalues of a head come to: run, seed, kappa, update, epoch, layer, head; a row an evaluation.

    scatter: root of the mean |λ − μ|² over all d_model eigenvalues; relative_spread: scatter over |μ|, 0 for a fully
    concentrated spectrum; rotation: share of Im² in Σ|λ|², 0 for a real spectrum. The zeros beyond the d_head
    eigenvalues in the record count in μ and scatter.
    """
    values = tables.eigenvalues(by=["seed", "kappa", "d_model"])
    values = values.assign(square=values["real"] ** 2 + values["imag"] ** 2, turned=values["imag"] ** 2)
    keys = ["run", "seed", "kappa", "d_model", "update", "epoch", "layer", "head"]
    sums = values.groupby(keys, as_index=False)[["real", "square", "turned"]].sum()
    width = sums["d_model"].astype(float)
    mean = sums["real"] / width
    scatter = ((sums["square"] / width - mean**2).clip(lower=0) ** 0.5).astype(float)
    course = sums.assign(
        scatter=scatter, relative_spread=scatter / mean.abs(), rotation=sums["turned"] / sums["square"]
    )
    return course.drop(columns=["d_model", "real", "square", "turned"])


def ranked_eigenvalues(eigenvalues: pd.DataFrame) -> pd.DataFrame:
    """Return the sizes |λ| of a head from the largest to the smallest, at the last evaluation of its run.

    Returns run, seed, kappa, layer, head, rank (from 1), size.
    """
    last = eigenvalues[eigenvalues["update"] == eigenvalues.groupby("run")["update"].transform("max")]
    sizes = np.hypot(last["real"].to_numpy(float), last["imag"].to_numpy(float))
    table = last[["run", "seed", "kappa", "layer", "head"]].assign(size=sizes)
    table = table.sort_values(["run", "layer", "head", "size"], ascending=[True, True, True, False])
    ranks = table.groupby(["run", "layer", "head"]).cumcount() + 1
    return table.assign(rank=ranks).reset_index(drop=True)


def moment_frames(eigenvalues: pd.DataFrame) -> Iterator[Figure]:
    """Yield one figure again and again, with the eigenvalues of the next epoch in the complex plane, a panel a kappa.

    eigenvalues: kappa, epoch, real, imag, of one seed, with the same epochs for each kappa.
    """
    limit = 1.05 * float(eigenvalues[["real", "imag"]].abs().max().max())
    kappas = [kappa for kappa, _ in by_kappa(eigenvalues)]
    figure, axes = plt.subplots(1, len(kappas), figsize=(WIDTH, 3.5), sharey=True, squeeze=False)
    clouds = {}
    for axis, kappa in zip(axes[0], kappas, strict=True):
        for line in (axis.axhline, axis.axvline):
            line(0, color=INK, linewidth=0.6, zorder=0)
        clouds[kappa] = axis.scatter([], [], s=10, color=kappa_colour(kappa), linewidths=0, alpha=0.8)
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="Re λ")
        axis.set_title(kappa_label(kappa), color=kappa_colour(kappa))
        axis.grid(False)
    axes[0, 0].set_ylabel("Im λ")
    for _, moment in eigenvalues.groupby("epoch"):
        for kappa, values in by_kappa(moment):
            clouds[kappa].set_offsets(values[["real", "imag"]].to_numpy())
        yield figure


def plot_ranked(ranked: pd.DataFrame, axis: Axes) -> None:
    """Draw sizes of eigenvalues from the largest to the smallest, a line a run, colours for kappa; logarithmic.

    ranked: run, kappa, rank, size; runs of one head.
    """
    for kappa, lines in by_kappa(ranked):
        for _, line in lines.groupby("run"):
            axis.plot(line["rank"], line["size"], color=kappa_colour(kappa), linewidth=1.2, alpha=0.8)
    name_colours(axis, {kappa_label(kappa): kappa_colour(kappa) for kappa, _ in by_kappa(ranked)}, (0.05, 0.45))
    axis.set(yscale="log", xlabel="rank of the eigenvalue", ylabel="|λ|")


def plot_over_kappa(table: pd.DataFrame, column: str, axis: Axes) -> None:
    """Draw a measure of runs over kappa, evenly spaced, with the mean and its interval; table: seed, kappa, column."""
    kappas = sorted(table["kappa"].unique())
    for place, (kappa, rows) in enumerate(by_kappa(table)):
        plot_runs(rows[column].astype(float).tolist(), place, axis, kappa_colour(kappa))
    axis.set_xticks(range(len(kappas)), [f"{kappa:g}" for kappa in kappas])
    axis.set_xlabel("κ")
    axis.grid(axis="x", visible=False)


def run_ends(curves: pd.DataFrame, kappa: float) -> pd.DataFrame:
    """Return seed, arm, d_model, trace, N_W and N_M of the runs with this kappa and of their baselines, at their ends.

    Columns concentration, walk_concentration (N_W, N_M), frobenius, walk_trace, walk_frobenius; one row a run.
    """
    columns = ["seed", "arm", "d_model", *CONCENTRATIONS, "trace", "frobenius", "walk_trace", "walk_frobenius"]
    return with_arms(curves.sort_values("update").groupby("run").tail(1), kappa)[columns]


def concentrates_by_ratio(tables: Tables, least: float) -> Verdict:
    """Judge table ends: seed, arm, d_model, concentration, walk_concentration; `least`: the ratio that is asked for."""
    ratios = concentration_ratios(tables["ends"])
    seeds = len(ratios["N_W"])
    if seeds < FEWEST_SEEDS:
        return Verdict("not run", f"{seeds} paired seeds; at least {FEWEST_SEEDS} are needed")
    holds = sum(max(pair) >= least for pair in zip(*ratios.values(), strict=True))
    highest = max(ratio_interval(values).high for values in ratios.values())
    outcome: Outcome = (
        "reproduced" if passed_by(ratios, least) else "not reproduced" if highest < least else "inconclusive"
    )
    return Verdict(outcome, check_text(ratios), holds, seeds)


def concentrates(tables: Tables) -> Verdict:
    """Judge table ends, as `concentrates_by_ratio`, at twice the baseline's."""
    return concentrates_by_ratio(tables, TWICE)


CLAIMS = (
    Claim(
        name="locater-concentrates",
        chapter="spectrum_in_training",
        provenance="reported",
        statement=(
            "LocAteR concentrates the eigenspectrum: at the end of training N_W of W, or N_M of Σ^½ W Σ^½, is at least "
            "twice the baseline's."
        ),
        conditions="τ = 1, κ = 1e-3, all words of WikiText-2, eleven passes, one layer, one head, five seeds",
        rule=(
            "Ratio of N to the baseline of the same seed, geometric mean over seeds with its 95% t interval: "
            "reproduced when for N_W or for N_M it is at least 2 and the interval lies above 1."
        ),
        refuted_by="both intervals below 2; inconclusive otherwise",
        tables=("ends",),
        judge=concentrates,
        figure="fig-training-moments",
        threshold=Threshold(
            "least ratio of N_W or N_M to the baseline's",
            TWICE,
            (1.0, 1.25, 1.5, TWICE, 3.0, 4.0),
            concentrates_by_ratio,
        ),
    ),
)

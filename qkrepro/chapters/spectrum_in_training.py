"""What the recorded eigenvalues of a run come to: histograms over training, spread about the mean, rotation.

Source: book, "The eigenspectrum in training".
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm

from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.outcomes import (
    CONCENTRATIONS,
    TWICE,
    check_text,
    concentration_ratios,
    passed_by,
    ratio_interval,
)
from qkrepro.evidence.paired_runs import FEWEST_SEEDS
from qkrepro.evidence.run_figures import EPOCHS, by_kappa, kappa_colour, kappa_label, label_empty, points
from qkrepro.training.tables import RunTables

READS = (
    "results/locater-wikitext-2*",
    "results/kappa-reduced*",
    "results/kappa-short*",
)  # what the notebook reads beside the package, relative to the checkout


def spectrum_histogram(eigenvalues: pd.DataFrame, edges: Sequence[float]) -> pd.DataFrame:
    """Share of eigenvalues by their real part over training: kappa, epoch, left, right, share.

    eigenvalues: kappa, epoch, real; all seeds of a kappa together. What lies outside the edges counts in the outermost.
    """
    inner = np.asarray(edges[1:-1], dtype=float)
    rows = []
    for (kappa, epoch), group in eigenvalues.groupby(["kappa", "epoch"]):
        counts = np.bincount(np.searchsorted(inner, group["real"].to_numpy()), minlength=len(edges) - 1)
        shares = zip(edges[:-1], edges[1:], counts / len(group), strict=True)
        rows += [{"kappa": kappa, "epoch": epoch, "left": a, "right": b, "share": share} for a, b, share in shares]
    return pd.DataFrame(rows, columns=["kappa", "epoch", "left", "right", "share"])


def spectrum_course(tables: RunTables) -> pd.DataFrame:
    """One row a head and an evaluation: run, seed, kappa, update, epoch, layer, head, and what its eigenvalues come to.

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
    found = sums.assign(scatter=scatter, relative_spread=scatter / mean.abs(), rotation=sums["turned"] / sums["square"])
    return found.drop(columns=["d_model", "real", "square", "turned"])


def ranked_eigenvalues(eigenvalues: pd.DataFrame) -> pd.DataFrame:
    """Sizes |λ| of each head from the largest to the smallest, at the last evaluation of each run.

    Returns run, seed, kappa, layer, head, rank (from 1), size.
    """
    last = eigenvalues[eigenvalues["update"] == eigenvalues.groupby("run")["update"].transform("max")]
    sizes = np.hypot(last["real"].to_numpy(float), last["imag"].to_numpy(float))
    table = last[["run", "seed", "kappa", "layer", "head"]].assign(size=sizes)
    table = table.sort_values(["run", "layer", "head", "size"], ascending=[True, True, True, False])
    ranks = table.groupby(["run", "layer", "head"]).cumcount() + 1
    return table.assign(rank=ranks).reset_index(drop=True)


def plot_spectrum_over_time(histogram: pd.DataFrame, axes: Sequence[Axes]) -> QuadMesh:
    """The histogram of real parts over epochs as a map, one panel a kappa; returns a mesh for the colour bar.

    histogram: as `qkrepro.chapters.spectrum_in_training.spectrum_histogram` gives it. Colours are logarithmic; a cell
    without an eigenvalue is empty.
    """
    norm = LogNorm(max(float(histogram.loc[histogram["share"] > 0, "share"].min()), 1e-3), 1)
    for axis, (kappa, rows) in zip(axes, by_kappa(histogram), strict=True):
        grid = rows.pivot(index="left", columns="epoch", values="share").sort_index()
        edges = [*grid.index, float(rows["right"].max())]
        epochs = grid.columns.to_numpy(float)
        middle = (epochs[1:] + epochs[:-1]) / 2
        across = np.concatenate([epochs[:1], middle, epochs[-1:]]) if len(epochs) > 1 else [-0.5, 0.5]
        shares = np.ma.masked_equal(grid.to_numpy(float), 0)
        mesh = axis.pcolormesh(across, edges, shares, cmap="cividis", norm=norm, rasterized=True)
        axis.axhline(0, color="0.5", linewidth=0.6)
        axis.set(title=kappa_label(kappa), xlabel=EPOCHS)
        axis.grid(False)
    axes[0].set_ylabel("Re λ")
    return mesh


def plot_ranked(ranked: pd.DataFrame, axis: Axes) -> None:
    """Sizes of eigenvalues from the largest to the smallest, a line a run, colours for kappa; logarithmic.

    ranked: run, kappa, rank, size; runs of one head.
    """
    if ranked.empty:
        return label_empty(axis)
    for kappa, lines in by_kappa(ranked):
        for number, (_, line) in enumerate(lines.groupby("run")):
            label = kappa_label(kappa) if number == 0 else None
            axis.plot(line["rank"], line["size"], color=kappa_colour(kappa), linewidth=1.2, alpha=0.8, label=label)
    axis.set(yscale="log", xlabel="rank of the eigenvalue", ylabel="|λ|")
    return None


def plot_over_kappa(table: pd.DataFrame, column: str, axis: Axes) -> None:
    """A measure of each run over kappa, evenly spaced, with the mean and its interval; table: seed, kappa, `column`."""
    if table.empty:
        return label_empty(axis)
    for place, (kappa, rows) in enumerate(by_kappa(table)):
        points(rows[column].astype(float).tolist(), place, axis, kappa_colour(kappa), "black")
    kappas = sorted(table["kappa"].unique())
    axis.set_xticks(range(len(kappas)), [f"{kappa:g}" for kappa in kappas])
    axis.set_xlabel("κ")
    axis.grid(axis="x", visible=False)
    return None


def run_ends(curves: pd.DataFrame, kappa: float) -> pd.DataFrame:
    """Return seed, arm, d_model, trace, N_W and N_M of the runs with this kappa and of their baselines, at their ends.

    Columns concentration, walk_concentration (N_W, N_M), frobenius, walk_trace, walk_frobenius; one row a run.
    """
    last = curves[curves["kappa"].isin([0.0, kappa])].sort_values("update").groupby("run").tail(1)
    last = last.assign(arm=np.where(last["kappa"] == 0, "baseline", "locater"))
    columns = ["seed", "arm", "d_model", *CONCENTRATIONS, "trace", "frobenius", "walk_trace", "walk_frobenius"]
    return last[columns].sort_values(["arm", "seed"]).reset_index(drop=True)


def concentrates_by_ratio(tables: Tables, least: float) -> Verdict:
    """Table ends: seed, arm, d_model, concentration, walk_concentration; `least`: the ratio that is asked for."""
    ratios = concentration_ratios(tables["ends"])
    seeds = len(ratios["N_W"])
    if seeds < FEWEST_SEEDS:
        return Verdict("not run", f"{seeds} paired seeds; at least {FEWEST_SEEDS} are needed")
    holds = sum(max(each) >= least for each in zip(*ratios.values(), strict=True))
    highest = max(ratio_interval(values).high for values in ratios.values())
    outcome: Outcome = (
        "reproduced" if passed_by(ratios, least) else "not reproduced" if highest < least else "inconclusive"
    )
    return Verdict(outcome, check_text(ratios), holds, seeds)


def concentrates(tables: Tables) -> Verdict:
    """Table ends, as `concentrates_by_ratio`, at twice the baseline's."""
    return concentrates_by_ratio(tables, TWICE)


CLAIMS = (
    Claim(
        name="locater-concentrates",
        chapter="spectrum_in_training",
        provenance="reported",
        statement=(
            "LocAteR concentrates the eigenspectrum: at the end of training N_W of W, or N_M of Σ^½ W Σ^½, is at least "
            "twice the baseline's (τ = 1, κ = 1e-3, all words of WikiText-2, eleven passes, one layer, one head, five "
            "seeds)."
        ),
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

"""What the recorded eigenvalues of a run come to: histograms over training, spread about the mean, rotation.

Source: book, "The eigenspectrum in training".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm

from qkrepro.evidence.run_figures import EPOCHS, by_kappa, kappa_colour, kappa_label, label_empty, plain_log, points
from qkrepro.evidence.wording import passes, signed
from qkrepro.training.tables import NOT_RUN, RunTables

MOMENTS = ("trace", "eigen_mean", "frobenius", "trace_square", "eigen_variance")


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


def plot_over_kappa(table: pd.DataFrame, column: str, axis: Axes, *, log: bool = False) -> None:
    """A measure of each run over kappa, evenly spaced, with the mean and its interval; table: seed, kappa, `column`."""
    if table.empty:
        return label_empty(axis)
    for place, (kappa, rows) in enumerate(by_kappa(table)):
        points(rows[column].astype(float).tolist(), place, axis, kappa_colour(kappa), "black")
    kappas = sorted(table["kappa"].unique())
    axis.set_xticks(range(len(kappas)), [f"{kappa:g}" for kappa in kappas])
    axis.set_xlabel("κ")
    axis.grid(axis="x", visible=False)
    if log:
        plain_log(axis)
    return None


def add_mean_axis(axis: Axes, d_model: int) -> None:
    """A second scale on the right of an axis of the trace: the mean over d_model eigenvalues."""

    def mean(trace: Any) -> Any:
        return np.asarray(trace) / d_model

    def trace(mean: Any) -> Any:
        return np.asarray(mean) * d_model

    right = axis.secondary_yaxis("right", functions=(mean, trace))
    right.set_ylabel("mean μ", fontsize="small")
    right.tick_params(labelsize="small")


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

"""Figures of training runs, from the tables of `qkrepro.run_tables` and `qkrepro.run_comparisons` to axes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from qkrepro.run_comparisons import mean_interval
from qkrepro.wording import passes

BASELINE_COLOUR = "0.25"
EPOCHS = "passes over the text"


def kappa_colour(kappa: float) -> Any:
    """One colour for each strength of the regulariser in every figure: dark grey for none, viridis above."""
    if kappa == 0:
        return BASELINE_COLOUR
    return mpl.colormaps["viridis"](float(np.clip(0.1 + (math.log10(kappa) + 4) * 0.25, 0, 0.85)))


def kappa_label(kappa: float) -> str:
    """What legends call it: "κ = 0 (baseline)", "κ = 0.001"."""
    return "κ = 0 (baseline)" if kappa == 0 else f"κ = {kappa:g}"


def epoch_label(epoch: float) -> str:
    """What the title of a panel calls a moment of training: "start", "after 0.25 passes", "after 1 pass"."""
    return "start" if epoch == 0 else f"after {passes(epoch)}"


def label_empty(axis: Axes, text: str = "not run") -> None:
    """Say in the middle of an empty axes why it is empty."""
    axis.text(0.5, 0.5, text, ha="center", va="center", color="0.4", transform=axis.transAxes)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


def plot_means(means: pd.DataFrame, axis: Axes, *, log: bool = False) -> None:
    """Mean over seeds with its interval over epochs, one line a kappa; means: kappa, epoch, estimate, low, high."""
    if means.empty:
        return label_empty(axis)
    for kappa, line in _by_kappa(means):
        _band(line, axis, kappa_colour(kappa), kappa_label(kappa))
    axis.set_xlabel(EPOCHS)
    if log:
        _plain_log(axis)
    return None


def plot_paired_over_training(differences: pd.DataFrame, means: pd.DataFrame, axis: Axes) -> None:
    """Differences to the baseline over epochs: thin lines for the seeds, the mean and its interval.

    differences: seed, kappa, epoch, difference. means: kappa, epoch, estimate, low, high.
    """
    if differences.empty:
        return label_empty(axis)
    axis.axhline(0, color="0.5", linewidth=1)
    for kappa, runs in _by_kappa(differences):
        for _, line in runs.groupby("seed"):
            axis.plot(line["epoch"], line["difference"], color=kappa_colour(kappa), linewidth=0.7, alpha=0.6)
    for kappa, line in _by_kappa(means):
        _band(line, axis, kappa_colour(kappa), kappa_label(kappa))
    axis.set_xlabel(EPOCHS)
    return None


def plot_paired_points(pairs: Mapping[str, pd.DataFrame], axis: Axes) -> None:
    """Differences to the baseline, a row of points for each name, a point a seed, with their mean and its interval.

    pairs: name to a table with seed and difference; a name without a pair reads "not run".
    """
    axis.axvline(0, color="0.5", linewidth=1)
    for place, table in enumerate(pairs.values()):
        if table.empty:
            axis.annotate("not run", (0.5, place), xycoords=("axes fraction", "data"), ha="center", va="center")
            axis.texts[-1].set_color("0.4")
            continue
        values = table["difference"].astype(float).tolist()
        axis.plot(values, [place - 0.18] * len(values), "o", markersize=4, color="C0", alpha=0.7)
        mean = mean_interval(values)
        bar = [[mean.estimate - mean.low], [mean.high - mean.estimate]] if len(values) > 1 else None
        axis.errorbar([mean.estimate], [place + 0.12], xerr=bar, fmt="D", markersize=5, capsize=4, color="black")
    if all(table.empty for table in pairs.values()):
        axis.set_xticks([])
    axis.set_yticks(range(len(pairs)), list(pairs))
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def plot_against_variance(kappas: pd.DataFrame, column: str, axis: Axes) -> None:
    """A measure of each run against its eigenvalue variance: a line a seed, colours for kappa.

    kappas: seed, kappa, eigen_variance, `column`. The variance axis is logarithmic where all variances are positive.
    """
    if kappas.empty:
        return label_empty(axis)
    for _, line in kappas.sort_values("eigen_variance").groupby("seed"):
        axis.plot(line["eigen_variance"], line[column], color="0.75", linewidth=1, zorder=1)
    for kappa, points in _by_kappa(kappas):
        style: dict[str, Any] = {"color": kappa_colour(kappa), "label": kappa_label(kappa)}
        axis.scatter(points["eigen_variance"].tolist(), points[column].tolist(), s=34, zorder=2, **style)
    axis.set_xlabel(r"eigenvalue variance over $d_{model}$")
    if (kappas["eigen_variance"] > 0).all():
        axis.set_xscale("log")
    return None


def plot_floor(floor: float, frequencies: float, axis: Axes) -> None:
    """Two dotted lines on an axis of perplexity: the least there is, and that of word frequencies alone."""
    for value, name in ((frequencies, "word frequencies alone"), (floor, "least there is")):
        axis.axhline(value, color="0.4", linestyle=":", linewidth=1.2)
        where: dict[str, Any] = {"xy": (0.99, value), "xycoords": ("axes fraction", "data"), "xytext": (0, 2)}
        axis.annotate(name, **where, textcoords="offset points", ha="right", va="bottom", fontsize=8, color="0.3")
    axis.set_ylim(0.92 * floor, 1.25 * max(frequencies, axis.get_ylim()[1] / 1.2))


def plot_spectra(eigenvalues: pd.DataFrame, axes: Any) -> None:
    """Eigenvalues in the complex plane, a row of panels a kappa and a column an epoch; all panels have one scale.

    eigenvalues: kappa, epoch, real, imag. axes: (kappas, epochs).
    """
    limit = 1.05 * float(eigenvalues[["real", "imag"]].abs().max().max())
    for across, (kappa, of_row) in zip(axes, _by_kappa(eigenvalues), strict=True):
        for axis, (epoch, points) in zip(across, of_row.groupby("epoch"), strict=True):
            axis.axhline(0, color="0.7", linewidth=0.6, zorder=0)
            axis.axvline(0, color="0.7", linewidth=0.6, zorder=0)
            axis.scatter(points["real"], points["imag"], s=9, color=kappa_colour(kappa), linewidths=0, alpha=0.8)
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            if axis in axes[0]:
                axis.set_title(epoch_label(float(str(epoch))))
            axis.grid(False)
        across[0].set_ylabel(f"{kappa_label(kappa)}\nIm λ")
    for axis in axes[-1]:
        axis.set_xlabel("Re λ")


def plot_spectrum_over_time(histogram: pd.DataFrame, axes: Sequence[Axes]) -> QuadMesh:
    """The histogram of real parts over epochs as a map, one panel a kappa; returns a mesh for the colour bar.

    histogram: as `qkrepro.run_spectra.spectrum_histogram` gives it. Colours are logarithmic; a cell without an
    eigenvalue is empty.
    """
    norm = LogNorm(max(float(histogram.loc[histogram["share"] > 0, "share"].min()), 1e-3), 1)
    for axis, (kappa, rows) in zip(axes, _by_kappa(histogram), strict=True):
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
    for kappa, lines in _by_kappa(ranked):
        for number, (_, line) in enumerate(lines.groupby("run")):
            label = kappa_label(kappa) if number == 0 else None
            axis.plot(line["rank"], line["size"], color=kappa_colour(kappa), linewidth=1.2, alpha=0.8, label=label)
    axis.set(yscale="log", xlabel="rank of the eigenvalue", ylabel="|λ|")
    return None


def plot_over_kappa(table: pd.DataFrame, column: str, axis: Axes, *, log: bool = False) -> None:
    """A measure of each run over kappa, evenly spaced, with the mean and its interval; table: seed, kappa, `column`."""
    if table.empty:
        return label_empty(axis)
    for place, (kappa, rows) in enumerate(_by_kappa(table)):
        _points(rows[column].astype(float).tolist(), place, axis, kappa_colour(kappa), "black")
    kappas = sorted(table["kappa"].unique())
    axis.set_xticks(range(len(kappas)), [f"{kappa:g}" for kappa in kappas])
    axis.set_xlabel("κ")
    axis.grid(axis="x", visible=False)
    if log:
        _plain_log(axis)
    return None


def plot_shapes(shapes: pd.DataFrame, order: Sequence[tuple[int, int]], column: str, axis: Axes) -> None:
    """A measure by shape: points for the runs, their mean and its interval, colours for kappa.

    shapes: layers, heads, seed, kappa, `column`. order: all (layers, heads); a shape without a run reads "not run".
    """
    kappas = sorted(shapes["kappa"].unique())
    for place, (layers, heads) in enumerate(order):
        here = shapes[(shapes["layers"] == layers) & (shapes["heads"] == heads)]
        if here.empty:
            where: dict[str, Any] = {"xy": (place, 0.5), "xycoords": ("data", "axes fraction")}
            axis.annotate("not run", **where, rotation=90, ha="center", va="center", color="0.4")
        for kappa, rows in _by_kappa(here):
            shift = 0.4 * (kappas.index(kappa) - (len(kappas) - 1) / 2)
            _points(rows[column].astype(float).tolist(), place + shift, axis, kappa_colour(kappa), kappa_colour(kappa))
    axis.set_xticks(range(len(order)), [f"{layers} × {heads}" for layers, heads in order])
    axis.set(xlabel="layers × heads", xlim=(-0.6, len(order) - 0.4))
    if shapes.empty:
        axis.set_yticks([])
    axis.grid(axis="x", visible=False)


def add_mean_axis(axis: Axes, d_model: int) -> None:
    """A second scale on the right of an axis of the trace: the mean over d_model eigenvalues."""

    def mean(trace: Any) -> Any:
        return np.asarray(trace) / d_model

    def trace(mean: Any) -> Any:
        return np.asarray(mean) * d_model

    right = axis.secondary_yaxis("right", functions=(mean, trace))
    right.set_ylabel("mean μ", fontsize="small")
    right.tick_params(labelsize="small")


def plot_heads(heads: pd.DataFrame, axis: Axes) -> None:
    """A measure of each head of each run, points by layer, colours for kappa; heads: kappa, layer, value."""
    if heads.empty:
        return label_empty(axis)
    palette = {kappa: kappa_colour(kappa) for kappa in sorted(heads["kappa"].unique())}
    rows = heads.assign(layer=heads["layer"] + 1)
    style: dict[str, Any] = {"hue": "kappa", "palette": palette, "dodge": True, "jitter": False, "size": 4}
    sns.stripplot(rows, x="layer", y="value", legend=False, alpha=0.7, ax=axis, **style)
    return None


def legend_kappas(axis: Axes, kappas: Sequence[float], **options: Any) -> None:
    """A legend of kappas for panels that share their colours."""
    lines = [mpl.lines.Line2D([], [], color=kappa_colour(kappa), marker="o", markersize=4) for kappa in kappas]
    axis.legend(lines, [kappa_label(kappa) for kappa in kappas], **options)


def _by_kappa(table: pd.DataFrame) -> Iterator[tuple[float, pd.DataFrame]]:
    for kappa in sorted(table["kappa"].unique()):
        yield float(kappa), table[table["kappa"] == kappa]


def _points(values: Sequence[float], place: float, axis: Axes, colour: Any, dark: Any) -> None:
    """Points of runs beside their mean and its interval, at one place of an axis of categories."""
    mean = mean_interval(values)
    bar = [[mean.estimate - mean.low], [mean.high - mean.estimate]] if len(values) > 1 else None
    axis.plot([place - 0.1] * len(values), values, "o", markersize=3.5, color=colour, alpha=0.6)
    axis.errorbar([place + 0.08], [mean.estimate], yerr=bar, fmt="D", markersize=4.5, capsize=3, color=dark)


def _band(line: pd.DataFrame, axis: Axes, colour: Any, label: str) -> None:
    epochs = line["epoch"].to_numpy(float)
    axis.plot(epochs, line["estimate"].to_numpy(float), color=colour, label=label, linewidth=1.8)
    low, high = line["low"].to_numpy(float), line["high"].to_numpy(float)
    axis.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _plain_log(axis: Axes) -> None:
    """A logarithmic axis whose few ticks read as plain numbers."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    steps = [step * 10.0**power for power in range(-3, 6) for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7)]
    ticks = [step for step in steps if low <= step <= high]
    if len(ticks) < 3:  # a narrow range: the usual ticks of a linear axis
        ticks = [step for step in MaxNLocator(5).tick_values(low, high) if low <= step <= high]
    axis.set_yticks(ticks)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())

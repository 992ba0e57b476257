"""Figures of training runs that several chapters share, from tidy tables to axes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from qkrepro.evidence.wording import passes
from qkrepro.theory.statistics import mean_interval

BASELINE_COLOUR = "0.25"
EPOCHS = "passes over the text"
Style = Mapping[str, Any]


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
    for kappa, line in by_kappa(means):
        _band(line, axis, kappa_colour(kappa), kappa_label(kappa))
    axis.set_xlabel(EPOCHS)
    if log:
        plain_log(axis)
    return None


def plot_paired_over_training(differences: pd.DataFrame, means: pd.DataFrame, axis: Axes) -> None:
    """Differences to the baseline over epochs: thin lines for the seeds, the mean and its interval.

    differences: seed, kappa, epoch, difference. means: kappa, epoch, estimate, low, high.
    """
    if differences.empty:
        return label_empty(axis)
    axis.axhline(0, color="0.5", linewidth=1)
    for kappa, runs in by_kappa(differences):
        for _, line in runs.groupby("seed"):
            axis.plot(line["epoch"], line["difference"], color=kappa_colour(kappa), linewidth=0.7, alpha=0.6)
    for kappa, line in by_kappa(means):
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
    for across, (kappa, of_row) in zip(axes, by_kappa(eigenvalues), strict=True):
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


def legend_kappas(axis: Axes, kappas: Sequence[float], **options: Any) -> None:
    """A legend of kappas for panels that share their colours."""
    lines = [mpl.lines.Line2D([], [], color=kappa_colour(kappa), marker="o", markersize=4) for kappa in kappas]
    axis.legend(lines, [kappa_label(kappa) for kappa in kappas], **options)


def by_kappa(table: pd.DataFrame) -> Iterator[tuple[float, pd.DataFrame]]:
    """Yield each kappa of the table, from the smallest, with its rows."""
    for kappa in sorted(table["kappa"].unique()):
        yield float(kappa), table[table["kappa"] == kappa]


def points(values: Sequence[float], place: float, axis: Axes, colour: Any, dark: Any) -> None:
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


def plain_log(axis: Axes) -> None:
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


def plot_lines(means: pd.DataFrame, by: str, x: str, styles: Mapping[str, Style], axis: Axes) -> None:
    """Mean lines with their intervals, one a name of `styles` that is in column `by`; "not run" without any.

    means: `by`, `x`, estimate, low, high; a NaN end of an interval is not drawn.
    """
    if means.empty:
        return label_empty(axis)
    for name, style in styles.items():
        line = means[means[by] == name].sort_values(x)
        places, low, high = (line[column].to_numpy(float) for column in (x, "low", "high"))
        if len(line):
            axis.plot(places, line["estimate"].to_numpy(float), **{"linewidth": 1.8, **style})
            axis.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)
    return None


def shared_legend(axes: Sequence[Axes], **options: Any) -> None:
    """One legend for panels that share their lines, outside at the right of their figure."""
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        if handles:
            axis.figure.legend(handles, labels, **{"loc": "outside lower center", "ncols": len(labels), **options})
            return

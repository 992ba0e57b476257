"""Figures of training runs that several chapters share, from tidy tables to axes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from qkrepro.evidence.style import COLOURS, INK
from qkrepro.evidence.wording import passes
from qkrepro.theory.statistics import mean_interval

EPOCHS = "passes over the text"
Style = Mapping[str, Any]


def kappa_colour(kappa: float) -> Any:
    """Return the colour of a strength: grey without the regulariser, and LocAteR's own, darker for a stronger one."""
    if kappa == 0:
        return COLOURS["baseline"]
    shade = float(np.clip(math.log10(kappa) + 3, -1, 2)) / 6  # 0 for κ = 0.001, which the chapters judge
    towards = np.array(colors.to_rgb("white" if shade < 0 else "black"))
    mixed = (1 - abs(shade)) * np.array(colors.to_rgb(COLOURS["locater"])) + abs(shade) * towards
    return tuple(mixed.tolist())


def kappa_label(kappa: float) -> str:
    """Return what figures call a strength: "baseline", "κ = 0.001"."""
    return "baseline" if kappa == 0 else f"κ = {kappa:g}"


def epoch_label(epoch: float) -> str:
    """Return what the title of a panel calls a moment of training: "start", "after 0.25 passes", "after 1 pass"."""
    return "start" if epoch == 0 else f"after {passes(epoch)}"


def label_empty(axis: Axes) -> None:
    """Write "not run" into the middle of an empty axes."""
    axis.text(0.5, 0.5, "not run", ha="center", va="center", color=INK, transform=axis.transAxes)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


def plot_lines(means: pd.DataFrame, by: str, x: str, styles: Mapping[Any, Style], axis: Axes) -> None:
    """Draw mean lines with their intervals on the axis, one per name of `styles` in column `by`; "not run" without any.

    means: `by`, `x`, estimate, low, high; a NaN end of an interval is not drawn.
    """
    if means.empty:
        return label_empty(axis)
    for name, style in styles.items():
        line = means[means[by] == name].sort_values(x)
        places, low, high = (line[column].to_numpy(float) for column in (x, "low", "high"))
        if len(line):
            axis.plot(places, line["estimate"].to_numpy(float), **{"linewidth": 1.8, **style})
            axis.fill_between(places, low, high, color=style["color"], alpha=0.2, linewidth=0)
    return None


def plot_means(means: pd.DataFrame, axis: Axes, *, log: bool = False) -> None:
    """Draw means over seeds with their intervals over epochs, one line per kappa; log: a logarithmic axis of values.

    means: kappa, epoch, estimate, low, high.
    """
    styles = {kappa: {"color": kappa_colour(kappa), "label": kappa_label(kappa)} for kappa, _ in by_kappa(means)}
    plot_lines(means, "kappa", "epoch", styles, axis)
    if styles:
        axis.set_xlabel(EPOCHS)
    if styles and log:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())


def plot_paired_over_training(differences: pd.DataFrame, means: pd.DataFrame, axis: Axes) -> None:
    """Draw differences to the baseline over epochs: thin lines for the seeds, the mean and its interval.

    differences: seed, kappa, epoch, difference. means: kappa, epoch, estimate, low, high.
    """
    if differences.empty:
        return label_empty(axis)
    axis.axhline(0, color=INK, linewidth=1)
    for kappa, runs in by_kappa(differences):
        for _, line in runs.groupby("seed"):
            axis.plot(line["epoch"], line["difference"], color=kappa_colour(kappa), linewidth=0.7, alpha=0.6)
    return plot_means(means, axis)


def plot_runs(values: Sequence[float], place: float, axis: Axes, colour: Any, *, across: bool = False) -> None:
    """Draw runs as points of a colour beside their mean with its 95% interval, at one place of an axis of categories.

    across: values run along the horizontal axis and places down the vertical one, not the other way round.
    """
    mean = mean_interval(values)
    bar = [[mean.estimate - mean.low], [mean.high - mean.estimate]] if len(values) > 1 else None
    points, middle = (list(values), [place - 0.14] * len(values)), ([mean.estimate], [place + 0.1])
    style: dict[str, Any] = {"fmt": "D", "markersize": 4.5, "capsize": 3, "color": colour}
    style |= {"xerr" if across else "yerr": bar}
    axis.plot(*(points if across else points[::-1]), "o", markersize=4, color=colour, alpha=0.6)
    axis.errorbar(*(middle if across else middle[::-1]), **style)


def plot_paired_points(pairs: Mapping[str, pd.DataFrame], axis: Axes) -> None:
    """Draw differences to the baseline, one row per name and one point per seed, with their mean and its interval.

    pairs: name to a table with column difference; a name without a pair reads "not run".
    """
    axis.axvline(0, color=INK, linewidth=1)
    for place, table in enumerate(pairs.values()):
        if table.empty:
            where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "center", "va": "center"}
            axis.annotate("not run", (0.5, place), color=INK, **where)
        else:
            plot_runs(table["difference"].astype(float).tolist(), place, axis, COLOURS["locater"], across=True)
    axis.set_yticks(range(len(pairs)), list(pairs))
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def plot_floor(floor: float, frequencies: float, axis: Axes) -> None:
    """Draw two dotted lines on an axis of perplexity: the least there is, and that of word frequencies alone."""
    for value, name in ((frequencies, "word frequencies alone"), (floor, "least there is")):
        axis.axhline(value, color=INK, linestyle=":", linewidth=1.2)
        where: dict[str, Any] = {"xy": (0.02, value), "xycoords": ("axes fraction", "data"), "xytext": (0, -3)}
        axis.annotate(name, **where, textcoords="offset points", va="top", fontsize="small", color=INK)
    axis.set_ylim(0.75 * floor, 1.25 * max(frequencies, axis.get_ylim()[1] / 1.2))


def plot_spectra(eigenvalues: pd.DataFrame, axes: Any) -> None:
    """Draw eigenvalues in the complex plane, one row of panels per kappa and one column per epoch, all on one scale.

    eigenvalues: kappa, epoch, real, imag. axes: (kappas, epochs).
    """
    limit = 1.05 * float(eigenvalues[["real", "imag"]].abs().max().max())
    for row, (kappa, values) in zip(axes, by_kappa(eigenvalues), strict=True):
        for axis, (epoch, points) in zip(row, values.groupby("epoch"), strict=True):
            for line in (axis.axhline, axis.axvline):
                line(0, color=INK, linewidth=0.6, zorder=0)
            axis.scatter(points["real"], points["imag"], s=9, color=kappa_colour(kappa), linewidths=0, alpha=0.8)
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            axis.set_title(f"{kappa_label(kappa)}, {epoch_label(float(str(epoch)))}", fontweight="normal")
            axis.grid(False)
        row[0].set_ylabel("Im λ")
    for axis in axes[-1]:
        axis.set_xlabel("Re λ")


def by_kappa(table: pd.DataFrame) -> Iterator[tuple[float, pd.DataFrame]]:
    """Yield each kappa of the table, from the smallest, with its rows."""
    for kappa in sorted(table["kappa"].unique()):
        yield float(kappa), table[table["kappa"] == kappa]

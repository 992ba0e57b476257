"""Figures of rank and entropy collapse, from the tables of `qkrepro.collapse`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import PowerNorm
from matplotlib.image import AxesImage
from torch import Tensor

from qkrepro.intervals import t_interval
from qkrepro.verdict_rules import HALF

MEAN_LABEL = "mean: trace / temperature, ξ/λ"
DISPERSION_LABEL = "dispersion √(dσ²)/λ"
SAFE_COLOUR = "#d7301f"
HALO = [effects.withStroke(linewidth=2.5, foreground="black")]


def spectrum_name(mean_scaled: float, dispersion: float) -> str:
    """Name of a spectrum in legends: its mean, and how far its eigenvalues scatter."""
    return f"ξ/λ = {_number(mean_scaled)}, dispersion {_number(dispersion)}"


def intervals(table: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Mean over the rows of each group with its 95% t interval: columns of `by`, then estimate, low, high."""
    groups = table.groupby(list(by), sort=False)[column]
    rows = [dict(zip(by, keys, strict=True)) | t_interval(values)._asdict() for keys, values in groups]
    return pd.DataFrame(rows)


def quartiles(table: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Median and quartiles over the rows of each group: columns of `by`, then low, median, high."""
    groups = table.groupby(list(by))[column].quantile(np.array([0.25, 0.5, 0.75])).unstack()
    return groups.set_axis(["low", "median", "high"], axis=1).reset_index()


def plot_attention_patterns(attention: Tensor, titles: Sequence[str], axes: Sequence[Axes]) -> AxesImage:
    """Attention matrices as images, query downwards and key to the right; returns the last image for a colour bar.

    attention: (S, T, T), one matrix an axis. Colours are stretched at small weights (power 0.4).
    """
    length = attention.shape[-1]
    for axis, weights, title in zip(axes, attention, titles, strict=True):
        norm, extent = PowerNorm(0.4, vmin=0, vmax=1), (0.5, length + 0.5, length + 0.5, 0.5)
        image = axis.imshow(weights.numpy(), cmap="cividis", norm=norm, extent=extent)
        axis.set(title=title, xlabel="key", xticks=[1, length], yticks=[1, length])
        axis.grid(False)
    axes[0].set_ylabel("query")
    return image


def plot_depth(
    table: pd.DataFrame, column: str, styles: Mapping[tuple[float, float], dict[str, Any]], axis: Axes
) -> None:
    """A measure over depth: median over seeds, and a band between the quartiles, one line a spectrum.

    table: rows of `depth_experiment`. styles: line style of each spectrum (mean_scaled, dispersion).
    """
    rows = quartiles(table, ["mean_scaled", "dispersion", "layer"], column)
    for (mean, dispersion), style in styles.items():
        line = rows[(rows["mean_scaled"] == mean) & (rows["dispersion"] == dispersion)]
        label = spectrum_name(mean, dispersion)
        axis.plot(line["layer"], line["median"], marker="o", markersize=3, label=label, **style)
        axis.fill_between(line["layer"], line["low"], line["high"], color=style["color"], alpha=0.15, linewidth=0)
    axis.set_xlabel("layers")
    axis.margins(x=0.02)


def plot_entropy_over_dispersion(summary: pd.DataFrame, column: str, axis: Axes) -> None:
    """Entropy ratio over dispersion with 95% intervals, one line a mean.

    summary: mean_scaled, dispersion and the interval (estimate, low, high) of `column`, one row a cell.
    """
    means = sorted(summary["mean_scaled"].unique())
    for number, mean in enumerate(means):
        line, colour = summary[summary["mean_scaled"] == mean], _signed_colour(number, means)
        axis.plot(line["dispersion"], line["estimate"], marker="o", markersize=3, color=colour, label=_number(mean))
        axis.fill_between(line["dispersion"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
    axis.axhline(HALF, color="0.4", linestyle=":", linewidth=1)
    axis.set(xscale="log", ylim=(0, 1.03), xlabel=DISPERSION_LABEL, ylabel=column)


def plot_both(cells: pd.DataFrame, dim: int, axes: Sequence[Axes]) -> QuadMesh:
    """The central map: entropy ratio and residual ratio over (mean, dispersion), the safe cells outlined in both.

    cells: mean_scaled, dispersion, entropy_ratio, residual_ratio, safe; one row a cell of a full grid, dispersions > 0.
    dim: d, for the dotted line σ = |μ|. Dashed line: the ratio is one half. Returns a mesh for the colour bar.
    """
    for axis, column in zip(axes, ("entropy_ratio", "residual_ratio"), strict=True):
        grid = cells.pivot(index="dispersion", columns="mean_scaled", values=column)
        means, dispersions = grid.columns.to_numpy(float), grid.index.to_numpy(float)
        x, y = _edges(means), np.exp(_edges(np.log(dispersions)))
        mesh = axis.pcolormesh(x, y, grid.to_numpy(), cmap="viridis", vmin=0, vmax=1, rasterized=True)
        axis.contour(means, dispersions, grid, levels=[HALF], colors="white", linestyles="--", linewidths=1.3)
        safe = cells.pivot(index="dispersion", columns="mean_scaled", values="safe").to_numpy(bool)
        for colour, width in (("white", 4.6), (SAFE_COLOUR, 2.6)):
            axis.add_collection(LineCollection(_outline(safe, x, y), color=colour, linewidth=width, capstyle="round"))
        fine = np.linspace(x[0], x[-1], 401)
        axis.plot(fine, np.abs(fine) / dim**0.5, color="white", linestyle=":", linewidth=1.3)
        axis.set(xlabel=MEAN_LABEL, yscale="log", xlim=x[[0, -1]], ylim=y[[0, -1]])
        axis.set_yticks(ticks := [t for t in 2.0 ** np.arange(-4, 9) if y[0] < t < y[-1]], [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.grid(False)
        _label_safe(axis, cells[cells["safe"]])
    axes[0].set_ylabel(DISPERSION_LABEL)
    return mesh


def label_region(axis: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """White text with a dark rim, readable on any colour of a map; x and y as fractions of the axes."""
    settings = {"color": "white", "ha": "center", "va": "center", "fontweight": "bold", "fontsize": 10, **style}
    axis.text(x, y, text, path_effects=HALO, transform=axis.transAxes, **settings)


def plot_windows(summary: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Both ratios over the mean, one panel a setting: solid at the least dispersion, dotted at the greatest.

    summary: panel, mean_scaled, dispersion, quantity, estimate, low, high, safe. Means at which the
    least dispersion is safe are shaded.
    """
    for axis, (panel, rows) in zip(axes, summary.groupby("panel", sort=False), strict=True):
        least = rows["dispersion"] == rows["dispersion"].min()
        for quantity, colour in {"entropy": "C0", "difference between tokens": "C1"}.items():
            for name, chosen, line_style in (("concentrated", least, "-"), ("dispersed", ~least, ":")):
                line = rows[chosen & (rows["quantity"] == quantity)].sort_values("mean_scaled")
                label = f"{quantity}, {name}"
                axis.plot(line["mean_scaled"], line["estimate"], line_style, color=colour, label=label, linewidth=1.8)
                axis.fill_between(line["mean_scaled"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
        for low, high in _safe_spans(rows):
            axis.axvspan(low, high, color=SAFE_COLOUR, alpha=0.15, linewidth=0)
        axis.axhline(HALF, color="0.4", linestyle=":", linewidth=1)
        axis.set(title=panel, ylim=(0, 1.08), xlabel="mean ξ/λ")


def plot_bound(table: pd.DataFrame, standard: float, axis: Axes) -> None:
    """Measured entropy and its lower bounds over temperature.

    table: temperature, quantity, estimate, low, high (nats). standard: the temperature √d, marked.
    """
    for number, (quantity, line) in enumerate(table.groupby("quantity", sort=False)):
        colour = ["black", "C2", "C1", "C0"][number % 4]
        axis.plot(line["temperature"], line["estimate"], color=colour, label=quantity, marker="o", markersize=3)
        axis.fill_between(line["temperature"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
    axis.axvline(standard, color="0.4", linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="temperature λ", ylabel="entropy, nats")


def plot_deficit(table: pd.DataFrame, axis: Axes) -> None:
    """Entropy deficit times λ² over temperature: points with 95% intervals from simulation, closed form as lines.

    table: spectrum, temperature, predicted, estimate, low, high (nats). At high temperature the product is constant.
    """
    for number, (spectrum, line) in enumerate(table.groupby("spectrum", sort=False)):
        scale, colour = line["temperature"] ** 2, f"C{number}"
        bars = [scale * (line["estimate"] - line["low"]), scale * (line["high"] - line["estimate"])]
        axis.plot(line["temperature"], scale * line["predicted"], color=colour)
        points: dict[str, Any] = {"fmt": "o", "markersize": 4, "capsize": 2, "color": colour, "label": str(spectrum)}
        axis.errorbar(line["temperature"], scale * line["estimate"], yerr=bars, **points)
    axis.set(xscale="log", yscale="log", xlabel="temperature λ", ylabel="entropy deficit × λ², nats")


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _signed_colour(number: int, means: Sequence[float]) -> str:
    """Blues for negative means, grey for zero, oranges for positive ones, darker for larger."""
    negative, positive = ["#08519c", "#4292c6", "#9ecae1"], ["#fdae6b", "#e6550d", "#8c2d04"]
    below = sum(mean < 0 for mean in means)
    if means[number] == 0:
        return "0.35"
    if means[number] < 0:
        return negative[number % 3]
    return positive[(number - below - (0 in means)) % 3]


def _edges(centres: np.ndarray) -> np.ndarray:
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def _outline(safe: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[list[tuple[float, float]]]:
    """Line segments between safe and other cells (the border of the map counts as other)."""
    padded = np.pad(safe, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])  # a change from one row to the next
    across = [[(x[c], y[r]), (x[c + 1], y[r])] for r, c in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    return across + [[(x[c], y[r]), (x[c], y[r + 1])] for r, c in zip(rows, columns, strict=True)]


def _label_safe(axis: Axes, safe: pd.DataFrame) -> None:
    if not safe.empty:
        middle = (safe["mean_scaled"].mean(), float(np.exp(np.log(safe["dispersion"]).mean())))
        x, y = axis.transAxes.inverted().transform(axis.transData.transform(middle))
        label_region(axis, x, y, "safe", fontsize=13)


def _safe_spans(rows: pd.DataFrame) -> list[tuple[float, float]]:
    cells = rows[rows["dispersion"] == rows["dispersion"].min()].groupby("mean_scaled")["safe"].first()
    edges = _edges(cells.index.to_numpy(float))
    return [(edges[i], edges[i + 1]) for i, safe in enumerate(cells) if safe]

"""The one style that the figures share: one family on light and dark pages, fixed colours, labels at the lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

WIDTH = 6.4  # inches, of every figure; shown 768 px wide its 10-point text has 17 px, on a phone 9 px
INK = "#79818a"  # text and axes; a contrast of 4 on the white page and on the dark one
COLOURS = {
    "concentrated": "#1f86d0",
    "dispersed": "#d55e00",
    "locater": "#029e73",
    "baseline": "#808080",
}  # what a colour means in every chapter; each has a contrast of 3.4 or more on either ground
PALETTE = [*list(COLOURS.values())[:3], "#b565b5", "#a87900", "#808080"]
STYLE = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.formatter.use_mathtext": True,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.dpi": 200,  # twice what a page shows, for dense screens
    "figure.facecolor": "none",
    "figure.figsize": (WIDTH, 3.8),
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 10,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "hatch.color": INK,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.title_fontsize": 9,
    "lines.linewidth": 1.8,
    "patch.edgecolor": INK,
    "savefig.bbox": "tight",
    "savefig.dpi": 200,
    "savefig.facecolor": "none",
    "svg.hashsalt": "qkrepro",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 9,
    "ytick.color": INK,
    "ytick.labelsize": 9,
}
MEAN_LABEL = "mean: trace / temperature, ξ/λ"
DISPERSION_LABEL = "dispersion √(dσ²)/λ"
QUANTITIES = {
    "frobenius_cov": r"$\Vert\Sigma^{1/2}W\Sigma^{1/2}\Vert_F\,/\,\lambda$",
    "trace_cov": r"$\mathrm{tr}\,W\Sigma\,/\,\lambda$",
    "frobenius": r"$\Vert W\Vert_F\,/\,\lambda$",
    "spectral_norm": r"$\Vert W\Vert_2\,/\,\lambda$",
    "trace": r"$\mathrm{tr}\,W\,/\,\lambda$",
    "relative_variance": r"$\sigma^2/\mu^2$",
    "index": "localization index",
    "level": "propagation level",
    "centre": "localization centre",
    "trace_z": "trace against chance",
}


def use_style() -> None:
    """Set the style of every figure in the book: no ground of its own, text that is readable on light and dark pages.

    The colours are for colour-blind readers too. Changes matplotlib's global settings; raises nothing.
    """
    sns.set_theme(style="ticks", palette=PALETTE, rc=STYLE)


def interval_ends(rows: pd.DataFrame) -> "list[pd.Series[float]]":
    """Return how far each interval reaches below and above its estimate, as matplotlib's `yerr` wants it."""
    return [rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]


def draw_intervals(axis: Axes, x: Sequence[float] | pd.Series, rows: pd.DataFrame, **look: Any) -> None:
    """Draw a point at each estimate with its interval; rows: estimate, low, high. look: as `Axes.errorbar` takes it."""
    settings: dict[str, Any] = {"fmt": "o", "markersize": 4, **look}
    axis.errorbar(x, rows["estimate"], yerr=interval_ends(rows), **settings)


def label_lines(axis: Axes, *, gap: float = 0.08, offset: float = 4) -> None:
    """Write the label of each line at its right end in its colour, instead of a legend.

    gap: least vertical distance of two labels, as a share of the axis. offset: distance from the line, in points.
    Labels that would overlap are moved apart. Call it when limits and scales are set; lines whose label begins with an
    underscore, as matplotlib names lines without one, are left out.
    """
    lines = [line for line in axis.get_lines() if not str(line.get_label()).startswith("_")]
    ends = [np.asarray(line.get_xydata())[-1] for line in lines]
    axis.autoscale_view()
    heights = [axis.transAxes.inverted().transform(axis.transData.transform(end))[1] for end in ends]
    places = dict.fromkeys(range(len(lines)), 0.0)
    below = -np.inf
    for index in np.argsort(heights, kind="stable"):  # from the lowest up, each at least a gap above the one below it
        below = max(min(max(heights[index], 0.0), 1.0), below + gap)
        places[int(index)] = below
    excess = max(0.0, max(places.values(), default=0.0) - 1.0)
    for index, line in enumerate(lines):
        axis.annotate(
            str(line.get_label()),
            (ends[index][0], places[index] - excess),
            xycoords=("data", "axes fraction"),
            xytext=(offset, 0),
            textcoords="offset points",
            color=line.get_color(),
            va="center",
            fontsize="small",
            annotation_clip=False,
        )


def name_colours(axis: Axes, colours: Mapping[str, Any], place: tuple[float, float], *, gap: float = 0.08) -> None:
    """Write what colours mean, a line a name in its colour, instead of a legend.

    colours: name to colour. place: of the first name's upper left corner, as shares of the axes. gap: down to the next.
    """
    for number, (name, colour) in enumerate(colours.items()):
        where: dict[str, Any] = {"va": "top", "fontsize": "small", "transform": axis.transAxes}
        axis.text(place[0], place[1] - gap * number, name, color=colour, **where)


def plot_correlations(table: pd.DataFrame, ax: Axes, target: str = "entropy") -> None:
    """Draw rank correlations with their intervals, one line per quantity; table: quantity, correlation, low, high."""
    place = np.arange(len(table))[::-1]
    middle = table["correlation"].to_numpy()
    error = np.stack([middle - table["low"].to_numpy(), table["high"].to_numpy() - middle])
    ax.errorbar(middle, place, xerr=error, fmt="o", capsize=3)
    ax.axvline(0, color=INK, linewidth=1)
    ax.set(xlim=(-1, 1), xlabel=f"rank correlation with {target}")
    ax.set_yticks(place, [QUANTITIES[name] for name in table["quantity"]])
    ax.grid(axis="y", visible=False)


def plot_strip(rows: Mapping[str, Sequence[float]], words: Sequence[str], axis: Axes, title: str) -> None:
    """Shade each word of a sentence by a share from 0 to 1, one line of the sentence per row; rows: name -> shares."""
    shares = np.array([np.asarray(values, dtype=float) for values in rows.values()])  # (rows, words)
    colour = np.broadcast_to(to_rgb(COLOURS["concentrated"]), (*shares.shape, 3))
    axis.imshow(np.concatenate([colour, shares[..., None]], axis=-1), aspect="auto")
    for (row, column), value in np.ndenumerate(shares):
        ink, weight = ("white", "bold") if value > 0.5 else (INK, "normal")
        axis.text(column, row, words[column], ha="center", va="center", fontsize=8, color=ink, fontweight=weight)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xticks=[], title=title)
    axis.grid(False)
    axis.spines[:].set_visible(False)

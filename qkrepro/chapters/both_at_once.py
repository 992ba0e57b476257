"""Both collapses at once: the central figure and the cells in which neither happens.

Source: book, "Both at once".
"""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh

from qkrepro.evidence.claims import claims_judged_by
from qkrepro.evidence.style import DISPERSION_LABEL, MEAN_LABEL
from qkrepro.evidence.verdicts import HALF, Tables, Verdict, settings_verdict
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment
from qkrepro.theory.statistics import t_interval

SAFE_COLOUR = "#d7301f"
HALO = [effects.withStroke(linewidth=2.5, foreground="black")]


def both_at_once(spectra: Sequence[Spectrum], stack: Stack, *, seeds: Iterable[int], setting: str = "") -> pd.DataFrame:
    """Both collapses of each spectrum side by side: attention in the first layer, tokens after the last.

    setting: a name for what is special about the stack; empty: its number of layers.
    Returns one row a (seed, spectrum): setting, tokens, mean_scaled, dispersion, seed, entropy_ratio (first layer),
    residual_ratio (after the last layer, to the input's own). Raises as `depth_experiment` does.
    """
    table = depth_experiment(spectra, stack, seeds=seeds, measure_at=[1, stack.layers], measures=["residual"])
    keys = ["tokens", "mean_scaled", "dispersion", "seed"]
    entropy = table.loc[table["layer"] == 1, [*keys, "entropy_ratio"]]
    residual = table.loc[table["layer"] == stack.layers, [*keys, "residual_ratio"]]
    both = entropy.merge(residual, on=keys, validate="one_to_one")
    both.insert(0, "setting", setting or f"{stack.layers} layers")
    return both


def prevents_both(tables: Tables) -> Verdict:
    """Table safe: setting, tokens, mean_scaled, dispersion, seed, entropy_ratio, residual_ratio (to the input's own).

    A cell is safe when the lower ends of both 95% t intervals over seeds are at least one half. In a group (setting,
    tokens, sign of the mean) the claim holds when the least dispersion has a safe cell and the greatest has none.
    """
    table = tables["safe"].query("mean_scaled != 0")
    table = table.assign(sign=np.where(table["mean_scaled"] > 0, "positive", "negative"))
    holds = {}
    for (setting, tokens, sign), group in table.groupby(["setting", "tokens", "sign"]):
        cells = safe_cells(group)
        ends = (
            cells[cells["dispersion"] == cells["dispersion"].min()],
            cells[cells["dispersion"] == cells["dispersion"].max()],
        )
        holds[f"{setting}, {tokens}, {sign} mean"] = bool(ends[0]["safe"].any() and not ends[1]["safe"].any())
    return settings_verdict(holds)


def safe_cells(table: pd.DataFrame) -> pd.DataFrame:
    """One row a cell (mean_scaled, dispersion) of `prevents_both`: safe when both lower ends are at least 1/2."""
    rows = []
    for (mean, dispersion), cell in table.groupby(["mean_scaled", "dispersion"]):
        lowest = min(t_interval(cell["entropy_ratio"]).low, t_interval(cell["residual_ratio"]).low)
        rows.append({"mean_scaled": mean, "dispersion": dispersion, "lowest": lowest, "safe": lowest >= HALF})
    return pd.DataFrame(rows)


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


CLAIMS = claims_judged_by(prevents_both)

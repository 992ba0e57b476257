"""Figures of softmax and its linearisation, from the tables of `qkrepro.linearisation`."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from qkrepro.linearisation import gaussian_clipping, small_spread_error

COLOURS = {"softmax": "C0", "piecewise linear": "C1"}


def plot_moved_logit(table: pd.DataFrame, length: int, axes: Sequence[Axes]) -> None:
    """Weights of the moved key (first panel) and of each other key (second) against the moved key's logit.

    table: of `moved_logit` at the length T. Dotted lines: where the linearisation is clipped; dashed: λ log(T − 1),
    where the moved key holds half of the softmax.
    """
    for axis, column, title in zip(axes, ("moved", "other"), ("The key that is moved", "Each other key"), strict=True):
        for name, curve in table.groupby("function"):
            axis.plot(curve["offset"], curve[column], color=COLOURS[str(name)], label=str(name))
        for threshold in (-length / (length - 1), length):
            axis.axvline(threshold, color="0.4", linestyle=":", linewidth=1)
        axis.axvline(math.log(length - 1), color=COLOURS["softmax"], linestyle="--", linewidth=1)
        axis.set(title=title, xlabel="logit above the others / λ", ylabel="attention weight")
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 0.05))


def plot_linearisation(summary: pd.DataFrame, length: int, axes: Sequence[Axes]) -> None:
    """Error, clipped shares and row sum against the spread: points with intervals, closed forms as lines.

    summary: one row a spread and quantity (error, share_low, share_high, row_sum) with estimate, low, high.
    """
    spread = torch.from_numpy(np.geomspace(summary["spread"].min(), summary["spread"].max(), 200))
    closed = gaussian_clipping(spread, length)
    error, shares, total = axes
    small = small_spread_error(spread)
    error.plot(spread[small < 2], small[small < 2], color="0.4", linestyle="--", label="0.484 spread²")
    _points(error, summary, "error", "C0", "mean over rows")
    error.set(yscale="log", ylabel="total error Σ|S − A|", title="Error of the linearisation")
    shares.plot(spread, closed.share_low, color="C1", label="clipped to 0, closed form")
    shares.plot(spread, closed.share_high, color="C2", label="clipped to 1, closed form")
    _points(shares, summary, "share_low", "C1")
    _points(shares, summary, "share_high", "C2")
    shares.set(ylabel="share of keys", title="Saturated keys")
    total.plot(spread, closed.row_sum, color="C4", label="closed form")
    _points(total, summary, "row_sum", "C4", "mean over rows")
    total.set(yscale="log", ylabel="row sum ΣS", title="Total weight given out")
    for axis in axes:
        axis.set(xscale="log", xlabel="spread of the logits / λ")
        axis.legend(loc="upper left")


def _points(axis: Axes, summary: pd.DataFrame, quantity: str, colour: str, label: str | None = None) -> None:
    rows = summary[summary["quantity"] == quantity]
    bars = [rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]
    axis.errorbar(rows["spread"], rows["estimate"], yerr=bars, fmt="o", markersize=4, color=colour, label=label)

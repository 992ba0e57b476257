"""Entropy collapse: entropy over the dispersion, its lower bounds, and whether a small variance prevents it.

Source: book, "Entropy collapse".
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from qkrepro.evidence.claims import claims_judged_by
from qkrepro.evidence.style import DISPERSION_LABEL
from qkrepro.evidence.verdicts import HALF, ROUNDING, Tables, Verdict, settings_verdict, share_verdict
from qkrepro.evidence.wording import plain
from qkrepro.theory.statistics import t_interval


def prevents_entropy_collapse(tables: Tables) -> Verdict:
    """Table entropy: tokens, mean_scaled, dispersion, seed, entropy_ratio; least against greatest dispersion."""
    holds = {}
    for (tokens, mean), group in tables["entropy"].query("mean_scaled != 0").groupby(["tokens", "mean_scaled"]):
        wide = group.pivot(index="seed", columns="dispersion", values="entropy_ratio").sort_index(axis=1)
        gain = t_interval(wide.iloc[:, 0] - wide.iloc[:, -1])
        holds[f"{tokens}, mean {mean:g}"] = gain.low > 0 and float(wide.iloc[:, 0].mean()) >= HALF
    return settings_verdict(holds)


def entropy_bound(tables: Tables) -> Verdict:
    """Table bound: setting, entropy, bound (nats), one row a setting; never violated, and at least a tenth of it."""
    table = tables["bound"]
    violated = int((table["bound"] > table["entropy"] + ROUNDING * (1 + table["entropy"])).sum())
    useful = [bool(value) for value in table["bound"] >= 0.1 * table["entropy"]]
    because = f"violated in {violated} of {len(table)} settings; at least a tenth of the entropy in {sum(useful)}"
    return Verdict("not reproduced", because) if violated else share_verdict(useful, because)


def plot_entropy_over_dispersion(summary: pd.DataFrame, column: str, axis: Axes) -> None:
    """Entropy ratio over dispersion with 95% intervals, one line a mean.

    summary: mean_scaled, dispersion and the interval (estimate, low, high) of `column`, one row a cell.
    """
    means = sorted(summary["mean_scaled"].unique())
    for number, mean in enumerate(means):
        line, colour = summary[summary["mean_scaled"] == mean], _signed_colour(number, means)
        axis.plot(line["dispersion"], line["estimate"], marker="o", markersize=3, color=colour, label=plain(mean))
        axis.fill_between(line["dispersion"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
    axis.axhline(HALF, color="0.4", linestyle=":", linewidth=1)
    axis.set(xscale="log", ylim=(0, 1.03), xlabel=DISPERSION_LABEL, ylabel=column)


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


def _signed_colour(number: int, means: Sequence[float]) -> str:
    """Blues for negative means, grey for zero, oranges for positive ones, darker for larger."""
    negative, positive = ["#08519c", "#4292c6", "#9ecae1"], ["#fdae6b", "#e6550d", "#8c2d04"]
    below = sum(mean < 0 for mean in means)
    if means[number] == 0:
        return "0.35"
    if means[number] < 0:
        return negative[number % 3]
    return positive[(number - below - (0 in means)) % 3]


CLAIMS = claims_judged_by(prevents_entropy_collapse, entropy_bound)

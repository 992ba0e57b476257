"""Figures of trained models: profiles by location, the tokens against a walk, and learning from different starts."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from qkrepro.plots_training import kappa_colour, kappa_label, label_empty
from qkrepro.run_comparisons import mean_interval

Style = Mapping[str, Any]

PROFILE_STYLES: Mapping[str, Style] = {
    "nonsaturated": {"label": "not saturated, measured", "color": "black"},
    "predicted": {"label": "not saturated, predicted", "color": "C0", "linestyle": "--"},
    "gradient": {"label": "gradient A(1 − A), measured", "color": "C1"},
}
LAW_STYLES: Mapping[str, Style] = {
    "measured": {"label": "measured", "color": "black", "linewidth": 2.4},
    "prediction": {"label": "walk, normal form: the prediction", "color": "C0", "linestyle": "--"},
    "drawn walk": {"label": "walk, drawn", "color": "C9", "linestyle": "--"},
    "normal": {"label": "normal, measured moments", "color": "C2"},
    "shuffled": {"label": "words shuffled", "color": "C3"},
}
START_STYLES: Mapping[str, Style] = {
    "xavier": {"label": "Xavier", "color": "0.25"},
    "collapsed": {"label": "dispersed (entropy-collapsed)", "color": "C3", "linestyle": "--"},
    "uniform": {"label": "near zero (rank-collapsed)", "color": "C2", "linestyle": "-."},
    "concentrated": {"label": "concentrated (identity)", "color": "C0"},
}
TOKEN_STYLES: Mapping[str, Style] = {
    "walk": {"label": "walk of the same increments", "color": "C1", "linestyle": "--"},
    "start": {"label": "tokens, at the start", "color": "0.6"},
    "trained": {"label": "tokens, trained", "color": "C0"},
}
LOCATION = "location of the key, i/T"


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


def plot_distances(distances: pd.DataFrame, styles: Mapping[str, Style], limit: float, axis: Axes) -> None:
    """Total variation from the measured profile, a row a law, points for runs and an interval a kappa; `limit` dotted.

    distances: law, kappa, total_variation.
    """
    laws = [law for law in styles if law in set(distances["law"])]
    if not laws:
        return label_empty(axis)
    axis.axvline(limit, color="0.4", linestyle=":", linewidth=1)
    kappas = sorted(distances["kappa"].unique())
    for place, law in enumerate(laws):
        for number, kappa in enumerate(kappas):
            chosen = distances[(distances["law"] == law) & (distances["kappa"] == kappa)]
            values, height = (
                chosen["total_variation"].astype(float).tolist(),
                place + 0.24 * (number - (len(kappas) - 1) / 2),
            )
            label = kappa_label(float(kappa)) if place == 0 else None
            _points(values, height, kappa_colour(float(kappa)), label, axis)
    axis.set_yticks(range(len(laws)), [styles[law]["label"] for law in laws])
    axis.set(ylim=(len(laws) - 0.5, -0.5), xlim=(0, None), xlabel="total variation from the measured profile")
    axis.grid(axis="y", visible=False)
    return None


def plot_entropy_against_loss(starts: pd.DataFrame, axis: Axes) -> None:
    """Early loss of each run against its early attention entropy, one marker a start; grey lines join a seed's runs.

    starts: start, seed, early_entropy, early_loss.
    """
    if starts.empty:
        return label_empty(axis)
    for _, runs in starts.sort_values("early_entropy").groupby("seed"):
        axis.plot(runs["early_entropy"], runs["early_loss"], color="0.8", linewidth=0.8, zorder=1)
    for (name, style), marker in zip(START_STYLES.items(), "osD^", strict=True):
        points = starts[starts["start"] == name]
        axis.plot(
            points["early_entropy"],
            points["early_loss"],
            marker,
            markersize=7,
            color=style["color"],
            label=style["label"],
        )
    axis.set(xlabel="attention entropy, mean of the first half, nats", ylabel="training loss, first half, nats")
    return None


def shared_legend(axes: Sequence[Axes], **options: Any) -> None:
    """One legend for panels that share their lines, outside at the right of their figure."""
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        if handles:
            axis.figure.legend(handles, labels, **{"loc": "outside lower center", "ncols": len(labels), **options})
            return


def _points(values: Sequence[float], height: float, colour: Any, label: str | None, axis: Axes) -> None:
    mean = mean_interval(values)
    bar = [[mean.estimate - mean.low], [mean.high - mean.estimate]] if len(values) > 1 else None
    axis.plot(values, [height] * len(values), "o", markersize=3, color=colour, alpha=0.5)
    axis.errorbar([mean.estimate], [height], xerr=bar, fmt="D", markersize=5, capsize=3, color=colour, label=label)

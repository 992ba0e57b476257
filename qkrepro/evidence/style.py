"""The one style that the figures share, and what several chapters draw alike."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

STYLE = {
    "axes.facecolor": "white",
    "axes.formatter.use_mathtext": True,
    "axes.grid": True,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "figure.figsize": (7.2, 4.0),
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "grid.alpha": 0.5,
    "legend.fontsize": "small",
    "legend.framealpha": 0.9,
    "savefig.bbox": "tight",
    "savefig.dpi": 110,
    "savefig.facecolor": "white",
    "svg.hashsalt": "qkrepro",
}
MEAN_LABEL = "mean: trace / temperature, ξ/λ"
DISPERSION_LABEL = "dispersion √(dσ²)/λ"
QUANTITIES = {
    "frobenius_cov": r"$\Vert\Sigma^{1/2}W\Sigma^{1/2}\Vert_F\,/\,\lambda$",
    "trace_cov": r"$\mathrm{tr}\,W\Sigma\,/\,\lambda$",
    "frobenius": r"$\Vert W\Vert_F\,/\,\lambda$",
    "spectral_norm": r"$\Vert W\Vert_2\,/\,\lambda$",
    "trace": r"$\mathrm{tr}\,W\,/\,\lambda$",
    "relative_variance": r"$\sigma^2/\mu^2$ of $d_{head}$ eigenvalues",
    "index": "localization index",
    "level": "propagation level",
    "centre": "localization centre",
    "trace_z": "trace against chance",
}


def use_style() -> None:
    """Set the style of every figure in the book: opaque light background, colours that a colour-blind reader can tell.

    The background stays light in the page's dark mode too, so one picture serves both. Changes matplotlib's global
    settings; raises nothing.
    """
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9, rc=STYLE)


def plot_correlations(table: pd.DataFrame, ax: Axes, target: str = "entropy") -> None:
    """Rank correlations with their intervals, one line a quantity; table: quantity, correlation, low, high."""
    place = np.arange(len(table))[::-1]
    middle = table["correlation"].to_numpy()
    error = np.stack([middle - table["low"].to_numpy(), table["high"].to_numpy() - middle])
    ax.errorbar(middle, place, xerr=error, fmt="o", capsize=3)
    ax.axvline(0, color="0.5", linewidth=1)
    ax.set(xlim=(-1, 1), xlabel=f"rank correlation with {target}, over heads")
    ax.set_yticks(place, [QUANTITIES[name] for name in table["quantity"]])
    ax.grid(axis="y", visible=False)

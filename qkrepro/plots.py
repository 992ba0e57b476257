"""The figures as functions from tidy tables to axes, and the one style they share."""

import seaborn as sns

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


def use_style() -> None:
    """Set the style of every figure in the book: opaque light background, colours that a colour-blind reader can tell.

    The background stays light in the page's dark mode too, so one picture serves both. Changes matplotlib's global
    settings; raises nothing.
    """
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9, rc=STYLE)

"""LocAteR in deeper and wider models: every shape against the baseline of its own.

Source: book, "Deeper and wider".
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from scipy import stats

from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.paired_runs import FEWEST_SEEDS, TRAINING, training_length
from qkrepro.evidence.run_figures import kappa_colour, kappa_label
from qkrepro.evidence.wording import signed
from qkrepro.theory.statistics import holm, t_interval

READS = ("results/shapes-reduced*",)  # what the notebook reads beside the package, relative to the checkout

SHAPES = tuple((layers, heads) for layers in (1, 2, 4) for heads in (1, 4))
LEVEL = 0.05  # of the p-values after Holm's correction
MARGIN = 0.01  # of the logarithm of perplexity: a difference below one per cent is too small to matter


def shape_runs(summary: pd.DataFrame) -> pd.DataFrame:
    """Return table `shapes` of the rule, one row a run at its best checkpoint.

    Columns layers, heads, seed, kappa, test_perplexity, valid_perplexity, valid_entropy, concentration, TRAINING.
    """
    measured = ["test_perplexity", "valid_perplexity", "valid_entropy", "concentration"]
    columns = ["layers", "heads", "seed", "kappa", *measured, *TRAINING]
    return summary[columns].sort_values(columns[:4]).reset_index(drop=True)


def shape_name(layers: int, heads: int) -> str:
    """Return what figures call a shape: "2 layers, 1 head"."""
    return f"{layers} layer{'s' * (layers > 1)}, {heads} head{'s' * (heads > 1)}"


def shape_differences(shapes: pd.DataFrame, column: str, *, percent: bool = False) -> pd.DataFrame:
    """Return regularised minus baseline of the same seed and shape: layers, heads, seed, kappa, difference.

    One row a pair. percent: the difference over the baseline's value, in per cent.
    """
    keys = ["layers", "heads", "seed"]
    base = shapes[shapes["kappa"] == 0].set_index(keys)[column].rename("baseline")
    rows = shapes[shapes["kappa"] != 0].join(base, on=keys, how="inner")
    difference = rows[column] - rows["baseline"]
    rows = rows.assign(difference=100 * difference / rows["baseline"] if percent else difference)
    return rows[[*keys, "kappa", "difference"]].astype({"difference": float}).reset_index(drop=True)


def shape_tests(shapes: pd.DataFrame) -> pd.DataFrame:
    """Return the paired t test of the logarithm of test perplexity in each shape, one row a shape with enough seeds.

    Columns layers, heads, pairs, estimate, low, high (95%, without correction; below 0 is better), p, p_holm.
    """
    differences = shape_differences(shapes.assign(log=np.log(shapes["test_perplexity"])), "log")
    rows = []
    for (layers, heads), group in differences.groupby(["layers", "heads"]):
        if len(group) >= FEWEST_SEEDS:
            interval = t_interval(group["difference"])
            p = float(np.nan_to_num(stats.ttest_1samp(group["difference"], 0.0).pvalue, nan=1.0))  # NaN: all are 0
            rows.append({"layers": layers, "heads": heads, "pairs": len(group), **interval._asdict(), "p": p})
    table = pd.DataFrame(rows, columns=["layers", "heads", "pairs", "estimate", "low", "high", "p"])
    return table.assign(p_holm=holm(table["p"]))


def head_values(summary: pd.DataFrame, column: str, layers: int, heads: int) -> pd.DataFrame:
    """Return a measure of every head at the best checkpoint, runs of one shape: seed, kappa, layer, head, value."""
    runs = summary[(summary["layers"] == layers) & (summary["heads"] == heads)]
    single = layers * heads == 1  # the record of a single head has no columns a head
    rows = [
        {"seed": run["seed"], "kappa": run["kappa"], "layer": layer, "head": head}
        | {"value": float(run[column if single else f"{column}_{layer}_{head}"])}
        for _, run in runs.iterrows()
        for layer in range(layers)
        for head in range(heads)
    ]
    return pd.DataFrame(rows, columns=["seed", "kappa", "layer", "head", "value"])


def plot_values(table: pd.DataFrame, x: str, y: str, axis: Axes) -> None:
    """Draw a measure by group: a point a run or a head, a bar for the mean, colours for kappa; table: kappa, x, y."""
    kappas = sorted(table["kappa"].unique())
    palette = [kappa_colour(float(kappa)) for kappa in kappas]
    style = {"x": x, "y": y, "hue": "kappa", "hue_order": kappas, "palette": palette, "legend": False, "ax": axis}
    sns.stripplot(table, dodge=True, jitter=False, size=4, alpha=0.7, **style)
    sns.pointplot(table, dodge=0.4, linestyle="none", marker="_", markersize=14, errorbar=None, **style)
    axis.grid(axis="x", visible=False)


def name_colours(table: pd.DataFrame, axis: Axes) -> None:
    """Write what the colours of `plot_values` mean into the upper left corner, a line a kappa."""
    for number, kappa in enumerate(sorted(float(kappa) for kappa in table["kappa"].unique())):
        where: dict[str, Any] = {"transform": axis.transAxes, "color": kappa_colour(kappa), "va": "top"}
        axis.text(0.04, 0.98 - 0.08 * number, kappa_label(kappa), fontsize="small", **where)


def holds_deeper_and_wider(tables: Tables, level: float = LEVEL) -> Verdict:
    """Judge table shapes as `shape_runs` gives it: Holm's correction runs over the six SHAPES."""
    tests = shape_tests(tables["shapes"])
    if len(tests) < len(SHAPES):
        return Verdict("not run", f"{len(tests)} of {len(SHAPES)} shapes have {FEWEST_SEEDS} paired seeds")
    equal = (tests["low"] > -MARGIN) & (tests["high"] < MARGIN)
    differs = (tests["p_holm"] < level) & ~equal
    better, worse = int((differs & (tests["estimate"] < 0)).sum()), int((differs & (tests["estimate"] > 0)).sum())
    percent = 100 * np.expm1(tests["estimate"])
    because = (
        f"test perplexity changes by {signed(percent.min(), 1)}% to {signed(percent.max(), 1)}%, by shape; after "
        f"Holm's correction over {len(SHAPES)} shapes (least p {tests['p_holm'].min():.2f}) it is better in {better} "
        f"and worse in {worse}; {training_length(tables['shapes'])}"
    )
    outcome: Outcome = "partly"
    if better == 0:
        outcome = "not reproduced" if worse or equal.any() else "inconclusive"
    elif better == len(SHAPES):
        outcome = "reproduced"
    return Verdict(outcome, because, better, len(SHAPES))


CLAIMS = (
    Claim(
        name="locater-deeper-and-wider",
        chapter="deeper_and_wider",
        provenance="ours",
        statement=(
            "LocAteR improves test perplexity with 1, 2 and 4 layers of 1 and 4 heads, after one pass over the text."
        ),
        conditions="κ = 0.001, target trace 1",
        rule=(
            "In each of the six shapes the paired t test of log test perplexity, after Holm's correction over six, "
            "has p below 0.05 with an improvement, and its interval leaves ±0.01; partly when in some shapes; "
            "inconclusive when in none and no shape decides against it."
        ),
        refuted_by=(
            "no shape that improves, and one that worsens with a corrected p below 0.05 or whose interval lies within "
            "±0.01"
        ),
        tables=("shapes",),
        judge=holds_deeper_and_wider,
        figure="fig-shapes",
        threshold=Threshold(
            "p-value after Holm's correction", LEVEL, (0.01, 0.05, 0.1, 0.2, 0.3), holds_deeper_and_wider
        ),
    ),
)

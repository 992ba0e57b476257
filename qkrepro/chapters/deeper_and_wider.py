"""LocAteR in deeper and wider models: every shape against the baseline of its own.

Source: book, "LocAteR".
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from qkrepro.evidence.claims import claims_judged_by
from qkrepro.evidence.paired_runs import FEWEST_SEEDS, TRAINING, paired_verdict, training_length
from qkrepro.evidence.run_figures import by_kappa, kappa_colour, label_empty, points
from qkrepro.evidence.verdicts import Tables, Verdict, share_verdict

SHAPES = tuple((layers, heads) for layers in (1, 2, 4) for heads in (1, 4))


def shape_runs(summary: pd.DataFrame) -> pd.DataFrame:
    """Table `shapes` of the rules: layers, heads, seed, kappa, valid_perplexity, valid_entropy, TRAINING."""
    columns = ["layers", "heads", "seed", "kappa", "valid_perplexity", "valid_entropy", *TRAINING]
    return summary[columns].sort_values(columns[:4]).reset_index(drop=True)


def shape_differences(shapes: pd.DataFrame, column: str, *, percent: bool = False) -> pd.DataFrame:
    """Regularised minus baseline of the same seed and shape: layers, heads, seed, kappa, difference; one row a pair."""
    keys = ["layers", "heads", "seed"]
    base = shapes[shapes["kappa"] == 0].set_index(keys)[column].rename("baseline")
    rows = shapes[shapes["kappa"] != 0].join(base, on=keys, how="inner")
    difference = rows[column] - rows["baseline"]
    rows = rows.assign(difference=100 * difference / rows["baseline"] if percent else difference)
    return rows[[*keys, "kappa", "difference"]].astype({"difference": float}).reset_index(drop=True)


def head_values(summary: pd.DataFrame, column: str, layers: int, heads: int) -> pd.DataFrame:
    """A measure of every head at the best checkpoint, runs of one shape: seed, kappa, layer, head, value."""
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


def plot_shapes(shapes: pd.DataFrame, order: Sequence[tuple[int, int]], column: str, axis: Axes) -> None:
    """A measure by shape: points for the runs, their mean and its interval, colours for kappa.

    shapes: layers, heads, seed, kappa, `column`. order: all (layers, heads); a shape without a run reads "not run".
    """
    kappas = sorted(shapes["kappa"].unique())
    for place, (layers, heads) in enumerate(order):
        here = shapes[(shapes["layers"] == layers) & (shapes["heads"] == heads)]
        if here.empty:
            where: dict[str, Any] = {"xy": (place, 0.5), "xycoords": ("data", "axes fraction")}
            axis.annotate("not run", **where, rotation=90, ha="center", va="center", color="0.4")
        for kappa, rows in by_kappa(here):
            shift = 0.4 * (kappas.index(kappa) - (len(kappas) - 1) / 2)
            points(rows[column].astype(float).tolist(), place + shift, axis, kappa_colour(kappa), kappa_colour(kappa))
    axis.set_xticks(range(len(order)), [f"{layers} × {heads}" for layers, heads in order])
    axis.set(xlabel="layers × heads", xlim=(-0.6, len(order) - 0.4))
    if shapes.empty:
        axis.set_yticks([])
    axis.grid(axis="x", visible=False)


def plot_heads(heads: pd.DataFrame, axis: Axes) -> None:
    """A measure of each head of each run, points by layer, colours for kappa; heads: kappa, layer, value."""
    if heads.empty:
        return label_empty(axis)
    palette = {kappa: kappa_colour(kappa) for kappa in sorted(heads["kappa"].unique())}
    rows = heads.assign(layer=heads["layer"] + 1)
    style: dict[str, Any] = {"hue": "kappa", "palette": palette, "dodge": True, "jitter": False, "size": 4}
    sns.stripplot(rows, x="layer", y="value", legend=False, alpha=0.7, ax=axis, **style)
    return None


def holds_deeper_and_wider(tables: Tables) -> Verdict:
    """Table shapes: layers, heads, seed, kappa, valid_perplexity and what `_paired` reads; its rule for all SHAPES."""
    groups = dict(list(tables["shapes"].groupby(["layers", "heads"])))
    each = [paired_verdict(groups[shape], "valid_perplexity", -1) if shape in groups else None for shape in SHAPES]
    run = [verdict.outcome == "reproduced" for verdict in each if verdict and verdict.outcome != "not run"]
    if len(run) < len(SHAPES):
        return Verdict("not run", f"{len(run)} of {len(SHAPES)} shapes have {FEWEST_SEEDS} paired seeds")
    because = (
        f"perplexity improves in {sum(run)} of {len(run)} shapes (layers, heads); {training_length(tables['shapes'])}"
    )
    return share_verdict(run, because)


CLAIMS = claims_judged_by(holds_deeper_and_wider)

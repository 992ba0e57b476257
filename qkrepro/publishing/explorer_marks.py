"""The marks on the plane: heads of a published model, our runs, Xavier, in units that make their logits comparable.

Across is tr(WΣ)/λ, the mean logit of a token with itself, and up ‖Σ^½WΣ^½ − (tr(WΣ)/d) I‖_F/λ, the scatter of the
logits of different tokens, both about the mean token; Σ is the covariance of the tokens that a head reads. In the
stacks of chapter 8 Σ = I, and these are the mean and the dispersion of the spectrum.
Source: book, "The plane", "Real weights", "LocAteR".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qkrepro.evidence.numbers import load_numbers
from qkrepro.evidence.verdicts import HALF
from qkrepro.publishing.explorer_values import SOFTMAXES
from qkrepro.theory.tokens import TOKEN_LAWS
from qkrepro.theory.xavier import xavier_law
from qkrepro.training.records import read_records

RUNS = "locater-wikitext-2"  # the sweep whose runs are marked
BEND = 4.0  # constant of the plane's horizontal scale, sign(x) log(1 + |x|/BEND), as in laws.js
MINILM_WIDTH = 384  # d_model of the heads of chapter 9
STATES = ("safe", "alike", "few", "both", "open")


@dataclass(frozen=True)
class Mark:
    """A head on the plane: ξ/λ across, √(dσ²)/λ up, and what a reader is told of it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class MarkGroup:
    """Marks of one kind: how they are called, their shape in Vega's words, and the course of a mean over training."""

    name: str
    shape: str
    points: list[Mark]
    counted: bool = True
    trail: list[Mark] = field(default_factory=list)


def dispersion(frobenius: float, trace: float, dim: int) -> float:
    """‖M − (ξ/d) I‖_F of a matrix with this norm and trace: for symmetric M it is √(dσ²)."""
    return math.sqrt(max(0.0, frobenius**2 - trace**2 / dim))


def head_marks(heads: pd.DataFrame) -> MarkGroup:
    """The heads of chapter 9, in the covariance Σ of the tokens that each reads: tr(WΣ)/λ and ‖Σ^½WΣ^½‖_F/λ.

    heads: layer, head, trace_cov, frobenius_cov, entropy. In these units a head whose tokens have covariance 1 and a
    head of the stacks are the same point for the same logits: across the mean logit of a token with itself, up the
    scatter of the logits of different tokens, both about the mean token.
    """
    traces, norms = heads["trace_cov"].tolist(), heads["frobenius_cov"].tolist()
    words = [
        f"MiniLM, layer {layer + 1}, head {head + 1}: entropy {entropy:.2f} nats"
        for layer, head, entropy in zip(heads["layer"], heads["head"], heads["entropy"], strict=True)
    ]
    points = [
        Mark(round(trace, 3), round(dispersion(norm, trace, MINILM_WIDTH), 3), text)
        for trace, norm, text in zip(traces, norms, words, strict=True)
    ]
    return MarkGroup("MiniLM heads", "circle", points)


def run_marks(records: pd.DataFrame, name: str, shape: str) -> MarkGroup:
    """Runs at their best checkpoint, and the mean over seeds from the start on.

    records: rows of `records.read_records` of one κ, one layer and one head. A record holds M in the covariance of the
    *increments* of its tokens. The tokens of these models are nearly independent of their neighbours (chapter 12), and
    the increments of independent tokens have twice their covariance: so half of both is taken.
    """
    scale = 2 * (records["d_model"] / records["heads"]) ** 0.5
    trace, frobenius = records["walk_trace"] / scale, records["walk_frobenius"] / scale
    spread = [dispersion(f, t, d) for f, t, d in zip(frobenius, trace, records["d_model"], strict=True)]
    table = records.assign(x=trace.round(3), y=pd.Series(spread, index=records.index).round(3))
    best = table.loc[table.groupby("run")["valid_loss"].idxmin()].sort_values("seed")
    points = [Mark(*row) for row in zip(best["x"], best["y"], best.apply(_run_words, axis=1), strict=True)]
    course = table.groupby("update").filter(lambda rows: len(rows) == table["run"].nunique())
    means = course.groupby("update", as_index=False)[["epoch", "x", "y"]].mean()
    words = [f"pass {epoch:.1f}" for epoch in means["epoch"]]
    trail = [Mark(*row) for row in zip(means["x"].round(3), means["y"].round(3), words, strict=True)]
    return MarkGroup(name, shape, points, trail=trail)


def xavier_marks(dim: int = MINILM_WIDTH, d_head: int = 32) -> MarkGroup:
    """Xavier initialisation at tokens of unit covariance: all heads in one matrix, and with gain 1/√2.

    The root mean square of ‖W‖_F/λ is 1 and 1/2 whatever d and d_head; the trace has mean 0.
    """
    named = {"one matrix for all heads": dim, "gain 1/√2 (PyTorch's attention layer, fairseq, our runs)": 3 * dim}
    points = []
    for text, fan_out in named.items():
        law = xavier_law(dim, d_head, fan_out=fan_out)
        points.append(Mark(0.0, round(math.sqrt(law.frobenius_sq / d_head), 3), f"Xavier, {text}"))
    return MarkGroup("Xavier", "cross", points, counted=False)


def plane_marks(root: Path) -> dict[str, MarkGroup]:
    """All marks, from the saved numbers of chapter 9 and the records of the judged comparison below `root`."""
    records = read_records(root / "results" / RUNS)
    heads = load_numbers("real_weights", root / "notebooks" / "numbers")["heads"]
    return {
        "heads": head_marks(heads),
        "baseline": run_marks(records[records["kappa"] == 0], "runs without LocAteR", "square"),
        "locater": run_marks(records[records["kappa"] > 0], "runs with LocAteR", "triangle-up"),
        "xavier": xavier_marks(),
    }


def nearest_cell(x: float, y: float, grid: Mapping[str, Any]) -> tuple[int, int]:
    """Column and row of the cell whose rectangle on the plane holds the point, as laws.js finds it."""

    def bend(mean: float) -> float:
        return math.copysign(math.log1p(abs(mean) / BEND), mean)

    columns = [abs(bend(mean) - bend(x)) for mean in grid["means"]]
    rows = [abs(math.log(row / y)) for row in grid["dispersions"]]
    return columns.index(min(columns)), rows.index(min(rows))


def cell_states(values: Mapping[str, Any], tokens: str, softmax: str, layer: int) -> list[str]:
    """One of STATES for every cell, mean by mean: safe by the record's rule, else which mean is below one half."""
    depth = f"depth/{tokens}/{softmax}"
    safe = values["arrays"][f"{depth}/safe"].values[layer - 1] == 1
    mean = values["arrays"][f"{depth}/mean"].values
    few, alike = mean[0, 0] < HALF, mean[1, layer - 1] < HALF
    states = np.select([safe, few & alike, few, alike], ["safe", "both", "few", "alike"], "open")
    return [str(state) for state in states]


def mark_states(groups: Mapping[str, MarkGroup], values: Mapping[str, Any], layer: int) -> pd.DataFrame:
    """How many marks lie in cells of each state: one row a (tokens, softmax, counted group), one column a state."""
    grid, rows = values["grid"], []
    for tokens in TOKEN_LAWS:
        for softmax in SOFTMAXES:
            states = cell_states(values, tokens, softmax, layer)
            for key in (key for key, group in groups.items() if group.counted):
                cells = [nearest_cell(point.x, point.y, grid) for point in groups[key].points]
                kinds = [states[column * len(grid["dispersions"]) + row] for column, row in cells]
                counts = {state: kinds.count(state) for state in STATES}
                rows.append({"tokens": tokens, "softmax": softmax, "group": key, **counts})
    return pd.DataFrame(rows)


def neighbour_correlation(root: Path) -> tuple[float, float]:
    """Least and greatest correlation of neighbouring increments in the marked runs: −1/2 for independent tokens."""
    checks = pd.read_csv(root / "results" / "walk" / RUNS / "checks.csv")
    values = checks.loc[checks["quantity"] == "neighbours", "tokens"]
    return float(values.min()), float(values.max())


def _run_words(run: "pd.Series[Any]") -> str:
    measured = f"perplexity {run['valid_perplexity']:.0f}, entropy {run['valid_entropy']:.2f} nats"
    return f"κ = {run['kappa']:g}, seed {run['seed']}: {measured}"

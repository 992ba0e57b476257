"""Rank collapse: attention patterns, tokens over depth, and whether a small variance prevents it.

Source: book, "Rank collapse".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.image import AxesImage
from scipy import optimize, sparse
from torch import Tensor

from qkrepro.errors import ShapeError, check_number
from qkrepro.evidence.claims import claims_judged_by
from qkrepro.evidence.verdicts import HALF, Tables, Verdict, settings_verdict
from qkrepro.evidence.wording import plain
from qkrepro.theory.rank import Array, checked_tokens, l1_linf_norm, rank_residual
from qkrepro.theory.statistics import quartiles, t_interval


def smallest_l1_linf_residual(x: Tensor, *, tolerance: float = 1e-6) -> float:
    """The residual of Dong et al. with its own minimiser: min over y of √(‖R‖₁ ‖R‖_∞) / √(‖x‖₁ ‖x‖_∞), R = x − 1yᵀ.

    √(fg) is the least of (f + s g)/(2√s) over s > 0, and each f + s g is minimised by a linear program. That minimum is
    concave in s, so its chords bound the product from below: s is refined until the bounds agree to `tolerance`
    (relative). The value returned is attained. One sequence at a time, some 20 linear programs of T·d variables:
    meant for small matrices and as a check of `rank_residual`.
    x: (T, d). Returns a number. Raises ShapeError unless x has two dimensions, otherwise as `rank_residual` does.
    """
    check_number("tolerance", tolerance, above=0)
    if x.ndim != 2:
        raise ShapeError(f"x has shape {tuple(x.shape)}; allowed: (T, d)")
    size = float(l1_linf_norm(x))
    if float(rank_residual(x, "l1-linf")) == 0:
        return 0.0
    program = _CompositeProgram(checked_tokens(x).numpy())
    # f and g at the mean are within a factor of two of their minima, so f/g at the minimiser is within 4 of theirs
    ends = program.solve(program.ratio_at_mean / 4.01), program.solve(program.ratio_at_mean * 4.01)
    best = min(end.product for end in ends)
    intervals = [_Interval.between(*ends)]
    while intervals:
        worst = min(intervals, key=lambda interval: interval.bound)
        if worst.bound >= best * (1 - tolerance) or worst.right.s / worst.left.s < 1 + 1e-9:
            break
        middle = program.solve(worst.s)
        best = min(best, middle.product)
        intervals.remove(worst)
        intervals += [_Interval.between(worst.left, middle), _Interval.between(middle, worst.right)]
    return best / size


class _Weighted(NamedTuple):
    """The minimum of f + s g, and √(f g) where it is attained."""

    s: float
    height: float
    product: float


class _Interval(NamedTuple):
    """Two values of s, a lower bound of √(f g) wherever f/g lies between them, and the s to look at next."""

    bound: float
    s: float
    left: _Weighted
    right: _Weighted

    @classmethod
    def between(cls, left: _Weighted, right: _Weighted) -> "_Interval":
        """Least (a + b s)/(2√s) of the chord a + b s, which the concave minimum of f + s g never falls below."""
        slope = (right.height - left.height) / (right.s - left.s)
        offset = left.height - slope * left.s
        s = offset / slope if slope > 0 else math.inf  # where the chord's bound is least
        if left.s * (1 + 1e-9) < s < right.s * (1 - 1e-9):
            return cls((offset + slope * s) / (2 * math.sqrt(s)), s, left, right)
        bound = min(end.height / (2 * math.sqrt(end.s)) for end in (left, right))
        return cls(bound, math.sqrt(left.s * right.s), left, right)


class _CompositeProgram:
    """min over y of f + s g, f = ‖x − 1yᵀ‖₁ and g = ‖x − 1yᵀ‖_∞, as a linear program in (y, |R|, f, g)."""

    def __init__(self, x: Array) -> None:
        t, d = x.shape
        self.x = x
        column = sparse.kron(np.ones((t, 1)), sparse.eye_array(d))  # (T d, d), y once for every token
        sizes = -sparse.eye_array(t * d)
        by_column = sparse.kron(np.ones((1, t)), sparse.eye_array(d))  # (d, T d), Σ_t |R_tj|
        by_row = sparse.kron(sparse.eye_array(t), np.ones((1, d)))  # (T, T d), Σ_j |R_tj|
        f, g = (sparse.csr_array(np.full((n, 1), -1.0)) for n in (d, t))
        rows: Any = sparse.vstack(
            [
                sparse.hstack([-column, sizes, sparse.csr_array((t * d, 2))]),  # x − y <= |R|
                sparse.hstack([column, sizes, sparse.csr_array((t * d, 2))]),  # y − x <= |R|
                sparse.hstack([sparse.csr_array((d, d)), by_column, f, sparse.csr_array((d, 1))]),  # <= f
                sparse.hstack([sparse.csr_array((t, d)), by_row, sparse.csr_array((t, 1)), g]),  # <= g
            ]
        )
        self.matrix: Any = rows.tocsr()  # SciPy's stubs know only dense constraints
        self.limits = np.concatenate([-x.ravel(), x.ravel(), np.zeros(d + t)])
        self.bounds = [(None, None)] * d + [(0, None)] * (t * d + 2)
        column_sum, row_sum = self._norms(x.mean(0))
        self.ratio_at_mean = column_sum / row_sum

    def solve(self, s: float) -> _Weighted:
        t, d = self.x.shape
        cost = np.concatenate([np.zeros(d + t * d), [1.0, s]])
        found = optimize.linprog(cost, A_ub=self.matrix, b_ub=self.limits, bounds=self.bounds, method="highs")
        column_sum, row_sum = self._norms(np.asarray(found.x)[:d])
        return _Weighted(s, column_sum + s * row_sum, math.sqrt(column_sum * row_sum))

    def _norms(self, y: Array) -> tuple[float, float]:
        residual = np.abs(self.x - y)
        return float(residual.sum(0).max()), float(residual.sum(1).max())


def prevents_rank_collapse(tables: Tables) -> Verdict:
    """Table depth_end: setting, tokens, seed, spectrum (concentrated, dispersed), residual, input_residual."""
    holds = {}
    for (setting, tokens), group in tables["depth_end"].groupby(["setting", "tokens"]):
        wide = group.pivot(index="seed", columns="spectrum", values="residual")
        gain = t_interval(wide["concentrated"] - wide["dispersed"])
        kept = t_interval(wide["concentrated"] / group.groupby("seed")["input_residual"].first())
        holds[f"{setting}, {tokens}"] = gain.low > 0 and kept.estimate >= HALF
    return settings_verdict(holds)


def spectrum_name(mean_scaled: float, dispersion: float) -> str:
    """Name of a spectrum in legends: its mean, and how far its eigenvalues scatter."""
    return f"ξ/λ = {plain(mean_scaled)}, dispersion {plain(dispersion)}"


def plot_attention_patterns(attention: Tensor, titles: Sequence[str], axes: Sequence[Axes]) -> AxesImage:
    """Attention matrices as images, query downwards and key to the right; returns the last image for a colour bar.

    attention: (S, T, T), one matrix an axis. Colours are stretched at small weights (power 0.4).
    """
    length = attention.shape[-1]
    for axis, weights, title in zip(axes, attention, titles, strict=True):
        norm, extent = PowerNorm(0.4, vmin=0, vmax=1), (0.5, length + 0.5, length + 0.5, 0.5)
        image = axis.imshow(weights.numpy(), cmap="cividis", norm=norm, extent=extent)
        axis.set(title=title, xlabel="key", xticks=[1, length], yticks=[1, length])
        axis.grid(False)
    axes[0].set_ylabel("query")
    return image


def plot_depth(
    table: pd.DataFrame, column: str, styles: Mapping[tuple[float, float], dict[str, Any]], axis: Axes
) -> None:
    """A measure over depth: median over seeds, and a band between the quartiles, one line a spectrum.

    table: rows of `depth_experiment`. styles: line style of each spectrum (mean_scaled, dispersion).
    """
    rows = quartiles(table, ["mean_scaled", "dispersion", "layer"], column)
    for (mean, dispersion), style in styles.items():
        line = rows[(rows["mean_scaled"] == mean) & (rows["dispersion"] == dispersion)]
        label = spectrum_name(mean, dispersion)
        axis.plot(line["layer"], line["median"], marker="o", markersize=3, label=label, **style)
        axis.fill_between(line["layer"], line["low"], line["high"], color=style["color"], alpha=0.15, linewidth=0)
    axis.set_xlabel("layers")
    axis.margins(x=0.02)


CLAIMS = claims_judged_by(prevents_rank_collapse)

"""Rank collapse: attention patterns, tokens over depth, and whether a small variance prevents it.

Source: book, "Rank collapse".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.image import AxesImage
from scipy import optimize, sparse
from torch import Generator, Tensor

from qkrepro.errors import ShapeError, check_number
from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.verdicts import HALF, above, both, settings_verdict
from qkrepro.evidence.wording import plain
from qkrepro.theory.depth import MEASURES, Spectrum, Stack, depth_experiment
from qkrepro.theory.rank import Array, checked_tokens, l1_linf_norm, rank_residual
from qkrepro.theory.statistics import median_interval, quartiles
from qkrepro.theory.tokens import TokenLaw

READS: tuple[str, ...] = ()
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LayerNorm": {},
    "LayerNorm, residual": {"residual": True},
    "plain": {"layer_norm": False},
    "residual": {"residual": True, "layer_norm": False},
}
LAWS: tuple[TokenLaw, ...] = ("random walk", "AR(1)", "independent")
Setting = tuple[str, str, float]  # architecture, law of tokens, ξ/λ
SELF_ONLY = 0.1  # entropy ratio below which a token reads hardly anything but itself


def depth_table(
    trace: float,
    small: float,
    large: float,
    stack: Stack,
    temperatures: Sequence[float],
    *,
    seeds: Iterable[int],
    measured: Sequence[int],
) -> pd.DataFrame:
    """Residuals over depth for both signs of the trace (and none), both spreads, every architecture and law of tokens.

    trace: ξ of the positive spectra. small, large: √(dσ²) of the concentrated and the dispersed ones. stack: what all
    stacks share (length, width, coefficient). temperatures: λ; the mean of zero is run at the first
    alone. measured: the layers. Returns the rows of `depth_experiment` with setting (the architecture),
    temperature and spectrum (concentrated, dispersed). Measures other than the residual are taken of random walks
    under LayerNorm alone.
    """
    pairs = [(mean, temperatures[0]) for mean in (trace, 0.0, -trace)]
    pairs += [(mean, temperature) for temperature in temperatures[1:] for mean in (trace, -trace)]
    names = pd.DataFrame(
        [
            {"mean_scaled": mean / at, "dispersion": spread / at, "temperature": at, "spectrum": name}
            for mean, at in pairs
            for name, spread in (("concentrated", small), ("dispersed", large))
        ]
    )
    spectra = [
        Spectrum(row["mean_scaled"], row["dispersion"]) for _, row in names.iterrows()
    ]  # attention sees W/λ alone
    seed_list, tables = list(seeds), []
    for setting, options in ARCHITECTURES.items():
        for law in LAWS:
            chosen = replace(stack, layers=max(measured), tokens=law, temperature=1.0, **options)
            measures = list(MEASURES) if not options and law == LAWS[0] else []
            table = depth_experiment(spectra, chosen, seeds=seed_list, measure_at=measured, measures=measures)
            tables.append(table.assign(setting=setting))
    return pd.concat(tables, ignore_index=True).merge(names, on=["mean_scaled", "dispersion"], how="left")


def judged_rows(depth: pd.DataFrame, depths: Sequence[int]) -> pd.DataFrame:
    """The rows of `depth_table` that the claims read: non-zero means at these depths.

    Columns setting, tokens, temperature, mean_scaled, spectrum, layers, seed, residual_ratio, first_entropy_ratio.
    """
    keys = ["setting", "tokens", "temperature", "mean_scaled", "spectrum", "seed"]
    moved = depth[depth["mean_scaled"] != 0]
    first = moved[moved["layer"] == 1].set_index(keys)["entropy_ratio"].rename("first_entropy_ratio")
    ends = moved[moved["layer"].isin(depths)].rename(columns={"layer": "layers"})
    return ends[[*keys, "layers", "residual_ratio"]].join(first, on=keys)


def prevents_rank_collapse(tables: Tables, bar: float = HALF, *, deep: bool = False) -> Verdict:
    """Table depth_end (of `judged_rows`): at the smallest number of layers, or at the largest.

    In a setting (architecture, tokens, mean) the claim holds when the concentrated spectrum keeps more than `bar` of
    the input's residual and more than the dispersed one; medians over seeds with their intervals.
    """
    cases, alone = {}, 0
    for key, group in _settings(tables["depth_end"], deep=deep):
        wide = group.pivot(index="seed", columns="spectrum", values="residual_ratio")
        kept = above(median_interval(wide["concentrated"]), bar)
        cases[key] = both(kept, above(median_interval(wide["concentrated"] - wide["dispersed"]), 0))
        entropy = group.loc[group["spectrum"] == "concentrated", "first_entropy_ratio"].median()
        alone += bool(cases[key] and entropy < SELF_ONLY)
    told = f"; in {alone} of those in which it holds a token reads hardly anything but itself (entropy below a tenth)"
    return _verdict(cases, told if any(cases.values()) else "")


def prevents_rank_collapse_deep(tables: Tables, bar: float = HALF) -> Verdict:
    """Table depth_end, as `prevents_rank_collapse`, at the largest number of layers."""
    return prevents_rank_collapse(tables, bar, deep=True)


def kept_longer(tables: Tables) -> dict[Setting, bool | None]:
    """Per (architecture, tokens, mean): does the concentrated spectrum keep more at fewest layers (None: left open)?"""
    cases = {}
    for key, group in _settings(tables["depth_end"], deep=False):
        wide = group.pivot(index="seed", columns="spectrum", values="residual_ratio")
        cases[key] = above(median_interval(wide["concentrated"] - wide["dispersed"]), 0)
    return cases


def slows_rank_collapse(tables: Tables) -> Verdict:
    """Table depth_end: at equal mean the concentrated spectrum keeps more than the dispersed one, at fewest layers."""
    return _verdict(kept_longer(tables))


def composite_table(*, dim: int, length: int, seeds: Iterable[int]) -> pd.DataFrame:
    """The ℓ1-ℓ∞ residual at the mean token beside its minimum: tokens, seed, at_mean, smallest, ratio."""
    rows = []
    for law in ("random walk", "independent"):
        for seed in seeds:
            x = Stack(tokens=law, length=length, dim=dim).draw_input(Generator().manual_seed(seed))
            at_mean, least = float(rank_residual(x, "l1-linf")), smallest_l1_linf_residual(x)
            rows.append({"tokens": law, "seed": seed, "at_mean": at_mean, "smallest": least, "ratio": at_mean / least})
    return pd.DataFrame(rows)


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
        axis.set_title(title, fontsize="small")
        axis.set(xlabel="key", xticks=[1, length], yticks=[1, length])
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


def _settings(table: pd.DataFrame, *, deep: bool) -> list[tuple[Setting, pd.DataFrame]]:
    """The settings of `judged_rows` at its smallest or its largest number of layers."""
    at_depth = table[table["layers"] == (table["layers"].max() if deep else table["layers"].min())]
    groups = at_depth.groupby(["setting", "tokens", "mean_scaled"])
    return [((str(key[0]), str(key[1]), float(key[2])), group) for key, group in groups]


def _verdict(cases: Mapping[Setting, bool | None], told: str = "") -> Verdict:
    """Count the settings, in all and at each mean."""
    by_mean = []
    for mean in sorted({key[2] for key in cases}, reverse=True):
        found = [status for key, status in cases.items() if key[2] == mean]
        by_mean.append(f"{sum(status is True for status in found)} of {len(found)} at {plain(mean)}")
    named = {f"{setting}, {tokens}, ξ/λ = {plain(mean)}": status for (setting, tokens, mean), status in cases.items()}
    return settings_verdict(named, f"by mean ξ/λ: {', '.join(by_mean)}{told}")


CONDITIONS = (
    "trace ±16, temperatures 1 and √d (ξ/λ = ±16 and ±2), dispersion against concentration at the same trace, four "
    "architectures, three laws of tokens, d = T = 64"
)
RULE = (
    "In each setting (architecture, tokens, mean) the concentrated spectrum keeps more than half of the input's "
    "residual and more than the dispersed spectrum of the same mean: medians over seeds, by their distribution-free "
    "95% intervals. "
)
PREVENTS = "the small eigenspectrum variance prevents both rank and entropy collapse"
TRIED = (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9)

CLAIMS = (
    Claim(
        name="prevents-rank-collapse",
        chapter="rank_collapse",
        provenance="paper",
        statement=f"A small eigenspectrum variance prevents rank collapse over 8 layers ({CONDITIONS}).",
        rule=RULE
        + "Partly when it holds in some and fails in others; inconclusive when it fails in none and some intervals "
        "leave it open.",
        refuted_by="failing in some settings and holding in none",
        tables=("depth_end",),
        judge=prevents_rank_collapse,
        quote=PREVENTS,
        figure="fig-rank-collapse",
        threshold=Threshold("share of the input's residual that is kept", HALF, TRIED, prevents_rank_collapse),
    ),
    Claim(
        name="prevents-rank-collapse-deep",
        chapter="rank_collapse",
        provenance="paper",
        statement=f"A small eigenspectrum variance prevents rank collapse over 24 layers ({CONDITIONS}).",
        rule=RULE + "The same stacks as for 8 layers, read at their end.",
        refuted_by="failing in some settings and holding in none",
        tables=("depth_end",),
        judge=prevents_rank_collapse_deep,
        quote=PREVENTS,
        figure="fig-rank-collapse",
        threshold=Threshold("share of the input's residual that is kept", HALF, TRIED, prevents_rank_collapse_deep),
    ),
    Claim(
        name="concentration-slows-rank-collapse",
        chapter="rank_collapse",
        provenance="ours",
        statement=(
            f"At equal mean a concentrated spectrum keeps tokens more different over 8 layers than a dispersed one "
            f"({CONDITIONS})."
        ),
        rule=(
            "In each setting (architecture, tokens, mean) the paired difference of the residuals after 8 layers, "
            "concentrated minus dispersed, is above 0: its median over seeds, by the interval of the sign test."
        ),
        refuted_by="failing in some settings and holding in none",
        tables=("depth_end",),
        judge=slows_rank_collapse,
        figure="fig-rank-collapse",
    ),
)

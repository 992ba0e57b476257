"""Two transitions: where attention freezes and where tokens become alike, in one unit, and how far a residual helps.

β is σ_a/√log T, for W with independent entries of variance σ_a²/d²; q = ‖x‖²/d and p, the overlap of two tokens over
d, are those of the tokens. β/β_c is the ratio b of `qkrepro.theory.random_energy`. Float64.
Source: book, "Two transitions"; Giorlandino and Goldt 2025 (arXiv 2505.24333); Chen and others 2025 (arXiv 2510.05554).
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import PALETTE, draw_intervals, label_lines
from qkrepro.evidence.verdicts import HALF, ROUNDING, above, both, settings_verdict, within
from qkrepro.theory.attention import attention_logits, softmax_attention
from qkrepro.theory.critical_mean import cosine_limit, critical_mean, simplex_layers
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment
from qkrepro.theory.random_energy import mean_participation, spread_ratio
from qkrepro.theory.statistics import t_interval

READS: tuple[str, ...] = ()
SOURCE = "2505.24333"
SPECTRUM_SAYS = (
    "The plane's β is the dispersion of the spectrum over √log T: too much of it freezes attention; with little, only "
    "a mean of the size of log T keeps tokens apart without a residual connection."
)
MARGIN = 0.05  # of Σ a²; a threshold that leaves out the overlap of the tokens misses by more


def critical_spread(q: float, p: float) -> float:
    """Return β_c = √(2/(q(q − p))), at which the softmax of independent keys freezes; q > p >= 0."""
    return math.sqrt(2 / (q * (q - p)))


def limit(ratio: float) -> float:
    """Return lim Σ a² at β = ratio · β_c as T → ∞: 1 − β_c/β above the threshold, 0 below."""
    return max(1 - 1 / ratio, 0.0) if ratio > 0 else 0.0


def tokens_of_overlap(q: float, p: float, stack: Stack, generator: Generator) -> Tensor:
    """Return Gaussian tokens (T, d) of a stack from a generator, with ‖x‖²/d ≈ q and overlap of two over d ≈ p."""
    common = torch.randn(1, stack.dim, generator=generator, dtype=torch.float64)
    own = torch.randn(stack.length, stack.dim, generator=generator, dtype=torch.float64)
    return math.sqrt(p) * common + math.sqrt(q - p) * own


def freezing(
    laws: Iterable[Sequence[float]], ratios: Sequence[float], stack: Stack, *, queries: int, seeds: Iterable[int]
) -> pd.DataFrame:
    """Measure Σ a² of the first queries for tokens (q, p) and β = ratio · β_c, W Gaussian; one row a seed.

    laws: pairs (q, p). ratios: β/β_c. stack: sizes. seeds: of tokens and W. Returns columns law ("q, p"), ratio, seed,
    squares (Σ a², mean over queries), expected (of the random energy model).
    """
    rows = []
    for (q, p), seed in itertools.product(laws, seeds):
        generator = Generator().manual_seed(seed)
        x = tokens_of_overlap(q, p, stack, generator)
        w = torch.randn(stack.dim, stack.dim, generator=generator, dtype=torch.float64) / stack.dim
        logits = attention_logits(x, w)[:queries]  # (queries, T), at σ_a = 1
        for ratio in ratios:
            sigma = ratio * critical_spread(q, p) * math.sqrt(math.log(stack.length))
            squares = float(softmax_attention(sigma * logits).square().sum(-1).mean())
            rows.append((f"q = {q:g}, p = {p:g}", ratio, seed, squares))
    table = pd.DataFrame(rows, columns=["law", "ratio", "seed", "squares"])
    return table.assign(expected=table["ratio"].map({b: expected_squares(stack.length, b) for b in ratios}))


def expected_squares(length: int, ratio: float) -> float:
    """Return E Σ a² of T independent Gaussian logits at β = ratio · β_c, exact at this length."""
    return mean_participation(length, ratio / spread_ratio(1.0, length))


def over_lengths(lengths: Sequence[int], ratios: Sequence[float]) -> pd.DataFrame:
    """Return the expected Σ a² by length beside its limit: length, ratio, squares, limit."""
    rows = [(length, b, expected_squares(length, b), limit(b)) for b in ratios for length in lengths]
    return pd.DataFrame(rows, columns=["length", "ratio", "squares", "limit"])


def stacks(ratios: Sequence[float], stack: Stack, *, seeds: int) -> pd.DataFrame:
    """Send tokens through the stack without and with a residual connection, at β = ratio · β_c, spectra of mean zero.

    Returns columns ratio, residual (bool), seed, layer, residual_ratio, entropy_ratio.
    """
    spreads = {b / spread_ratio(1.0, stack.length): b for b in ratios}
    spectra, tables = [Spectrum(0.0, spread) for spread in spreads], []
    for residual in (False, True):
        chosen = replace(stack, residual=residual)
        table = depth_experiment(spectra, chosen, seeds=range(seeds), measures=("residual",))
        tables.append(table.assign(ratio=table["dispersion"].map(spreads), residual=residual))
    return pd.concat(tables)[["ratio", "residual", "seed", "layer", "residual_ratio", "entropy_ratio"]]


def simplex_cosines(lengths: Sequence[int], factors: Sequence[float], similarity: float) -> pd.DataFrame:
    """Return the cosine after one layer of tokens at equal angles whose mean grows like log T, beside its limit.

    factors: the mean over log(T − 1)/(1 − ϱ). Returns columns length, factor, cosine, limit.
    """
    rows = []
    for factor, length in itertools.product(factors, lengths):
        cosine = simplex_layers(length, similarity, factor * critical_mean(length, similarity), 1)[1]
        rows.append((length, factor, float(cosine), float(cosine_limit(factor / (1 - similarity), similarity))))
    return pd.DataFrame(rows, columns=["length", "factor", "cosine", "limit"])


def freezes_at_one_threshold(tables: Tables, margin: float = MARGIN) -> Verdict:
    """Judge table freezing: law, ratio, seed, squares, expected; a setting is a law and a ratio."""
    cases = {}
    for (law, ratio), group in tables["freezing"].groupby(["law", "ratio"], sort=False):
        if len(group) > 1:
            apart = t_interval(group["squares"] - group["expected"])
            cases[f"{law}, {ratio:g} β_c"] = within(apart.low, apart.high, -margin, margin)
    return settings_verdict(cases)


def approaches(table: pd.DataFrame, by: str, value: str) -> dict[str, bool | None]:
    """Return by setting whether the distance of a value to its limit falls at every step to a greater length."""
    cases: dict[str, bool | None] = {}
    for key, group in table.groupby(by, sort=False):
        distance = (group.sort_values("length")[value] - group.sort_values("length")["limit"]).abs().to_numpy()
        if len(distance) > 1:
            steps = zip(distance[1:], distance[:-1], strict=True)
            cases[f"{by} {key:g}"] = all(later < earlier or earlier < ROUNDING for later, earlier in steps)
    return cases


def nears_the_limit(tables: Tables) -> Verdict:
    """Judge table lengths: length, ratio, squares, limit; a setting is a ratio."""
    return settings_verdict(approaches(tables["lengths"], "ratio", "squares"))


def logarithm_decides(tables: Tables) -> Verdict:
    """Judge table simplex: length, factor, cosine, limit; a setting is a factor."""
    return settings_verdict(approaches(tables["simplex"], "factor", "cosine"))


def residual_cures_rank_only(tables: Tables, share: float = HALF) -> Verdict:
    """Judge table stacks: ratio, residual, seed, layer, residual_ratio, entropy_ratio.

    A setting is a ratio and a layer above 0. Below β_c: less than the share of the tokens' differences is left without
    a residual connection, and more with one. Above β_c: the entropy lies below the share with one.
    """
    cases = {}
    for (ratio, layer), group in tables["stacks"].query("layer > 0").groupby(["ratio", "layer"], sort=False):
        bare, helped = (group[group["residual"] == residual] for residual in (False, True))
        if min(len(bare), len(helped)) < 2:
            continue
        if group["ratio"].iloc[0] < 1:
            lost = above(t_interval(-bare["residual_ratio"]), -share)
            cases[f"rank, {ratio:g} β_c, layer {layer}"] = both(
                lost, above(t_interval(helped["residual_ratio"]), share)
            )
        else:
            cases[f"entropy, {ratio:g} β_c, layer {layer}"] = above(t_interval(-helped["entropy_ratio"]), -share)
    return settings_verdict(cases)


def plot_freezing(curves: pd.DataFrame, measured: pd.DataFrame, axis: Axes) -> None:
    """Draw Σ a² over β/β_c: a line a length, the limit dashed, and the tokens' means with intervals."""
    for (length, group), colour in zip(curves.groupby("length"), PALETTE, strict=False):
        axis.plot(group["ratio"], group["squares"], color=colour, label=f"T = {length:.4g}")
    limits = curves.drop_duplicates("ratio")
    axis.plot(limits["ratio"], limits["limit"], color=PALETTE[-1], linestyle="--", label="limit")
    for place, (_, group) in enumerate(measured.groupby("law", sort=False)):
        rows = group.groupby("ratio")["squares"].apply(lambda values: pd.Series(t_interval(values)._asdict())).unstack()
        draw_intervals(axis, [b + 0.03 * (place - 1) for b in rows.index], rows, color="black", markersize=4)
    axis.set(xlabel=r"$\beta/\beta_c$", ylabel="sum of squared weights", ylim=(0, 1))
    label_lines(axis, gap=0.06)


def plot_stacks(table: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Draw differences left and entropy over depth, means over seeds; full lines with a residual connection."""
    for axis, column in zip(axes, ("residual_ratio", "entropy_ratio"), strict=True):
        for (ratio, colour), residual in itertools.product(
            zip(sorted(table["ratio"].unique()), PALETTE, strict=False), (False, True)
        ):
            mean = table[(table["ratio"] == ratio) & (table["residual"] == residual)].groupby("layer")[column].mean()
            label = rf"{ratio:g} $\beta_c$" if residual else "_without"
            axis.plot(mean.index, mean, color=colour, linestyle="-" if residual else ":", label=label)
        axis.set(xlabel="layer", ylim=(-0.02, 1.05))
        label_lines(axis)


CLAIMS = (
    Claim(
        name="one-threshold-for-all-tokens",
        chapter="two_transitions",
        provenance="literature",
        statement="Attention among independent tokens of size q and overlap p freezes where β²q² − β²qp = 2.",
        rule=(
            "For each q, p and β/β_c the squared weights differ from the exact expectation of the random energy model "
            "at b = β/β_c by at most 0.05, with the whole 95% t interval over seeds."
        ),
        refuted_by="a whole interval beyond the margin in some settings, and in none within it",
        tables=("freezing",),
        judge=freezes_at_one_threshold,
        figure="fig-freezing",
        threshold=Threshold("distance", MARGIN, (0.01, 0.02, 0.05, 0.1), freezes_at_one_threshold),
        setting="Gaussian tokens of dimension 128",
    ),
    Claim(
        name="squared-weights-near-their-limit",
        chapter="two_transitions",
        provenance="literature",
        statement="The longer the row, the closer are the squared weights to 1 − β_c/β above β_c, and to 0 below.",
        rule="For each β/β_c the distance of the expected sum from its limit falls at every step to a longer row.",
        refuted_by="ratios at which a longer row lies farther from the limit, and none that nears it throughout",
        tables=("lengths",),
        judge=nears_the_limit,
        figure="fig-freezing",
        setting="exact expectations of up to ten thousand million keys",
    ),
    Claim(
        name="residual-cures-rank-not-entropy",
        chapter="two_transitions",
        provenance="literature",
        statement="Residual connections cure rank collapse, not entropy collapse.",
        rule=(
            "At each layer tested, by 95% t intervals over seeds: below β_c less than half of the differences between "
            "tokens is left without a residual connection and more with one; above β_c the entropy stays below half "
            "of log T with one."
        ),
        refuted_by="layers that fail, and none that follows",
        tables=("stacks",),
        judge=residual_cures_rank_only,
        figure="fig-two-stacks",
        threshold=Threshold("share that is left", HALF, (0.3, 0.4, 0.5, 0.6, 0.7), residual_cures_rank_only),
        setting="stacks of up to 16 layers with LayerNorm, 64 tokens",
    ),
    Claim(
        name="the-mean-must-grow-with-the-logarithm",
        chapter="two_transitions",
        provenance="literature",
        statement="Without dispersion a mean of γ log T makes tokens alike below γ − γϱ = 1, and keeps them above.",
        rule="For each γ(1 − ϱ) the cosine after a layer comes closer to its limit at every step to a greater length.",
        refuted_by="factors at which a longer sequence lies farther from the limit, and none that nears it throughout",
        tables=("simplex",),
        judge=logarithm_decides,
        setting="one layer of tokens at equal angles, up to ten thousand million",
    ),
)

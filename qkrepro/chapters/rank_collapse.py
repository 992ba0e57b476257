"""Rank collapse: attention patterns, tokens over depth, and whether a small variance prevents it.

Source: book, "Rank collapse".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Generator, Tensor

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import WIDTH
from qkrepro.evidence.verdicts import HALF, above, both, settings_verdict
from qkrepro.evidence.wording import plain
from qkrepro.theory.attention import attention_logits, causal_mask, softmax_attention
from qkrepro.theory.depth import MEASURES, Spectrum, Stack, depth_experiment
from qkrepro.theory.spectrum import random_spectrum_matrix
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
    """Return residuals over depth for both signs of the trace and none, both spreads, every architecture and law.

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
    spectra = [Spectrum(mean, spread) for mean, spread in names[["mean_scaled", "dispersion"]].to_numpy()]  # of W/λ
    seed_list, tables = list(seeds), []
    for setting, options in ARCHITECTURES.items():
        for law in LAWS:
            chosen = replace(stack, layers=max(measured), tokens=law, temperature=1.0, **options)
            measures = list(MEASURES) if not options and law == LAWS[0] else []
            table = depth_experiment(spectra, chosen, seeds=seed_list, measure_at=measured, measures=measures)
            tables.append(table.assign(setting=setting))
    return pd.concat(tables, ignore_index=True).merge(names, on=["mean_scaled", "dispersion"], how="left")


def judged_rows(depth: pd.DataFrame, depths: Sequence[int]) -> pd.DataFrame:
    """Return the rows of `depth_table` that the claims read: non-zero means at these depths.

    Columns setting, tokens, temperature, mean_scaled, spectrum, layers, seed, residual_ratio, first_entropy_ratio.
    """
    keys = ["setting", "tokens", "temperature", "mean_scaled", "spectrum", "seed"]
    moved = depth[depth["mean_scaled"] != 0]
    first = moved[moved["layer"] == 1].set_index(keys)["entropy_ratio"].rename("first_entropy_ratio")
    ends = moved[moved["layer"].isin(depths)].rename(columns={"layer": "layers"})
    return ends[[*keys, "layers", "residual_ratio"]].join(first, on=keys)


def prevents_rank_collapse(tables: Tables, bar: float = HALF, *, deep: bool = False) -> Verdict:
    """Judge table depth_end (of `judged_rows`) at the smallest number of layers, or at the largest.

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
    note = f"; in {alone} of those in which it holds a token reads hardly anything but itself (entropy below a tenth)"
    return _verdict(cases, note if any(cases.values()) else "")


def prevents_rank_collapse_deep(tables: Tables, bar: float = HALF) -> Verdict:
    """Judge table depth_end, as `prevents_rank_collapse`, at the largest number of layers."""
    return prevents_rank_collapse(tables, bar, deep=True)


def kept_longer(tables: Tables) -> dict[Setting, bool | None]:
    """Return per (architecture, tokens, mean) whether concentration keeps more at fewest layers (None: left open)."""
    cases = {}
    for key, group in _settings(tables["depth_end"], deep=False):
        wide = group.pivot(index="seed", columns="spectrum", values="residual_ratio")
        cases[key] = above(median_interval(wide["concentrated"] - wide["dispersed"]), 0)
    return cases


def slows_rank_collapse(tables: Tables) -> Verdict:
    """Judge table depth_end at fewest layers: at equal mean the concentrated spectrum keeps more than the dispersed."""
    return _verdict(kept_longer(tables))


def token_similarities(trace: float, spread: float, stack: Stack, *, seed: int) -> list[Tensor]:
    """Return the cosine similarity of all pairs of tokens after each layer of one stack, the input first.

    trace, spread: ξ and √(dσ²) of the spectrum of every W_QK, at temperature 1. stack: its layers, length and width,
    under LayerNorm and without a residual connection. Each is (T, T) float64.
    """
    generator, norm = Generator().manual_seed(seed), torch.nn.functional.layer_norm
    x, mask = stack.draw_input(generator), causal_mask(stack.length)
    similarities = [torch.corrcoef(x)]
    for _ in range(stack.layers):
        w = random_spectrum_matrix(stack.dim, trace / stack.dim, spread**2 / stack.dim, generator=generator)
        values = torch.randn(stack.dim, stack.dim, generator=generator, dtype=torch.float64)
        x = norm(softmax_attention(attention_logits(x, w), mask=mask) @ x @ values, (stack.dim,))  # (T, d)
        similarities.append(torch.corrcoef(x))  # after LayerNorm a correlation is a cosine
    return similarities


def spectrum_name(mean_scaled: float, dispersion: float) -> str:
    """Return the name of a spectrum in legends: its mean, and how far its eigenvalues scatter."""
    return f"ξ/λ = {plain(mean_scaled)}, dispersion {plain(dispersion)}"


def plot_attention_patterns(attention: Tensor, titles: Sequence[str], axes: Sequence[Axes]) -> AxesImage:
    """Draw attention matrices, query downwards and key to the right; return the last image for a colour bar.

    attention: (S, T, T), one matrix per axis. Colours are stretched at small weights (power 0.4).
    """
    for axis, weights, title in zip(axes, attention, titles, strict=True):
        image = _plot_pairs(weights, axis, PowerNorm(0.4, vmin=0, vmax=1))
        axis.set(xlabel="key", ylabel="query")
        axis.set_title(title, fontsize="small")
        axis.label_outer()
    return image


def similarity_frames(similarities: Mapping[str, Sequence[Tensor]], titles: Sequence[str]) -> Iterator[Figure]:
    """Yield one figure again and again, with the similarity of all pairs of tokens after the next layer.

    similarities: (T, T) per layer, one panel a name. titles: of the layers.
    """
    figure, axes = plt.subplots(1, len(similarities), figsize=(WIDTH, 3.5), sharey=True)
    images = []
    for axis, (name, matrices) in zip(axes, similarities.items(), strict=True):
        images.append(_plot_pairs(matrices[0], axis, Normalize(-1, 1)))
        axis.set(title=name, xlabel="token", ylabel="token")
        axis.label_outer()
    figure.colorbar(images[-1], ax=axes, label="cosine similarity", aspect=18)
    heading = figure.suptitle(" ", ha="left", x=0.08)
    for title, *layer in zip(titles, *similarities.values(), strict=True):
        for image, matrix in zip(images, layer, strict=True):
            image.set_data(matrix.numpy())
        heading.set_text(f"How alike tokens are, {title}")
        yield figure


def _plot_pairs(matrix: Tensor, axis: Axes, norm: Normalize) -> AxesImage:
    length = len(matrix)
    image = axis.imshow(matrix.numpy(), cmap="cividis", norm=norm, extent=(0.5, length + 0.5, length + 0.5, 0.5))
    axis.set(xticks=[1, length], yticks=[1, length])
    axis.grid(False)
    return image


def plot_depth(
    table: pd.DataFrame, column: str, styles: Mapping[tuple[float, float], dict[str, Any]], axis: Axes
) -> None:
    """Draw a measure over depth: median over seeds, and a band between the quartiles, one line per spectrum.

    column: the measure.
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


def _settings(table: pd.DataFrame, *, deep: bool) -> list[tuple[Setting, pd.DataFrame]]:
    """Return the settings of `judged_rows` at its smallest or its largest number of layers."""
    at_depth = table[table["layers"] == (table["layers"].max() if deep else table["layers"].min())]
    groups = at_depth.groupby(["setting", "tokens", "mean_scaled"])
    return [((str(key[0]), str(key[1]), float(key[2])), group) for key, group in groups]


def _verdict(cases: Mapping[Setting, bool | None], note: str = "") -> Verdict:
    """Count the settings, in all and at each mean."""
    by_mean = []
    for mean in sorted({key[2] for key in cases}, reverse=True):
        statuses = [status for key, status in cases.items() if key[2] == mean]
        by_mean.append(f"{sum(status is True for status in statuses)} of {len(statuses)} at {plain(mean)}")
    named = {f"{setting}, {tokens}, ξ/λ = {plain(mean)}": status for (setting, tokens, mean), status in cases.items()}
    return settings_verdict(named, f"by mean ξ/λ: {', '.join(by_mean)}{note}")


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
        statement="A small eigenspectrum variance prevents rank collapse over 8 layers.",
        conditions=CONDITIONS,
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
        statement="A small eigenspectrum variance prevents rank collapse over 24 layers.",
        conditions=CONDITIONS,
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
            "At equal mean a concentrated spectrum keeps tokens more different over 8 layers than a dispersed one."
        ),
        conditions=CONDITIONS,
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

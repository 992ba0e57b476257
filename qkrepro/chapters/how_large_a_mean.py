"""How large must the mean be? Predicted and measured windows of the scaled mean in which both collapses are held off.

Predictions have no fitted number: the limit of many dimensions (`theory.depth_limit`), the random-energy law
(`theory.random_energy`) and the simplex (`theory.critical_mean`). Measurements draw tokens and value matrices.
W = (ξ/d) I unless a dispersion is named; attention is causal, LayerNorm follows every layer, no residual connection.
Source: book, "How large must the mean be?" (ours; the simplex after arXiv 2510.05554).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from qkrepro.errors import ArgumentError, check_choice
from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.rounding import fixed
from qkrepro.evidence.verdicts import HALF
from qkrepro.theory.attention import attention_entropy, causal_mask, softmax_attention
from qkrepro.theory.critical_mean import cosine_limit, critical_mean, simplex_layers
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment
from qkrepro.theory.depth_limit import ar1_cosines, cosine_residual, depth_limit, smallest_mean, walk_cosines
from qkrepro.theory.random_energy import concentrated_row, entropy_limit, mean_entropy
from qkrepro.theory.rank import rank_residual
from qkrepro.theory.statistics import t_interval
from qkrepro.theory.tokens import draw_tokens

CHAPTER = "how_large_a_mean"
SIMILARITY = 0.3  # ϱ of the tokens at equal angles
LAWS = ("independent", "equal angles", "random walk")
COLOURS = dict(zip(LAWS, sns.color_palette("colorblind", 3), strict=True))
AGREEMENT = 1.2  # factor up to which a predicted and a measured end of a window count as the same
FACTORS = (1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0)  # at which the page shows what the verdict would be
WINDOW = ["tokens", "length", "layers"]


def input_cosines(law: str, length: int) -> Tensor:
    """Cosines of the tokens of a law of LAWS in many dimensions; float64, (T, T). Raises ArgumentError for another."""
    check_choice("law", law, LAWS)
    if law == "random walk":
        return walk_cosines(length)
    independent = ar1_cosines(length, 0.0)
    return independent if law == "independent" else independent * (1 - SIMILARITY) + SIMILARITY


def normalised_tokens(law: str, length: int, dim: int, generator: Generator) -> Tensor:
    """Draw one sequence of a law of LAWS, through LayerNorm; float64, (T, d). Raises ArgumentError for another law."""
    check_choice("law", law, LAWS)
    tokens = draw_tokens("random walk" if law == "random walk" else "independent", length, dim, generator=generator)
    if law == "equal angles":
        common = torch.randn(dim, generator=generator, dtype=torch.float64)
        tokens = math.sqrt(1 - SIMILARITY) * tokens + math.sqrt(SIMILARITY) * common
    return _layer_norm(tokens)


def predicted_curves(
    lengths: Sequence[int], means: Sequence[float], depths: Sequence[int], *, residual: bool = False
) -> pd.DataFrame:
    """Both ratios over the mean from the limit of many dimensions, one row a law, length, depth and mean.

    Columns tokens, length, layers, mean_scaled, residual_ratio (after that many layers, to the input's own) and
    entropy_ratio (the least of these layers, last half of the queries, to that of uniform attention).
    """
    rows = []
    for law in LAWS:
        for length in lengths:
            start = input_cosines(law, length)
            for mean in means:
                limit = depth_limit(start, mean, max(depths), residual=residual)
                kept = cosine_residual(limit.cosines) / cosine_residual(start)
                entropy = _late_entropy(limit.attention, length)
                rows += _curve_rows({"tokens": law, "length": length, "mean_scaled": mean}, depths, kept[1:], entropy)
    return pd.DataFrame(rows)


def measured_curves(
    lengths: Sequence[int], means: Sequence[float], depths: Sequence[int], *, dim: int, seeds: Iterable[int]
) -> pd.DataFrame:
    """`predicted_curves` measured: drawn tokens and value matrices of width d; columns as there, and dim and seed.

    Every mean sees the same tokens and value matrices of its seed.
    """
    scaled = torch.tensor(list(means), dtype=torch.float64)[:, None, None]  # (S, 1, 1)
    rows = []
    for seed in seeds:
        for law in LAWS:
            for length in lengths:
                generator = Generator().manual_seed(seed)
                tokens = normalised_tokens(law, length, dim, generator)  # (T, d)
                x, before, kept, entropy = tokens.expand(len(means), -1, -1), rank_residual(tokens), [], []
                for _ in range(max(depths)):
                    attention = softmax_attention(scaled * (x @ x.mT) / dim, mask=causal_mask(length))  # (S, T, T)
                    values = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / math.sqrt(dim)
                    x = _layer_norm(attention @ x @ values)  # (S, T, d)
                    kept.append(rank_residual(x) / before)
                    entropy.append(_late_entropy(attention, length))
                for index, mean in enumerate(means):
                    head = {"tokens": law, "length": length, "mean_scaled": mean, "dim": dim, "seed": seed}
                    rows += _curve_rows(head, depths, torch.stack(kept)[:, index], torch.stack(entropy)[:, index])
    return pd.DataFrame(rows)


def window_ends(curves: pd.DataFrame) -> pd.DataFrame:
    """Where the two ratios cross one half, by interpolation in the logarithm of the mean; one row a window.

    curves: of `predicted_curves` or `measured_curves`. Columns tokens, length, layers (and seed), lower (the mean above
    which at least half of the residual is left) and upper (below which at least half of the entropy is): 0 or infinity
    when the end lies outside the means of the table.
    """
    keys = [*WINDOW, *(name for name in ("seed",) if name in curves)]
    rows = []
    for group, rows_of_window in curves.groupby(keys, sort=False):
        ordered = rows_of_window.sort_values("mean_scaled")
        means = ordered["mean_scaled"].to_numpy()
        lower = _last_rise(means, ordered["residual_ratio"].to_numpy())
        upper = _first_fall(means, ordered["entropy_ratio"].to_numpy())
        rows.append({**dict(zip(keys, group, strict=True)), "lower": lower, "upper": upper})
    return pd.DataFrame(rows)


def compared_ends(predicted: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Predicted and measured ends side by side, one row an end that both tables hold inside their means.

    The upper end is that of the deepest stack alone: the first layer has the least entropy, so it is the same for all.
    predicted, measured: of `window_ends`. Columns tokens, length, layers, end ("lower" or "upper"), predicted, measured
    (geometric mean over seeds), low and high (95% t interval of the logarithm), seeds.
    """
    rows = []
    for keys, seeds in measured.groupby(WINDOW, sort=False):
        window = predicted[(predicted[WINDOW] == list(keys)).all(axis=1)]
        for end in ("lower", "upper") if seeds["layers"].iloc[0] == measured["layers"].max() else ("lower",):
            value, drawn = float(window[end].iloc[0]), seeds[end].to_numpy()
            if 0 < value < math.inf and ((drawn > 0) & np.isfinite(drawn)).all():
                logs = t_interval(np.log(drawn))
                numbers = dict(zip(("measured", "low", "high"), np.exp(logs), strict=True))
                head = {**dict(zip(WINDOW, keys, strict=True)), "end": end, "predicted": value}
                rows.append({**head, **numbers, "seeds": len(drawn)})
    return pd.DataFrame(rows, columns=[*WINDOW, "end", "predicted", "measured", "low", "high", "seeds"])


def entropy_over_spread(counts: Sequence[int], ratios: Sequence[float], *, draws: int, seed: int) -> pd.DataFrame:
    """Entropy of rows of independent logits over log n: simulated, exact expectation and limit, one row a case.

    Columns count, ratio (b, spread over √(2 log n)), simulated, standard_error, exact, limit.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for count in counts:
        noise = torch.randn(draws, count, generator=generator, dtype=torch.float64)
        for ratio in ratios:
            spread = ratio * math.sqrt(2 * math.log(count))
            sample = attention_entropy(softmax_attention(spread * noise)) / math.log(count)
            rows.append(
                {
                    "count": count,
                    "ratio": ratio,
                    "simulated": float(sample.mean()),
                    "standard_error": float(sample.std()) / math.sqrt(draws),
                    "exact": mean_entropy(count, spread) / math.log(count),
                    "limit": float(entropy_limit(ratio)),
                }
            )
    return pd.DataFrame(rows)


def entropy_over_dispersion(
    growths: Sequence[float], dispersions: Sequence[float], *, length: int, dim: int, seeds: Iterable[int]
) -> pd.DataFrame:
    """Entropy of independent tokens in one layer over the dispersion, at means of growth · log T; one row a draw.

    Symmetric matrices of drawn spectra. Columns growth, mean_scaled, dispersion, seed, entropy_ratio (last half of the
    queries, to uniform attention) and predicted (the exact expectation at the middle of that half).
    """
    growth_of = {growth * math.log(length): growth for growth in growths}
    spectra = [Spectrum(mean, spread) for mean in growth_of for spread in dispersions]
    stack = Stack(layers=1, length=length, dim=dim, tokens="independent")
    table = depth_experiment(spectra, stack, seeds=seeds, measure_at=[1], measures=["residual"])
    table = table.loc[table["layer"] == 1, ["mean_scaled", "dispersion", "seed", "entropy_ratio"]]
    predicted = {
        (spectrum.trace, spectrum.spread): float(
            concentrated_row(round(0.75 * length), dim, torch.tensor([spectrum.trace]), spectrum.spread).entropy
        )
        / stack.entropy_scale
        for spectrum in spectra
    }
    table["predicted"] = [predicted[key] for key in zip(table["mean_scaled"], table["dispersion"], strict=True)]
    table.insert(0, "growth", table["mean_scaled"].map(growth_of))
    return table.reset_index(drop=True)


def simplex_curves(lengths: Sequence[int], growths: Sequence[float], *, similarity: float = SIMILARITY) -> pd.DataFrame:
    """Cosine after one layer of full attention on tokens at equal angles, and its limit; one row a length and growth.

    growths: ξ/λ over the critical mean log T/(1 − ϱ). Columns length (0 for the limit), growth, cosine.
    """
    rows = []
    for growth in growths:
        for length in lengths:
            mean = growth * math.log(length) / (1 - similarity)
            cosine = float(simplex_layers(length, similarity, mean, 1)[-1])
            rows.append({"length": length, "growth": growth, "cosine": cosine})
        limit = float(cosine_limit(growth / (1 - similarity), similarity))
        rows.append({"length": 0, "growth": growth, "cosine": limit})
    return pd.DataFrame(rows)


def right_angle_curves(depths: Sequence[int], growths: Sequence[float], *, length: int) -> pd.DataFrame:
    """Cosine of independent tokens after some layers of full attention; growths are ξ/λ over log T.

    Columns layers, growth, cosine and threshold, 1 − 1/(2L); one row a depth and growth.
    """
    rows = []
    for growth in growths:
        cosines = simplex_layers(length, 0.0, growth * math.log(length), max(depths))
        rows += [
            {"layers": depth, "growth": growth, "cosine": float(cosines[depth]), "threshold": 1 - 1 / (2 * depth)}
            for depth in depths
        ]
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------------ figures


def plot_cosines(law: str, means: Sequence[float], *, length: int, layers: int) -> Figure:
    """Cosines between the tokens of a law before and after L layers, one image a mean; at most three means."""
    start = input_cosines(law, length)
    ends = [depth_limit(start, mean, layers).cosines[-1] for mean in means]
    titles = ["input", *(f"ξ/λ = {mean:g}" for mean in means)]
    figure, axes = plt.subplots(1, len(titles), figsize=(7.5, 2.6))
    figure.suptitle(f"A small mean makes all tokens alike within {layers} layers", fontsize="medium", fontweight="bold")
    extent = (0.5, length + 0.5, length + 0.5, 0.5)
    for axis, cosines, title in zip(axes, [start, *ends], titles, strict=True):
        image = axis.imshow(cosines.numpy(), cmap="cividis", vmin=0, vmax=1, extent=extent)
        axis.set_title(title, fontweight="normal")
        axis.set(xlabel="token", xticks=[1, length], yticks=[1, length])
        axis.grid(False)
    axes[0].set_ylabel("token")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    return figure


def plot_windows(predicted: pd.DataFrame, compared: pd.DataFrame, *, layers: int) -> Figure:
    """The window of the mean over the length, one panel a law: band as predicted, points as measured after L layers."""
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 3.6), sharey=True)
    titles = {
        "independent": "Independent tokens:\na sliver at most",
        "equal angles": "Tokens at equal angles:\nno window",
        "random walk": "Random walk:\na window that opens",
    }
    for axis, law in zip(axes, LAWS, strict=True):
        lines = predicted[(predicted["tokens"] == law) & (predicted["layers"] == layers)].sort_values("length")
        lower, upper = lines["lower"].to_numpy(), lines["upper"].to_numpy()
        axis.plot(lines["length"], upper, color=COLOURS[law], linestyle="--", label="entropy falls below half")
        axis.plot(lines["length"], lower, color=COLOURS[law], label="residual rises above half")
        axis.fill_between(lines["length"], lower, upper, where=upper > lower, color=COLOURS[law], alpha=0.2)
        points = compared[(compared["tokens"] == law) & (compared["layers"] == layers)]
        for end, marker in (("lower", "o"), ("upper", "^")):
            shown = points[points["end"] == end]
            error = [shown["measured"] - shown["low"], shown["high"] - shown["measured"]]
            axis.errorbar(shown["length"], shown["measured"], error, fmt=marker, color="black", markersize=4, capsize=2)
        axis.set(title=titles[law], xlabel="length T (tokens)", xscale="log", yscale="log")
        axis.set_xticks(sorted(lines["length"]), [f"{length:g}" for length in sorted(lines["length"])])
        axis.minorticks_off()
    axes[0].set_ylabel("scaled mean ξ/λ")
    axes[0].set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    axes[2].legend(loc="lower right", fontsize="x-small")
    return figure


def plot_curves(predicted: pd.DataFrame, measured: pd.DataFrame, *, length: int) -> Figure:
    """Residual (a line a depth) and entropy over the mean at one length: lines predicted, points measured."""
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 3.7), sharey=True)
    figure.suptitle("Drawn stacks lose what the limit says", fontsize="medium", fontweight="bold")
    depths = sorted(predicted["layers"].unique())
    palette = dict(zip(depths, sns.color_palette("viridis", len(depths)), strict=True))
    for axis, law in zip(axes, LAWS, strict=True):
        lines = predicted[(predicted["tokens"] == law) & (predicted["length"] == length)]
        points = measured[(measured["tokens"] == law) & (measured["length"] == length)]
        means = points.groupby(["layers", "mean_scaled"])[["residual_ratio", "entropy_ratio"]].mean().reset_index()
        for depth in depths:
            line, point = lines[lines["layers"] == depth], means[means["layers"] == depth]
            axis.plot(line["mean_scaled"], line["residual_ratio"], color=palette[depth], label=f"{depth}")
            axis.plot(point["mean_scaled"], point["residual_ratio"], ".", color=palette[depth], markersize=4)
        line, point = lines[lines["layers"] == depths[-1]], means[means["layers"] == depths[-1]]
        axis.plot(line["mean_scaled"], line["entropy_ratio"], color="black", linestyle="--", label="entropy")
        axis.plot(point["mean_scaled"], point["entropy_ratio"], ".", color="black", markersize=4)
        axis.axhline(HALF, color="grey", linewidth=0.8)
        axis.set_title(law.capitalize(), fontweight="normal")
        axis.set(xlabel="scaled mean ξ/λ", xscale="log", ylim=(0, 1.05))
    axes[0].set_ylabel("share kept (1 = all)")
    axes[0].legend(title="residual after\nlayers", fontsize="x-small", title_fontsize="x-small", loc="center right")
    return figure


def plot_entropy(spread: pd.DataFrame, dispersion: pd.DataFrame) -> Figure:
    """Left: entropy of independent rows over the spread of the logits. Right: over the dispersion, at given means."""
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.6))
    palette = sns.color_palette("flare", spread["count"].nunique())
    for colour, (count, rows) in zip(palette, spread.groupby("count"), strict=True):
        axes[0].plot(rows["ratio"], rows["exact"], color=colour, label=f"n = {count:,}")
        axes[0].errorbar(rows["ratio"], rows["simulated"], 2 * rows["standard_error"], fmt=".", color=colour)
    ratios = np.linspace(0, spread["ratio"].max(), 201)
    axes[0].plot(ratios, entropy_limit(torch.from_numpy(ratios)), color="black", linestyle="--", label="limit 1 − b²")
    axes[0].set(title="The limit of long rows\ncomes slowly near b = 1", xlabel="spread of logits b (of √(2 log n))")
    axes[0].set_ylabel("entropy (of log n)")
    colours = sns.color_palette("colorblind", dispersion["growth"].nunique() + 3)[3:]
    for colour, (growth, rows) in zip(colours, dispersion.groupby("growth"), strict=True):
        means = rows.groupby("dispersion")[["entropy_ratio", "predicted"]].mean()
        axes[1].plot(means.index, means["predicted"], color=colour, label=f"ξ/λ = {growth:g} log T")
        axes[1].plot(means.index, means["entropy_ratio"], "o", color=colour, markersize=4)
    axes[1].set(
        title="For means above log T\ndispersion raises the entropy", xlabel="dispersion √(dσ²)/λ", ylim=(0, 1.02)
    )
    axes[1].set_ylabel("entropy (of uniform)")
    for axis in axes:
        axis.legend(fontsize="x-small")
    return figure


def plot_simplex(equal: pd.DataFrame, right: pd.DataFrame) -> Figure:
    """Cosine after layers without any variance. Left: equal angles, one layer. Right: right angles, several layers."""
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.6), sharey=True)
    finite = equal[equal["length"] > 0]
    palette = sns.color_palette("flare", finite["length"].nunique())
    for colour, (_, rows) in zip(palette, finite.groupby("length"), strict=True):
        axes[0].plot(rows["growth"], rows["cosine"], color=colour, label=f"T = {_power(int(rows['length'].iloc[0]))}")
    limit = equal[equal["length"] == 0]
    for rows in (limit[limit["growth"] < 1], limit[limit["growth"] > 1]):
        axes[0].plot(rows["growth"], rows["cosine"], color="black", linestyle="--")
    axes[0].plot(limit["growth"][limit["growth"] == 1], limit["cosine"][limit["growth"] == 1], "o", color="black")
    axes[0].set(title="Equal angles: one threshold", xlabel="mean ξ/λ (of log T/(1 − ϱ))")
    axes[0].set_ylabel("cosine between tokens")
    colours = sns.color_palette("viridis", right["layers"].nunique())
    for colour, (layers, rows) in zip(colours, right.groupby("layers"), strict=True):
        axes[1].plot(
            rows["growth"], rows["cosine"], color=colour, label="1 layer" if layers == 1 else f"{layers} layers"
        )
        axes[1].axvline(rows["threshold"].iloc[0], color=colour, linestyle=":", linewidth=1)
    axes[1].set(title="Right angles: depth moves it", xlabel="mean ξ/λ (of log T)")
    for axis in axes:
        axis.legend(fontsize="x-small")
    return figure


# ------------------------------------------------------------------------------------------------- rules of the claims


def ends_predicted(tables: Tables, factor: float = AGREEMENT) -> Verdict:
    """Table ends: of `compared_ends`. An end agrees when the interval lies within `factor` of the prediction.

    It disagrees when the interval lies outside, and is undecided when it reaches across. Reproduced when at least half
    are decided and all of these agree, not reproduced when fewer than half of them agree, inconclusive when fewer than
    half are decided.
    """
    table = tables["ends"]
    agree, disagree = decided_ends(table, factor)
    worst = float(np.exp(np.abs(np.log(table["measured"] / table["predicted"])).max())) if len(table) else math.nan
    because = (
        f"{int(agree.sum())} of {len(table)} ends within a factor of {factor:g} of the prediction, "
        f"{int(disagree.sum())} outside, {int((~agree & ~disagree).sum())} undecided; the widest is off by a factor of "
        f"{fixed(worst)}"
    )
    return _decided(agree.tolist(), disagree.tolist(), because)


def decided_ends(ends: pd.DataFrame, factor: float = AGREEMENT) -> "tuple[pd.Series[bool], pd.Series[bool]]":
    """Return which ends agree with their prediction within a factor, and which lie outside; the rest is undecided."""
    low, high = ends["low"] / ends["predicted"], ends["high"] / ends["predicted"]
    return (low >= 1 / factor) & (high <= factor), (high < 1 / factor) | (low > factor)


def walk_is_wider(tables: Tables) -> Verdict:
    """Table widths: length, other (law beside the walk), difference, low, high (paired 95% interval over seeds).

    The difference is that of log₂(upper/lower) between walk and the other law. A case holds when the interval lies
    above 0, fails when it lies below.
    """
    table = tables["widths"]
    holds, fails = table["low"] > 0, table["high"] < 0
    least = table["difference"].min() if len(table) else math.nan
    because = (
        f"wider in {int(holds.sum())} of {len(table)} comparisons, narrower in {int(fails.sum())}; "
        f"the least difference is {fixed(float(least), 1)} octaves"
    )
    return _decided(holds.tolist(), fails.tolist(), because)


def dispersion_raises_entropy(tables: Tables) -> Verdict:
    """Table dispersion: of `entropy_over_dispersion`; means between log T and 2 log T.

    At each mean the largest entropy over the dispersions, seed by seed, minus that at the least dispersion, at the
    dispersion that the prediction names: paired 95% interval above 0 holds, below 0 fails.
    """
    table = tables["dispersion"].query("1 < growth < 2")
    holds, fails, gains = [], [], []
    for _, rows in table.groupby("growth"):
        best = rows.groupby("dispersion")["predicted"].mean().idxmax()
        wide = rows.pivot(index="seed", columns="dispersion", values="entropy_ratio")
        gain = t_interval(wide[best] - wide[wide.columns.min()])
        holds.append(gain.low > 0)
        fails.append(gain.high < 0 or best == wide.columns.min())
        gains.append(gain.estimate)
    because = (
        f"at {sum(holds)} of {len(holds)} means between log T and 2 log T the entropy rises with the dispersion"
        + (f", by {fixed(min(gains))} to {fixed(max(gains))} of that of uniform attention" if gains else "")
    )
    return _decided(holds, fails, because)


def width_table(measured: pd.DataFrame, *, layers: int) -> pd.DataFrame:
    """Differences of log₂(upper/lower) between the walk and the other laws after L layers, paired by seed.

    measured: of `window_ends` over `measured_curves`. Columns length, other, difference, low, high. Windows whose ends
    lie outside the means are left out.
    """
    table = measured[measured["layers"] == layers].copy()
    inside = (table["lower"] > 0) & np.isfinite(table["lower"]) & (table["upper"] > 0) & np.isfinite(table["upper"])
    table = table[inside]
    table["octaves"] = np.log2(table["upper"] / table["lower"])
    wide = table.pivot(index=["length", "seed"], columns="tokens", values="octaves")
    rows = []
    for length, seeds in wide.groupby("length"):
        for law in LAWS[:2]:
            paired = (seeds["random walk"] - seeds[law]).dropna() if {law, "random walk"} <= set(seeds) else []
            if len(paired) > 1:
                estimate, low, high = t_interval(paired)
                rows.append({"length": length, "other": law, "difference": estimate, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["length", "other", "difference", "low", "high"])


def headline(
    ends: pd.DataFrame, predicted: pd.DataFrame, dispersion: pd.DataFrame, *, length: int, layers: int
) -> dict[str, float | int]:
    """Return the numbers that the chapter's sentences name, all at this length and after this many layers.

    ends: of `compared_ends`; predicted: of `window_ends` over `predicted_curves`, with half as many layers too;
    dispersion: of `entropy_over_dispersion`.
    """
    window = predicted.set_index(WINDOW)[["lower", "upper"]].to_dict()
    entropy = dispersion[dispersion["growth"] > 1].groupby(["growth", "dispersion"])["entropy_ratio"].mean().unstack()
    agree, disagree = decided_ends(ends)
    return {
        "layers": layers,
        "length": length,
        "log-length": math.log(length),
        "independent-lower": float(window["lower"][("independent", length, layers)]),
        "independent-upper": float(window["upper"][("independent", length, layers)]),
        "walk-lower": float(window["lower"][("random walk", length, layers)]),
        "walk-upper": float(window["upper"][("random walk", length, layers)]),
        "walk-lower-half": float(window["lower"][("random walk", length, layers // 2)]),
        "walk-lower-residual": smallest_mean(walk_cosines(length), layers, residual=True),
        "gain": float((entropy.max(axis=1) - entropy.iloc[:, 0]).max()),
        "critical": critical_mean(1024, SIMILARITY),
        "ends": len(ends),
        "agree": int(agree.sum()),
        "disagree": int(disagree.sum()),
    }


CLAIMS = (
    Claim(
        name="mean-window-predicted",
        chapter=CHAPTER,
        provenance="ours",
        statement="The limit of many dimensions predicts at which means half of the entropy and half of the residual "
        "are left, without a fitted number.",
        rule=f"An end of a window agrees when its 95% t interval over seeds lies within a factor of {AGREEMENT:g} of "
        "the prediction, disagrees when it lies outside, and is undecided otherwise; reproduced when at least half are "
        "decided and all of these agree.",
        refuted_by="fewer than half of the decided ends agreeing; inconclusive when fewer than half are decided",
        tables=("ends",),
        judge=ends_predicted,
        figure="fig-mean-windows",
        threshold=Threshold("factor of agreement", AGREEMENT, FACTORS, ends_predicted),
    ),
    Claim(
        name="window-needs-a-walk",
        chapter=CHAPTER,
        provenance="ours",
        statement="After eight layers the window of means without either collapse is wider for a random walk than for "
        "independent tokens and for tokens at equal angles.",
        rule="At each length and for each other law the paired 95% interval of the difference in octaves lies above 0.",
        refuted_by="fewer than half of the decided comparisons above 0; inconclusive when fewer than half are decided",
        tables=("widths",),
        judge=walk_is_wider,
        figure="fig-mean-windows",
    ),
    Claim(
        name="dispersion-can-raise-entropy",
        chapter=CHAPTER,
        provenance="ours",
        statement="For independent tokens and a mean between log T and 2 log T a dispersed spectrum has more entropy "
        "than one without variance.",
        rule="At each such mean the paired 95% interval of the gain lies above 0, at the dispersion that the exact "
        "expectation names.",
        refuted_by="fewer than half of the decided means above 0; inconclusive when fewer than half are decided",
        tables=("dispersion",),
        judge=dispersion_raises_entropy,
        figure="fig-mean-entropy",
    ),
)


def _decided(holds: Sequence[bool], fails: Sequence[bool], because: str) -> Verdict:
    """The outcome of cases that hold, fail or are undecided; see the rules of the claims for the words."""
    if not len(holds):
        return Verdict("not run", "no data yet")
    decided = sum(holds) + sum(fails)
    outcome: Outcome
    if 2 * decided < len(holds):
        outcome = "inconclusive"
    elif not sum(fails):
        outcome = "reproduced"
    else:
        outcome = "partly" if 2 * sum(holds) >= decided else "not reproduced"
    return Verdict(outcome, because, sum(holds), len(holds))


def _curve_rows(head: Mapping[str, Any], depths: Sequence[int], kept: Tensor, entropy: Tensor) -> list[dict[str, Any]]:
    """One row a depth: kept (layers,) the residual ratios, entropy (layers,) the entropy ratios, least so far taken."""
    least = entropy.cummin(0).values
    return [
        {**head, "layers": depth, "residual_ratio": float(kept[depth - 1]), "entropy_ratio": float(least[depth - 1])}
        for depth in depths
    ]


def _late_entropy(attention: Tensor, length: int) -> Tensor:
    """Mean entropy of the last half of the causal queries over that of uniform attention; (..., T, T) to (...)."""
    return attention_entropy(attention[..., length // 2 :, :]).mean(-1) / math.log(0.75 * length)


def _last_rise(means: np.ndarray, values: np.ndarray) -> float:
    """Mean above which the values stay at one half or more; 0 when they always do, infinity when the last does not."""
    below = np.flatnonzero(values < HALF)
    if not len(below):
        return 0.0
    return math.inf if below[-1] == len(means) - 1 else _crossing(means, values, int(below[-1]))


def _first_fall(means: np.ndarray, values: np.ndarray) -> float:
    """First mean at which the values fall below one half; infinity when they never do, 0 when the first is below."""
    below = np.flatnonzero(values < HALF)
    if not len(below):
        return math.inf
    return 0.0 if below[0] == 0 else _crossing(means, values, int(below[0]) - 1)


def _crossing(means: np.ndarray, values: np.ndarray, left: int) -> float:
    if means[0] <= 0:
        raise ArgumentError(f"means must be positive, got {means[0]}")
    share = (HALF - values[left]) / (values[left + 1] - values[left])
    return float(np.exp(np.log(means[left]) + share * np.log(means[left + 1] / means[left])))


def _layer_norm(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=0.0)


def _power(length: int) -> str:
    return f"{length:,}" if length < 10**6 else f"10^{round(math.log10(length))}"

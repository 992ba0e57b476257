"""How large must the mean be? Predicted and measured windows of the scaled mean side by side, and what they decide.

The curves are in `theory.mean_window`, `theory.random_energy` and `theory.critical_mean`.
Source: book, "How large must the mean be?" (ours; the simplex after arXiv 2510.05554).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.rounding import fixed
from qkrepro.evidence.style import INK, PALETTE, WIDTH, label_lines, name_colours
from qkrepro.evidence.verdicts import HALF, above
from qkrepro.theory.critical_mean import critical_mean
from qkrepro.theory.depth_limit import depth_limit, smallest_mean, walk_cosines
from qkrepro.theory.mean_window import (
    LAWS,
    SIMILARITY,
    WINDOW,
    input_cosines,
    measured_curves,
    predicted_curves,
    similarity,
)
from qkrepro.theory.random_energy import entropy_limit
from qkrepro.theory.statistics import t_interval

CHAPTER = "how_large_a_mean"
COLOURS = dict(zip(LAWS, (PALETTE[0], PALETTE[4], PALETTE[2]), strict=True))
AGREEMENT = 1.2  # factor up to which a predicted and a measured end of a window count as the same
FACTORS = (1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0)  # at which the page shows what the verdict would be
KEPT = ("entropy_ratio", "residual_ratio")


def size_table(
    growths: Sequence[float], *, length: int, layers: int, dim: int, seeds: Iterable[int], dispersion: float
) -> pd.DataFrame:
    """Hold what claims and alternatives expect at several sizes of the mean against what drawn stacks keep.

    Parameters
    ----------
    growths
        ξ/λ over log T/(1 − ϱ), with ϱ the `similarity` of a law.
    length, layers, dim, seeds
        Of the stacks: T, L, d, and the seeds that they are drawn with.
    dispersion
        √(dσ²)/λ of the spectrum that the one without variance is compared with.

    Returns
    -------
    DataFrame
        A row a law and growth: tokens, growth, mean_scaled; what survives with at least one half by the abstract, by
        the threshold log T/(1 − ϱ), by the limit of many dimensions and in the stacks without variance ("both",
        "entropy", "differences" of the tokens, "neither", and "open" where an interval contains one half); entropy and
        residual, the shares kept; and for both whether less variance keeps "more" or "less" ("open" where the paired
        95% interval contains 0), as entropy_change and residual_change.

    """
    rows, drawn = [], list(seeds)
    for law in LAWS:
        critical = math.log(length) / (1 - similarity(law, length))
        means = [growth * critical for growth in growths]
        settings: dict[str, Any] = {"dim": dim, "seeds": drawn, "laws": [law]}
        none, wide = (
            measured_curves([length], means, [layers], **settings, dispersion=spread) for spread in (0.0, dispersion)
        )
        limit = predicted_curves([length], means, [layers], laws=[law])
        for growth, mean in zip(growths, means, strict=True):
            row: dict[str, Any] = {"tokens": law, "growth": growth, "mean_scaled": mean, "abstract": "both"}
            row["threshold"] = "entropy" if growth < 1 else "differences"
            ratios = [table[table["mean_scaled"] == mean] for table in (limit, none, wide)]
            row["limit"] = _survivors(*(float(ratios[0][name].iloc[0]) > HALF for name in KEPT))
            kept = [t_interval(ratios[1][name]) for name in KEPT]
            row["measured"] = _survivors(*(above(interval, HALF) for interval in kept))
            for name, interval in zip(KEPT, kept, strict=True):
                change = t_interval(ratios[1][name].to_numpy() - ratios[2][name].to_numpy())
                word = {True: "more", False: "less", None: "open"}[above(change, 0.0)]
                row |= {name.removesuffix("_ratio"): interval.estimate, f"{name.removesuffix('_ratio')}_change": word}
            rows.append(row)
    return pd.DataFrame(rows)


def _survivors(entropy: bool | None, differences: bool | None) -> str:
    """Return what is left where both, one or none of the two hold; "open" where one is undecided."""
    if entropy is None or differences is None:
        return "open"
    return {(True, True): "both", (True, False): "entropy", (False, True): "differences"}.get(
        (entropy, differences), "neither"
    )


def compared_ends(predicted: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Return predicted and measured ends side by side, one row an end that both tables hold inside their means.

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


# ------------------------------------------------------------------------------------------------------------ figures


def plot_cosines(law: str, means: Sequence[float], *, length: int, layers: int) -> Figure:
    """Draw the cosines between the tokens of a law before and after L layers, one image a mean; at most three means.

    length: T, tokens.
    """
    start = input_cosines(law, length)
    ends = [depth_limit(start, mean, layers).cosines[-1] for mean in means]
    titles = ["input", *(f"after, ξ/λ = {mean:g}" for mean in means)]
    figure, axes = plt.subplots(1, len(titles), figsize=(WIDTH, 2.4), layout="compressed")
    figure.suptitle(f"A small mean makes all tokens alike within {layers} layers")
    for axis, cosines, title in zip(axes, [start, *ends], titles, strict=True):
        image = axis.imshow(
            cosines.numpy(), cmap="cividis", vmin=0, vmax=1, extent=(0.5, length + 0.5, length + 0.5, 0.5)
        )
        axis.set(xlabel="token", xticks=[1, length], yticks=[1, length])
        axis.set_title(title, fontweight="normal")
        axis.grid(False)
    axes[0].set_ylabel("token")
    figure.colorbar(image, ax=axes, label="cosine")
    return figure


def plot_windows(predicted: pd.DataFrame, compared: pd.DataFrame, *, layers: int) -> Figure:
    """Draw the window of the mean over the length, one panel a law: band as predicted, points as measured."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.4), sharey=True)
    titles = ("Independent tokens:\na sliver at most", "Equal angles:\nno window", "Random walk:\na window that opens")
    for axis, law, title in zip(axes, LAWS, titles, strict=True):
        lines = predicted[(predicted["tokens"] == law) & (predicted["layers"] == layers)].sort_values("length")
        lower, upper = lines["lower"].to_numpy(), lines["upper"].to_numpy()
        axis.plot(lines["length"], upper, color=COLOURS[law], linestyle="--")
        axis.plot(lines["length"], lower, color=COLOURS[law])
        axis.fill_between(lines["length"], lower, upper, where=upper > lower, color=COLOURS[law], alpha=0.25)
        points = compared[(compared["tokens"] == law) & (compared["layers"] == layers)]
        for end, marker in (("lower", "o"), ("upper", "^")):
            shown = points[points["end"] == end]
            error = [shown["measured"] - shown["low"], shown["high"] - shown["measured"]]
            axis.errorbar(shown["length"], shown["measured"], error, fmt=marker, color=INK, markersize=5, capsize=2)
        axis.set(title=title, xlabel="length T (tokens)", xscale="log", yscale="log")
        axis.set_xticks(sorted(lines["length"]), [f"{length:g}" for length in sorted(lines["length"])])
        axis.minorticks_off()
    axes[0].set_ylabel("scaled mean ξ/λ")
    axes[0].set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    for height, text in (
        (46, "above the dashed line\nentropy is lost"),
        (2.6, "below the full line\ndifferences are lost"),
    ):
        axes[1].text(16, height, text, va="center", fontsize="small", color=INK)
    return figure


def plot_curves(predicted: pd.DataFrame, measured: pd.DataFrame, *, length: int) -> Figure:
    """Draw residual (a line a depth) and entropy over the mean at one length: lines predicted, points measured."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.4), sharey=True)
    figure.suptitle("Drawn stacks lose what the limit says")
    depths = sorted(predicted["layers"].unique())
    for axis, law in zip(axes, LAWS, strict=True):
        lines, points = (
            table[(table["tokens"] == law) & (table["length"] == length)] for table in (predicted, measured)
        )
        means = points.groupby(["layers", "mean_scaled"], as_index=False)[list(KEPT)].mean()
        shown = [(depth, "residual_ratio", colour) for depth, colour in zip(depths, _shades(len(depths)), strict=True)]
        for depth, column, colour in [*shown, (depths[-1], "entropy_ratio", INK)]:
            line, point = lines[lines["layers"] == depth], means[means["layers"] == depth]
            style = {"linestyle": "--" if column == "entropy_ratio" else "-", "color": colour}
            axis.plot(line["mean_scaled"], line[column], **style)
            axis.plot(point["mean_scaled"], point[column], ".", color=colour, markersize=4)
        axis.axhline(HALF, color=INK, linewidth=0.8, linestyle=":")
        axis.set_title(law.capitalize(), fontweight="normal")
        axis.set(xlabel="scaled mean ξ/λ", xscale="log", ylim=(0, 1.08), xlim=(0.55, None))
        axis.set_xticks([1, 10, 100], ["1", "10", "100"])
    names = {f"{depth} layer{'s' if depth > 1 else ''}": colour for depth, _, colour in shown}
    name_colours(axes[0], names | {"entropy": INK}, (0.62, 0.82))
    axes[0].set_ylabel("share kept (1 = all)")
    return figure


def plot_entropy(spread: pd.DataFrame, dispersion: pd.DataFrame) -> Figure:
    """Draw the entropy of independent rows over the spread of the logits, and over the dispersion at given means."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.4))
    for colour, (count, rows) in zip(_shades(spread["count"].nunique()), spread.groupby("count"), strict=True):
        axes[0].plot(rows["ratio"], rows["exact"], color=colour, label=f"n = {count:,}")
        axes[0].errorbar(rows["ratio"], rows["simulated"], 2 * rows["standard_error"], fmt=".", color=colour)
    ratios = np.linspace(0, spread["ratio"].max(), 201)
    axes[0].plot(ratios, entropy_limit(torch.from_numpy(ratios)), color=INK, linestyle="--", label="limit 1 − b²")
    axes[0].set(title="The limit of long rows\ncomes slowly near b = 1", xlabel="spread of logits b (of √(2 log n))")
    axes[0].set_ylabel("entropy (of log n)")
    named = {}
    for colour, (growth, rows) in zip(
        _shades(dispersion["growth"].nunique()), dispersion.groupby("growth"), strict=True
    ):
        means = rows.groupby("dispersion")[["entropy_ratio", "predicted"]].mean()
        axes[1].plot(means.index, means["predicted"], color=colour)
        axes[1].plot(means.index, means["entropy_ratio"], "o", color=colour, markersize=4)
        named[f"mean {growth:g} log T"] = colour
    axes[1].set(title="Above log T dispersion\nraises the entropy", xlabel="dispersion √(dσ²)/λ", ylim=(0, 1.02))
    axes[1].set_ylabel("entropy (of uniform)")
    label_lines(axes[0])
    name_colours(axes[1], named, (0.5, 0.95))
    return figure


def plot_simplex(equal: pd.DataFrame, right: pd.DataFrame) -> Figure:
    """Draw the cosine after layers without variance: equal angles and one layer, right angles and several."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True)
    finite, limit = equal[equal["length"] > 0], equal[equal["length"] == 0]
    names: list[dict[str, Any]] = [{}, {}]
    for colour, length in zip(_shades(finite["length"].nunique()), sorted(finite["length"].unique()), strict=True):
        rows = finite[finite["length"] == length]
        axes[0].plot(rows["growth"], rows["cosine"], color=colour)
        names[0][f"T = {length:,}" if length < 10**6 else f"T = $10^{{{round(math.log10(length))}}}$"] = colour
    for rows in (limit[limit["growth"] < 1], limit[limit["growth"] > 1]):
        axes[0].plot(rows["growth"], rows["cosine"], color=INK, linestyle="--")
    axes[0].plot(limit["growth"][limit["growth"] == 1], limit["cosine"][limit["growth"] == 1], "o", color=INK)
    axes[0].set(title="Equal angles: one threshold", xlabel="mean ξ/λ (of log T/(1 − ϱ))")
    axes[0].set_ylabel("cosine between tokens")
    for colour, layers in zip(_shades(right["layers"].nunique()), sorted(right["layers"].unique()), strict=True):
        rows = right[right["layers"] == layers]
        axes[1].plot(rows["growth"], rows["cosine"], color=colour)
        axes[1].axvline(rows["threshold"].iloc[0], color=colour, linestyle=":", linewidth=1)
        names[1][f"{layers} layer{'s' if layers > 1 else ''}"] = colour
    axes[1].set(title="Right angles: depth moves it", xlabel="mean ξ/λ (of log T)")
    for axis, named in zip(axes, names, strict=True):
        name_colours(axis, named, (0.04, 0.6))
    return figure


def _shades(count: int) -> list[tuple[float, ...]]:
    """Return so many colours in order, all of them readable on light and dark pages."""
    return [tuple(colour) for colour in plt.colormaps["plasma"](np.linspace(0.38, 0.76, count))]


# ------------------------------------------------------------------------------------------------- rules of the claims


def ends_predicted(tables: Tables, factor: float = AGREEMENT) -> Verdict:
    """Judge table ends: of `compared_ends`. An end agrees when the interval lies within `factor` of the prediction.

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
    """Judge table widths: length, other (law beside the walk), difference, low, high (paired 95% interval over seeds).

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
    """Judge table dispersion: of `entropy_over_dispersion`; means between log T and 2 log T.

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
    """Return differences of log₂(upper/lower) between the walk and the other laws after L layers, paired by seed.

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
        rule="At each length and for each other law the paired 95% interval of the difference in octaves is decided "
        "when it leaves out 0; reproduced when at least half are decided and all of these lie above 0.",
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
        rule="At each such mean the paired 95% interval of the gain, at the dispersion that the exact expectation "
        "names, is decided when it leaves out 0; reproduced when at least half are decided, and all of these above 0.",
        refuted_by="fewer than half of the decided means above 0; inconclusive when fewer than half are decided",
        tables=("dispersion",),
        judge=dispersion_raises_entropy,
        figure="fig-mean-entropy",
    ),
)


def _decided(holds: Sequence[bool], fails: Sequence[bool], because: str) -> Verdict:
    """Return the outcome of cases that hold, fail or are undecided; see the rules of the claims for the words."""
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

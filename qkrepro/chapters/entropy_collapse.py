"""Entropy collapse: entropy over the dispersion, its lower bounds, and whether a small variance prevents it.

Source: book, "Entropy collapse".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import COLOURS, DISPERSION_LABEL, INK, PALETTE, draw_intervals
from qkrepro.evidence.verdicts import HALF, ROUNDING, above, both, settings_verdict
from qkrepro.evidence.wording import plain
from qkrepro.theory.attention import attention_entropy, softmax_attention
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment
from qkrepro.theory.entropy import entropy_and_bounds, high_temperature_deficit
from qkrepro.theory.spectrum import matrix_moments, qk_matrix, random_spectrum_matrix
from qkrepro.theory.statistics import Interval, intervals, median_interval, t_interval
from qkrepro.theory.tokens import TokenLaw, random_walk
from qkrepro.theory.xavier import xavier_qk

READS: tuple[str, ...] = ()
LAWS: tuple[TokenLaw, ...] = ("random walk", "AR(1)", "independent")
UNIFORM = 0.95  # entropy ratio above which attention is all but uniform, and any bound near log T holds
TENTH = 0.1  # share of the entropy from which a lower bound counts as saying something


def entropy_plane(
    means: Sequence[float], dispersions: Sequence[float], *, seeds: Iterable[int], **options: Any
) -> pd.DataFrame:
    """Return tokens, mean_scaled (ξ/λ), dispersion, seed and entropy_ratio of one layer; options: of `Stack`."""
    plane, seed_list = [Spectrum(mean, spread) for mean in means for spread in dispersions], list(seeds)
    stacks = [Stack(layers=1, tokens=law, **options) for law in LAWS]
    tables = [depth_experiment(plane, stack, seeds=seed_list, measure_at=[1], measures=[]) for stack in stacks]
    table = pd.concat(tables, ignore_index=True)
    return table.loc[table["layer"] == 1, ["tokens", "mean_scaled", "dispersion", "seed", "entropy_ratio"]]


def bound_table(trace: float, *, length: int, dim: int, seeds: int) -> pd.DataFrame:
    """Return measured entropy beside its lower bounds in ten settings, means over seeds, in nats; one row a setting.

    trace: ξ of all matrices. length, dim: T and d of the tokens.
    Columns setting, entropy, entropy_ratio (to uniform attention), bound (the published one), centred, logits (sharper
    ones, `causal_logit_norms`), log10_bound, violated (rows in which a bound exceeds the entropy).
    """
    walk, standard, concentrated = Stack(length=length, dim=dim), dim**0.5, Spectrum(trace, 0.01)
    settings: dict[str, tuple[Stack, Spectrum | None, float]] = {
        f"walk, ξ = {plain(mean)}, dispersion {spread:g}, λ = 1": (walk, Spectrum(mean, spread), 1.0)
        for mean, spread in [(trace, 0.01), (trace, 16.0), (0.0, 0.01), (0.0, 16.0), (-trace, 0.01)]
    }
    named = f"ξ = {trace:g}, dispersion 0.01"
    settings |= {
        f"walk, {named}, λ = √d": (walk, concentrated, standard),
        f"walk, {named}, λ = 10⁴": (walk, concentrated, 1e4),
        f"raw walk, {named}, λ = 1": (Stack(length=length, dim=dim, normalise_input=False), concentrated, 1.0),
        f"independent, {named}, λ = 1": (Stack(length=length, dim=dim, tokens="independent"), concentrated, 1.0),
        "walk, Xavier, λ = √d": (walk, None, standard),
    }
    tables = []
    for setting, (stack, spectrum, temperature) in settings.items():
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            x = stack.draw_input(generator)
            w = _matrix(spectrum, dim, generator)
            tables.append(entropy_and_bounds(x, w, [temperature]).assign(setting=setting))
    groups = (
        pd.concat(tables).rename(columns={"zhai": "bound", "log10_zhai": "log10_bound"}).groupby("setting", sort=False)
    )
    table = groups[["entropy", "bound", "centred", "logits", "log10_bound"]].mean()
    table.insert(1, "entropy_ratio", table["entropy"] / walk.entropy_scale)
    return table.assign(violated=groups["violated"].sum()).reset_index()


def bound_curves(trace: float, temperatures: Sequence[float], *, length: int, dim: int, seeds: int) -> pd.DataFrame:
    """Return entropy and its bounds on a walk, concentrated spectrum: quantity, temperature, estimate, low, high.

    trace: ξ. temperatures: λ. length, dim: T and d of the tokens.
    """
    tables = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        x = Stack(length=length, dim=dim).draw_input(generator)
        w = _matrix(Spectrum(trace, 0.01), dim, generator)
        tables.append(entropy_and_bounds(x, w, temperatures).assign(seed=seed))
    names = {
        "entropy": "measured",
        "logits": "bound from the logits' norm",
        "centred": "bound from centred tokens",
        "zhai": "published bound",
    }
    table = pd.concat(tables).rename(columns=names)
    tidy = table.melt(["temperature", "seed"], list(names.values()), var_name="quantity")
    return intervals(tidy, ["quantity", "temperature"], "value")


def deficit_matrices(trace: float, dim: int, generator: Generator) -> dict[str, dict[str, Tensor]]:
    """Return matrices W of one trace, and of one Frobenius norm: the concentrated (ξ/d) I is in both; each (d, d)."""
    equal = trace / dim * torch.eye(dim, dtype=torch.float64)
    rank = max(1, dim // 16)
    low_rank = torch.diag(torch.tensor([trace / rank] * rank + [0.0] * (dim - rank), dtype=torch.float64))
    noise = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    antisymmetric = (noise - noise.mT) * (equal.norm() / (noise - noise.mT).norm())
    traceless = _matrix(Spectrum(0.0, trace / dim**0.5), dim, generator)
    return {
        "trace": {
            "concentrated": equal,
            f"concentrated, rank {rank}": low_rank,
            "dispersed": _matrix(Spectrum(trace, trace), dim, generator),
        },
        "Frobenius norm": {
            "concentrated": equal,
            "symmetric, trace 0": traceless - traceless.trace() / dim * torch.eye(dim, dtype=torch.float64),
            "antisymmetric": antisymmetric,
        },
    }


def deficit_table(
    matrices: Mapping[str, Mapping[str, Tensor]],
    temperatures: Sequence[float],
    *,
    length: int,
    walks: int,
    generator: Generator,
) -> pd.DataFrame:
    """Return entropy deficit log T − H of the last query of the same raw walks, beside its closed form; nats.

    matrices: of `deficit_matrices`. temperatures: λ. length: T of the walks.
    One row a matrix and temperature: fixed, spectrum, temperature, predicted, estimate, low, high (95% t interval over
    walks), excess, excess_low, excess_high (the paired difference to the concentrated matrix).
    """
    dim = len(next(iter(matrices["trace"].values())))
    x, rows = random_walk(length, dim, batch=walks, generator=generator), []
    for temperature in temperatures:
        for fixed, group in matrices.items():
            deficits = {}
            for name, w in group.items():
                logits = (x @ (w @ x[:, -1, :, None]))[..., 0]  # (walks, T), of the last query
                deficits[name] = math.log(length) - attention_entropy(softmax_attention(logits, temperature))
                predicted = float(high_temperature_deficit(matrix_moments(w), length, temperature))
                excess = t_interval(deficits[name] - deficits["concentrated"])
                row = {"fixed": fixed, "spectrum": name, "temperature": temperature, "predicted": predicted}
                row |= t_interval(deficits[name])._asdict() | {"excess": excess.estimate}
                rows.append(row | {"excess_low": excess.low, "excess_high": excess.high})
    return pd.DataFrame(rows)


def prevents_entropy_collapse(tables: Tables, bar: float = HALF) -> Verdict:
    """Judge table entropy: tokens, mean_scaled, dispersion, seed, entropy_ratio; least against greatest dispersion.

    In a setting (law of tokens, mean) the claim holds when the entropy ratio at the least dispersion is above `bar` and
    above that at the greatest; medians over seeds with their intervals.
    """
    cases = {}
    for name, least, gain in _least_and_gain(tables["entropy"]):
        cases[name] = both(above(least, bar), above(gain, 0))
    return settings_verdict(cases)


def raises_entropy(tables: Tables) -> Verdict:
    """Judge table entropy, as `prevents_entropy_collapse`: more entropy at the least than at the most dispersion."""
    return settings_verdict({name: above(gain, 0) for name, _, gain in _least_and_gain(tables["entropy"])})


def what_is_fixed_decides(tables: Tables) -> Verdict:
    """Judge table deficit: fixed, spectrum, temperature, excess, excess_low, excess_high; greatest temperature."""
    table = tables["deficit"]
    hottest = table[(table["temperature"] == table["temperature"].max()) & (table["spectrum"] != "concentrated")]
    cases = {}
    for row in hottest.to_dict("records"):
        sign = 1 if row["fixed"] == "trace" else -1
        ends = sorted([sign * row["excess_low"], sign * row["excess_high"]])
        cases[f"equal {row['fixed']}, {row['spectrum']}"] = above(Interval(sign * row["excess"], *ends), 0)
    return settings_verdict(cases)


def entropy_bound(tables: Tables, share: float = TENTH) -> Verdict:
    """Judge table bound: setting, entropy, entropy_ratio, bound (nats), one row a setting.

    Settings of all but uniform attention (ratio above UNIFORM) are left out: there every bound near log T is true.
    """
    table = tables["bound"]
    violated = int((table["bound"] > table["entropy"] + ROUNDING * (1 + table["entropy"])).sum())
    tested = table[table["entropy_ratio"] <= UNIFORM]
    remark = (
        f"violated in {violated} of {len(table)}; {len(table) - len(tested)} of all but uniform attention are left out"
    )
    if len(table) and not len(tested) and not violated:
        return Verdict("inconclusive", f"attention is all but uniform in all {len(table)} settings", 0, 0)
    useful = (tested["bound"] >= share * tested["entropy"]).tolist()
    verdict = settings_verdict(dict(zip(tested["setting"], useful, strict=True)), remark)
    return verdict._replace(outcome="not reproduced") if violated else verdict


def attention_rows(dispersions: Sequence[float], *, length: int, dim: int, seed: int) -> Tensor:
    """Return what one query reads of the same independent tokens under growing spectra of mean zero, (S, T).

    length, dim: T and d of the tokens.
    dispersions: √(dσ²)/λ of one and the same matrix, scaled. The query is not among the tokens that it reads.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length + 1, dim, generator=generator, dtype=torch.float64)
    logits = x[-1] @ _matrix(Spectrum(0.0, 1.0), dim, generator) @ x[:-1].mT  # (T,), at a dispersion of one
    return softmax_attention(torch.tensor(dispersions, dtype=torch.float64)[:, None] * logits)


def plot_rows(rows: Tensor, dispersions: Sequence[float], axes: Sequence[Axes]) -> None:
    """Draw one row of attention as bars per panel, with the number of tokens that it reads, e to the entropy."""
    for axis, weights, dispersion in zip(axes, rows, dispersions, strict=True):
        count = float(attention_entropy(weights).exp())
        axis.bar(range(1, len(weights) + 1), weights, width=0.9, color=COLOURS["dispersed"], linewidth=0)
        reads = "1 token" if round(count) == 1 else f"{count:.0f} tokens"
        axis.set(title=f"Dispersion {dispersion:g}: reads {reads}", xlabel="token", ylabel="weight", ylim=(0, 1.03))
        axis.label_outer()


def plot_entropy_over_dispersion(summary: pd.DataFrame, column: str, axis: Axes) -> None:
    """Draw entropy ratio over dispersion with 95% intervals, one line a mean: colour for its sign, line for its size.

    summary: mean_scaled, dispersion and the interval (estimate, low, high) of `column`, one row a cell.
    """
    means = sorted(summary["mean_scaled"].unique(), reverse=True)
    lines = dict(zip(sorted({abs(mean) for mean in means if mean}, reverse=True), ("-", "--", ":", "-."), strict=False))
    for mean in means:
        line, style = summary[summary["mean_scaled"] == mean], lines.get(abs(mean), "-")
        colour = INK if mean == 0 else PALETTE[3] if mean > 0 else PALETTE[4]
        axis.plot(line["dispersion"], line["estimate"], style, color=colour, label=plain(mean))
        axis.fill_between(line["dispersion"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
    axis.axhline(HALF, color=INK, linestyle=":", linewidth=1)
    axis.set(xscale="log", ylim=(0, 1.03), xlabel=DISPERSION_LABEL, ylabel=column)


def plot_bound(table: pd.DataFrame, standard: float, axis: Axes) -> None:
    """Draw measured entropy and its lower bounds over temperature.

    table: temperature, quantity, estimate, low, high (nats). standard: the temperature √d, marked.
    """
    for (quantity, line), colour in zip(table.groupby("quantity", sort=False), (INK, *PALETTE[2:]), strict=False):
        axis.plot(line["temperature"], line["estimate"], color=colour, label=quantity, marker="o", markersize=4)
        axis.fill_between(line["temperature"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
    axis.axvline(standard, color=INK, linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="temperature λ", ylabel="entropy, nats")


def plot_deficit(table: pd.DataFrame, axis: Axes) -> None:
    """Draw entropy deficit times λ² over temperature: points with 95% intervals from simulation, closed form as lines.

    table: spectrum, temperature, predicted, estimate, low, high (nats). At high temperature the product is constant.
    """
    for (spectrum, line), other in zip(table.groupby("spectrum", sort=False), PALETTE[2:], strict=False):
        colour = COLOURS.get(str(spectrum), other)
        scaled = line[["predicted", "estimate", "low", "high"]].mul(line["temperature"] ** 2, axis=0)
        axis.plot(line["temperature"], scaled["predicted"], color=colour)
        draw_intervals(axis, line["temperature"], scaled, color=colour, capsize=2, label=str(spectrum))
    axis.set(xscale="log", yscale="log", xlabel="temperature λ", ylabel="entropy deficit × λ², nats")


def _matrix(spectrum: Spectrum | None, dim: int, generator: Generator) -> Tensor:
    """Return W of a spectrum, (d, d), symmetric; None: Xavier's, w_qᵀ w_k with d_head = d."""
    if spectrum is None:
        return qk_matrix(*xavier_qk(dim, dim, generator=generator))
    return random_spectrum_matrix(dim, spectrum.trace / dim, spectrum.spread**2 / dim, generator=generator)


def _least_and_gain(table: pd.DataFrame) -> list[tuple[str, Interval, Interval]]:
    """Return per law and non-zero mean: the ratio at the least dispersion, and its gain over that at the greatest."""
    cases = []
    for key, group in table[table["mean_scaled"] != 0].groupby(["tokens", "mean_scaled"], sort=False):
        wide = group.pivot(index="seed", columns="dispersion", values="entropy_ratio").sort_index(axis=1)
        least, gain = wide.iloc[:, 0], wide.iloc[:, 0] - wide.iloc[:, -1]
        cases.append((f"{key[0]}, ξ/λ = {plain(float(str(key[1])))}", median_interval(least), median_interval(gain)))
    return cases


CONDITIONS = "at a given mean ξ/λ of ±2, ±4 and ±16, three laws of tokens, first layer, d = T = 64"

CLAIMS = (
    Claim(
        name="prevents-entropy-collapse",
        chapter="entropy_collapse",
        provenance="paper",
        statement="A small eigenspectrum variance prevents entropy collapse.",
        conditions=CONDITIONS,
        rule=(
            "For each law of tokens and mean the entropy ratio at the least dispersion is more than one half and more "
            "than at the greatest dispersion of the same mean: medians over seeds, by their distribution-free 95% "
            "intervals."
        ),
        refuted_by="failing in some settings and holding in none",
        tables=("entropy",),
        judge=prevents_entropy_collapse,
        quote="the small eigenspectrum variance prevents both rank and entropy collapse",
        figure="fig-entropy-plane",
        threshold=Threshold(
            "entropy, relative to uniform attention",
            HALF,
            (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9),
            prevents_entropy_collapse,
        ),
    ),
    Claim(
        name="concentration-raises-entropy",
        chapter="entropy_collapse",
        provenance="ours",
        statement="At equal mean a concentrated spectrum leaves attention more entropy than a dispersed one.",
        conditions=CONDITIONS,
        rule=(
            "For each law of tokens and mean the paired difference of the entropy ratios, least minus greatest "
            "dispersion, is above 0: its median over seeds, by the interval of the sign test."
        ),
        refuted_by="failing in some settings and holding in none",
        tables=("entropy",),
        judge=raises_entropy,
        figure="fig-entropy-plane",
    ),
    Claim(
        name="what-is-fixed-decides-entropy",
        chapter="entropy_collapse",
        provenance="derived",
        statement=(
            "At high temperature a concentrated spectrum loses less entropy than other matrices of its trace, and more "
            "than matrices without a trace of its Frobenius norm."
        ),
        conditions="raw random walks, last query",
        rule=(
            "At the greatest temperature, for each other matrix of equal trace the deficit exceeds that of the "
            "concentrated one, and for each of equal norm it falls short of it (paired 95% t interval over walks)."
        ),
        refuted_by="failing in some comparisons and holding in none",
        tables=("deficit",),
        judge=what_is_fixed_decides,
        figure="fig-entropy-deficit",
    ),
    Claim(
        name="entropy-bound-informs",
        chapter="entropy_collapse",
        provenance="ours",
        statement="The spectral-norm bound on attention entropy has content where attention is not all but uniform.",
        conditions="walks and independent tokens, five spectra, λ = 1, √d and 10⁴, d = T = 64",
        rule=(
            "Never violated, and at least a tenth of the measured entropy in each setting whose entropy is at most 95% "
            "of that of uniform attention; partly when in some of them."
        ),
        refuted_by="a violation, or a bound below that share in each of these settings",
        tables=("bound",),
        judge=entropy_bound,
        figure="fig-entropy-bound",
        threshold=Threshold("share of the measured entropy", TENTH, (0.001, 0.01, 0.1, 0.25, 0.5), entropy_bound),
    ),
)

"""Signal propagation: profiles of `theory.propagation_cases` by every method as one table, and what they decide."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from qkrepro.errors import check_integer
from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import COLOURS, INK, PALETTE, draw_intervals
from qkrepro.evidence.verdicts import LOCALIZED, ROUNDING, universal_verdict, within
from qkrepro.theory.attention import saturation
from qkrepro.theory.propagation import localization, simulate_signal_propagation
from qkrepro.theory.propagation_cases import PropagationCase
from qkrepro.theory.spectrum import matrix_moments

WIDE = 0.1  # a Monte Carlo interval wider than this can hardly miss
REGIMES: dict[str, Callable[[pd.Series], bool]] = {
    "late": lambda row: row["centre"] > 0.6 and row["index"] >= LOCALIZED,
    "middle": lambda row: 0.45 < row["centre"] < 0.75 and row["index"] > 0.5,
    "mirror": lambda row: row["centre"] < 0.4 and row["index"] >= LOCALIZED,
    "mirror of middle": lambda row: 0.25 < row["centre"] < 0.55 and row["index"] > 0.5,
    "broad": lambda row: row["index"] < 0.1,
    "all pass": lambda row: row["index"] < 0.1 and row["level"] > 0.9,
}


def profile_table(
    cases: Sequence[PropagationCase], *, locations: int, samples: int, generator: Generator
) -> pd.DataFrame:
    """Return ρ_θ by all four ways, one row per case and location.

    cases: of `theory.propagation_cases`, one after the other from one generator.
    Columns case, theta, limit (T → ∞), finite (Gaussian with the moments of the length), exact, drawn with its 95%
    interval low, high, singular_share (‖M‖_2 / ‖M‖_F). At most `locations` tokens, evenly spaced. Every location has
    `samples` draws of its own, so that the intervals of a profile miss independently of each other.
    """
    check_integer("locations", locations, at_least=2)
    return pd.concat([_profile(case, locations, samples, generator) for case in cases], ignore_index=True)


def localization_table(profiles: pd.DataFrame, column: str = "exact") -> pd.DataFrame:
    """Return index, centre and level of each case of `profile_table`, from one of its columns of ρ."""
    rows = []
    for name, group in profiles.groupby("case", sort=False):
        where = localization(group["theta"].to_numpy(), group[column].to_numpy())
        rows.append((name, float(where.index), float(where.centre), float(where.level)))
    return pd.DataFrame(rows, columns=["case", "index", "centre", "level"])


def error_table(profiles: pd.DataFrame) -> pd.DataFrame:
    """Return the largest errors of limit and finite form per case, and how often the exact law is in [low, high]."""
    errors = profiles.assign(
        limit_error=(profiles["limit"] - profiles["exact"]).abs(),
        finite_error=(profiles["finite"] - profiles["exact"]).abs(),
        inside_interval=profiles["exact"].between(profiles["low"], profiles["high"]),
    )
    how = {"singular_share": "first", "limit_error": "max", "finite_error": "max", "inside_interval": "mean"}
    return errors.groupby("case", sort=False).agg(how).reset_index()


def _profile(case: PropagationCase, locations: int, samples: int, generator: Generator) -> pd.DataFrame:
    token = torch.linspace(1, case.length, min(locations, case.length), dtype=torch.float64).round()
    theta, moments = token / case.length, matrix_moments(case.m)
    drawn = [
        simulate_signal_propagation(
            place, case.m, temperature=case.temperature, length=case.length, samples=samples, generator=generator
        )
        for place in theta
    ]
    exact = case.rho(theta, length=case.length, method="exact")
    columns = {
        "case": case.name,
        "theta": theta,
        "limit": case.rho(theta),
        "finite": case.rho(theta, length=case.length),
        "exact": exact.round(decimals=12),  # what is beyond its accuracy differs by machine
        "drawn": [float(estimate.rho) for estimate in drawn],
        "low": [float(estimate.low) for estimate in drawn],
        "high": [float(estimate.high) for estimate in drawn],
        "singular_share": float(moments.spectral_norm / moments.frobenius_sq.sqrt()),
    }
    return pd.DataFrame(columns)


def exact_law(tables: Tables, coverage: float = 0.8) -> Verdict:
    """Judge table profiles: case, exact, low, high (95% interval of Monte Carlo), one row per location.

    coverage: share of a case's locations at which the exact value has to lie in the interval.
    """
    table = tables["profiles"]
    hits = table["exact"].between(table["low"] - ROUNDING, table["high"] + ROUNDING)
    inside, width = hits.groupby(table["case"]).mean(), float((table["high"] - table["low"]).median())
    because = (
        f"the exact law lies in the 95% Monte Carlo interval at {hits.mean():.0%} of {len(hits)} locations, "
        f"{inside.min():.0%} in the worst of {len(inside)} cases; the intervals are {width:.3f} wide (median)"
    )
    verdict = universal_verdict([bool(share >= coverage) for share in inside], because)
    if verdict.outcome == "reproduced" and hits.mean() < 0.9:
        return verdict._replace(outcome="not reproduced")
    return verdict._replace(outcome="inconclusive") if verdict.outcome == "reproduced" and width > WIDE else verdict


def gaussian_limit(tables: Tables, bound: float = 0.02) -> Verdict:
    """Judge table profiles: case, singular_share (largest singular value over Frobenius norm of M), exact, finite.

    bound: error of the Gaussian form that counts as accurate.
    """
    table = tables["profiles"]
    error = (table["finite"] - table["exact"]).abs().groupby(table["case"]).max()
    share = table.groupby("case")["singular_share"].first()
    spread_out, dominated = error[share <= 0.1], error[share > 0.1]
    because = (
        f"largest error {spread_out.max():.3f} in {len(spread_out)} cases in which no singular value exceeds a tenth "
        f"of the Frobenius norm, {dominated.max():.3f} in the {len(dominated)} others"
    )
    verdict = universal_verdict([bool(value <= bound) for value in spread_out], because)
    is_tested = len(spread_out) >= 3 and len(dominated) > 0
    return verdict if verdict.outcome != "reproduced" or is_tested else verdict._replace(outcome="inconclusive")


def regimes(tables: Tables) -> Verdict:
    """Judge table regimes: case (those of `REGIMES`), index, centre, level, one row per case."""
    table = tables["regimes"].set_index("case")
    present = [name for name in REGIMES if name in table.index]
    holds: list[bool | None] = [bool(REGIMES[name](table.T[name])) for name in present]
    elsewhere = [name for name, good in zip(present, holds, strict=True) if not good]
    absent = [name for name in REGIMES if name not in present]
    because = f"{holds.count(True)} of {len(REGIMES)} regimes as derived"
    because += f"; elsewhere: {', '.join(elsewhere)}" if elsewhere else ""
    because += f"; without data: {', '.join(absent)}" if absent and present else ""
    return universal_verdict([*holds, *([None] * len(absent))] if present else [], because)


def antisymmetric(tables: Tables, margin: float = 0.1) -> Verdict:
    """Judge table walks: case, control (1 for the symmetric one), level, low, high, one row per case and part.

    low, high: simultaneous interval of the share that passes in this part of the sequence, less the share in all of it.
    margin: how far from equal shares still counts as equal, in units of the share of the whole.
    """
    table = tables["walks"]
    low, high = table["low"] / table["level"], table["high"] / table["level"]
    parts = [within(*ends, -margin, margin) for ends in zip(low, high, strict=True)]
    is_control = table["control"].astype(bool)
    cases: dict[str, list[bool | None]] = {name: [] for name in table.loc[~is_control, "case"]}
    for name, part in zip(table["case"], parts, strict=True):
        cases.get(name, []).append(part)
    holds = [False if False in passes else None if None in passes else True for passes in cases.values()]
    detected = any(part is False for part, control in zip(parts, is_control, strict=True) if control)
    farthest = np.maximum(low.abs(), high.abs())[~is_control].max()
    because = (
        f"in {holds.count(True)} of {len(holds)} antisymmetric matrices every eighth of the sequence passes the share "
        f"of the whole within {margin:.0%}, with the whole interval; the farthest end of one is {farthest:.1%} off; "
        f"the symmetric control is {'told apart' if detected else 'not told apart'}"
    )
    verdict = universal_verdict(holds, because)
    return verdict if detected or verdict.outcome != "reproduced" else verdict._replace(outcome="inconclusive")


def plot_walk(tokens: Tensor, m: Tensor, axes: Sequence[Axes]) -> None:
    """Draw one walk in its two widest directions, and beside it the logits of its last token as query.

    tokens: (T, d). m: (d, d), at temperature 1. Blue: the tokens that pass the clipped function.
    """
    logits = tokens @ m.mT @ tokens[-1]  # (T,)
    logits = logits - logits.mean()
    colours = np.where(saturation(logits) == 0, COLOURS["concentrated"], INK)
    x, y = (tokens @ torch.linalg.svd(tokens - tokens.mean(0), full_matrices=False).Vh[:2].mT).numpy().T  # (T,) each
    axes[0].plot(x, y, color=INK, linewidth=0.6, alpha=0.5)
    axes[0].scatter(x, y, c=colours, s=9)
    for index, name in ((0, "first token $x_1$"), (-1, "query $x_T$")):
        axes[0].annotate(name, (x[index], y[index]), (0, 9), textcoords="offset points", ha="center", fontweight="bold")
    axes[0].set(xticks=[], yticks=[], title="A walk: neighbours are alike")
    axes[0].margins(0.2)
    axes[1].scatter(np.arange(1, len(tokens) + 1), logits, c=colours, s=9)
    axes[1].axhline(-1, color=INK, linestyle="--", linewidth=1)
    axes[1].annotate("shut off below −λ", (1, -1), (0.97, 0.1), textcoords="axes fraction", ha="right")
    axes[1].set(xlabel="token i", ylabel="logit less the mean / λ", title="Its logits: the late half passes")


def plot_profiles(
    cases: Sequence[PropagationCase], profiles: pd.DataFrame, titles: Mapping[str, str], axes: Sequence[Axes]
) -> None:
    """Draw ρ of each named case: limit, finite form, exact law, and what was drawn with 95% intervals.

    cases: those of the titles among them.
    profiles: of `profile_table`. titles: case -> title of its panel, in the order of the panels.
    """
    by_name, fine = {case.name: case for case in cases}, torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        case, rows = by_name[name], profiles[profiles["case"] == name]
        theta = torch.arange(1, case.length + 1, dtype=torch.float64) / case.length
        axis.plot(fine, case.rho(fine), ":", color=INK, label="Gaussian, T → ∞")
        axis.plot(theta, case.rho(theta, length=case.length), "--", color=PALETTE[4], label="Gaussian, this T")
        axis.plot(rows["theta"], rows["exact"], "o", markersize=5, color=PALETTE[0], label="exact law")
        ends = rows.rename(columns={"drawn": "estimate"})
        draw_intervals(axis, ends["theta"], ends, fmt=".", color=PALETTE[3], label="drawn, 95% interval")
        axis.set(title=title, ylim=(-0.04, 1.04), xlim=(0, 1.02), xlabel="location θ = i/T", ylabel="ρ")
        axis.label_outer()
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def plot_parts(walks: pd.DataFrame, axis: Axes) -> None:
    """Draw the share that passes in each part of the sequence relative to the whole; walks: `antisymmetric_walks`.

    Shaded: within a tenth of the whole. Bars: intervals that hold for all points at once.
    """
    axis.axhspan(0.9, 1.1, color=INK, alpha=0.15, linewidth=0)
    for place, (case, rows) in enumerate(walks.groupby("case", sort=False)):
        colour = PALETTE[1] if rows["control"].any() else PALETTE[(0, 2, 3)[place % 3]]
        relative = 1 + rows[["estimate", "low", "high"]].div(rows["level"], axis=0)
        parts = rows["part"] + 0.12 * (place - 1)
        draw_intervals(axis, parts, relative, fmt="o-", linewidth=1, color=colour, label=case)
    axis.set(xlabel="eighth of the sequence", ylabel="share that passes / that of the whole")
    axis.legend()


CLAIMS = (
    Claim(
        name="exact-law",
        chapter="signal_propagation",
        provenance="ours",
        statement=(
            "On a Gaussian random walk the signal propagation probability of the linearised softmax has an exact law, "
            "for any length, width, temperature and matrix."
        ),
        rule=(
            "The exact value lies in the 95% Monte Carlo interval at 90% of all locations or more, and at 80% or more "
            "in each case. Inconclusive when the intervals are wider than 0.1 (median): then they can hardly miss."
        ),
        refuted_by="more misses than that, in one case or over all",
        tables=("profiles",),
        judge=exact_law,
        figure="fig-regimes",
        threshold=Threshold(
            "share of a case's locations inside of the interval", 0.8, (0.7, 0.75, 0.8, 0.85, 0.9, 0.95), exact_law
        ),
    ),
    Claim(
        name="gaussian-limit",
        chapter="signal_propagation",
        provenance="derived",
        statement=(
            "With the moments of the finite length the Gaussian form is accurate when no singular value dominates, on "
            "a random walk."
        ),
        rule=(
            "Error at most 0.02 against the exact law in each case whose largest singular value is at most a "
            "tenth of the Frobenius norm. Inconclusive with fewer than three such cases, or with none of the others."
        ),
        refuted_by="one such case with a larger error",
        tables=("profiles",),
        judge=gaussian_limit,
        figure="fig-stress",
        threshold=Threshold("error of the Gaussian form", 0.02, (0.002, 0.005, 0.01, 0.02, 0.05), gaussian_limit),
    ),
    Claim(
        name="regimes",
        chapter="signal_propagation",
        provenance="derived",
        statement=(
            "Where eigenvalues are equal, the sign and size of the trace decide where the signal of a random walk "
            "passes, and a spectrum of trace zero and large norm is broad."
        ),
        conditions=(
            "late at tr M = λ, in the middle at 4λ, their mirror images for the other sign, everywhere at "
            "|tr M|(T − 1)/2 < λ"
        ),
        rule=(
            "By the exact law each regime has its centre and index: late centre > 0.6 and mirror < 0.4, both with "
            "index >= 0.3; middle within 0.45 to 0.75 and its mirror within 0.25 to 0.55, both with index > 0.5; "
            "broad index < 0.1; all pass also level > 0.9. Inconclusive while a regime has no data."
        ),
        refuted_by="a regime elsewhere",
        tables=("regimes",),
        judge=regimes,
        figure="fig-regimes",
    ),
    Claim(
        name="antisymmetric-head",
        chapter="signal_propagation",
        provenance="ours",
        statement=(
            "An antisymmetric head never localizes: on random walks the linearised softmax passes the same share of "
            "every part of the sequence."
        ),
        rule=(
            "In simulated walks, for antisymmetric matrices of three norms, each eighth of the sequence passes the "
            "share of the whole within a tenth of it, with its whole simultaneous 95% interval. Inconclusive when an "
            "interval reaches across that margin, or when the same test does not tell a symmetric matrix apart."
        ),
        refuted_by="an eighth of a sequence whose whole interval lies beyond the margin",
        tables=("walks",),
        judge=antisymmetric,
        figure="fig-antisymmetric",
        threshold=Threshold("relative distance of two shares", 0.1, (0.02, 0.05, 0.1, 0.2, 0.5), antisymmetric),
    ),
)
READS = ()

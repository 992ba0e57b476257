"""Does the true softmax pass gradient where the linearised one says? Simulated profiles of both on the same tokens.

Per location: the share of draws in which the linearisation leaves the token unsaturated (ρ), and the mean gradient
mass A_i(1 − A_i) of the true softmax. Both are compared as distributions over the sequence.
Source: book, "Does the true softmax do this?", "Theory: entropy and rank" (ours).
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from qkrepro.errors import check_integer
from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import INK, PALETTE, draw_intervals
from qkrepro.evidence.verdicts import SAME_PROFILE, above, both, settings_verdict
from qkrepro.theory.attention import saturation, softmax_attention, softmax_gradient_mass
from qkrepro.theory.propagation import signal_propagation
from qkrepro.theory.softmax_forms import LAWS, last_logits, scaled_tokens
from qkrepro.theory.statistics import Interval, t_interval, total_variation
from qkrepro.theory.tokens import random_walk

READS: tuple[str, ...] = ()
CLOSE = 0.05  # relative distance up to which a closed form counts as that of the simulation
TWO_SIDED = 1.96  # standard errors on each side of a mean of many draws, 95%
SOFTMAX, LINEAR = PALETTE[3], PALETTE[4]
MASSES = ("softmax", "linear")


def location_profiles(
    matrices: Mapping[str, Tensor],
    temperatures: Sequence[float],
    *,
    length: int,
    draws: int,
    coefficient: float,
    seeds: Iterable[int],
) -> pd.DataFrame:
    """Return both profiles for every token law, matrix, temperature and seed, one row a location.

    temperatures: λ. length: T. coefficient: φ of the AR(1) tokens.
    matrices: name -> (d, d). draws: sequences a seed; every matrix and temperature sees the same ones. Columns tokens,
    spectrum, temperature, seed, spread (mean standard deviation of a row's logits, over λ), theta, linear (share
    unsaturated), mass (mean A_i(1 − A_i)).
    """
    check_integer("draws", draws, at_least=1)
    dim = len(next(iter(matrices.values())))
    theta, tables = torch.arange(1, length + 1, dtype=torch.float64) / length, []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for law in LAWS:
            tokens = scaled_tokens(law, length, dim, coefficient=coefficient, batch=draws, generator=generator)
            for spectrum, m in matrices.items():
                logits = last_logits(tokens, m)  # (draws, T)
                spread = float(logits.std(-1).mean())
                for temperature in temperatures:
                    columns = {"spread": spread / temperature, "theta": theta, **_both(logits, temperature)}
                    head = {"tokens": law, "spectrum": spectrum, "temperature": temperature, "seed": seed}
                    tables.append(pd.DataFrame({**head, **columns}))
    return pd.concat(tables, ignore_index=True)


def agreement_table(profiles: pd.DataFrame) -> pd.DataFrame:
    """Return the total variation of the two normalised profiles, with its 95% t interval over seeds, by setting.

    Columns tokens, spectrum, temperature, setting (spectrum and temperature as text), spread, localized (the larger
    total variation of one of the two profiles to a flat one), total_variation, low, high. Noise of the draws can only
    raise a total variation.
    """
    rows = []
    for (tokens, spectrum, temperature), group in profiles.groupby(["tokens", "spectrum", "temperature"], sort=False):
        distances = [total_variation(part["linear"], part["mass"]) for _, part in group.groupby("seed")]
        estimate, low, high = t_interval(distances)
        head = {"tokens": tokens, "spectrum": spectrum, "temperature": temperature, "spread": group["spread"].mean()}
        setting = f"{spectrum}, λ = {temperature:g}"
        mean = group.groupby("theta")[["linear", "mass"]].mean()
        localized = max(total_variation(mean[name], np.ones(len(mean))) for name in mean)
        row = {**head, "setting": setting, "localized": localized}
        rows.append({**row, "total_variation": estimate, "low": low, "high": high})
    return pd.DataFrame(rows)


def trusted_from(agreement: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Return the lowest temperature from which on no upper end exceeds `tolerance`, and the spread of the logits there.

    One row a token law and spectrum: tokens, spectrum, temperature, spread; both NaN where there is no such one.
    """
    rows = []
    for (tokens, spectrum), group in agreement.groupby(["tokens", "spectrum"], sort=False):
        ordered = group.sort_values("temperature", ascending=False)
        trusted = ordered[(ordered["high"] <= tolerance).cummin()]
        ends = trusted[["temperature", "spread"]].iloc[-1] if len(trusted) else {"temperature": None, "spread": None}
        rows.append({"tokens": tokens, "spectrum": spectrum, **dict(ends)})
    return pd.DataFrame(rows)


def cumulative_profiles(profiles: pd.DataFrame) -> pd.DataFrame:
    """Return both profiles summed over seeds and accumulated along the sequence to 1, without seed."""
    keys = ["tokens", "spectrum", "temperature"]
    mean = profiles.groupby([*keys, "theta"], sort=False)[["linear", "mass"]].mean().reset_index()
    grouped = mean.groupby(keys, sort=False)
    for column in ("linear", "mass"):
        mean[column] = grouped[column].cumsum() / grouped[column].transform("sum")
    return mean


def late_mass(
    means: Sequence[float], *, dim: int, length: int, share: float, draws: int, generator: Generator
) -> pd.DataFrame:
    """Return the part of the gradient mass in the last `share` of sites, raw walks, M = (mean/dim) I, temperature 1.

    means: ξ/λ of the spectra.
    draws: walks of `length` tokens. Columns mean, softmax (of the true softmax, simulated), linear (of ρ, exact law).
    """
    late = torch.arange(1, length + 1, dtype=torch.float64) / length > 1 - share
    masses = _masses(means, random_walk(length, dim, batch=draws, generator=generator))
    rows = [
        {"mean": mean, **{name: float(mass[late].sum() / mass.sum()) for name, mass in zip(MASSES, pair, strict=True)}}
        for mean, pair in masses.items()
    ]
    return pd.DataFrame(rows)


def sentence_shares(
    means: Mapping[str, float], *, dim: int, length: int, draws: int, generator: Generator
) -> dict[str, dict[str, list[float]]]:
    """Return what each token of a short raw walk gets of the gradient, M = (mean/dim) I, temperature 1.

    means: name -> ξ/λ. draws: walks of `length` tokens. Returns by function and name: "linear", ρ by the exact law;
    "softmax", simulated gradient mass over that of its largest site.
    """
    masses = _masses(means.values(), random_walk(length, dim, batch=draws, generator=generator))
    of_name = {name: masses[mean] for name, mean in means.items()}
    return {
        "linear": {name: linear.tolist() for name, (_, linear) in of_name.items()},
        "softmax": {name: (mass / mass.max()).tolist() for name, (mass, _) in of_name.items()},
    }


def _masses(means: Iterable[float], tokens: Tensor) -> dict[float, tuple[Tensor, Tensor]]:
    """Return, by mean, the gradient mass of softmax on tokens (batch, T, d) and ρ by the exact law; (T,) each."""
    length, dim = tokens.shape[-2:]
    unit, theta = torch.eye(dim, dtype=torch.float64) / dim, torch.arange(1, length + 1, dtype=torch.float64) / length
    logits = last_logits(tokens, unit)
    return {
        mean: (
            softmax_gradient_mass(softmax_attention(mean * logits)).site.mean(0),
            signal_propagation(theta, mean * unit, length=length, method="exact"),
        )
        for mean in means
    }


def _both(logits: Tensor, temperature: float) -> dict[str, Tensor]:
    free = (saturation(logits, temperature) == 0).double().mean(0)  # (T,)
    return {"linear": free, "mass": softmax_gradient_mass(softmax_attention(logits, temperature)).site.mean(0)}


def softmax_localizes(tables: Tables, tolerance: float = SAME_PROFILE) -> Verdict:
    """Judge table agreement: tokens, setting, localized, total_variation, low, high (95% interval), one row a setting.

    Settings in which both profiles are flat (`localized` at most SAME_PROFILE) agree trivially and are left out.
    """
    table = tables["agreement"]
    tested = table[table["localized"] > SAME_PROFILE]
    cases: dict[str, bool | None] = {}
    by_law = []
    for tokens, group in tested.groupby("tokens", sort=False):
        distances = group[["total_variation", "low", "high"]].to_numpy(float)
        apart = [above(Interval(*distance), tolerance) for distance in distances]
        agree = [None if status is None else not status for status in apart]
        cases |= {f"{tokens}, {setting}": status for setting, status in zip(group["setting"], agree, strict=True)}
        by_law.append(f"{sum(status is True for status in agree)} of {len(agree)} on {tokens}")
    flat = f"{len(table) - len(tested)} settings in which both profiles are flat are left out"
    return settings_verdict(cases, f"by law of tokens: {', '.join(by_law)}; {flat}")


def softmax_closed_forms(tables: Tables, margin: float = CLOSE) -> Verdict:
    """Judge table closed_forms: form, case, predicted, simulated, standard_error; one row a case."""
    table = tables["closed_forms"]
    ratios = (table["simulated"] / table["predicted"]).to_numpy(float)
    halves = (TWO_SIDED * table["standard_error"] / table["predicted"].abs()).to_numpy(float)
    cases = {
        f"{form}, {case}": both(
            above(Interval(ratio, ratio - half, ratio + half), 1 - margin),
            above(Interval(-ratio, -ratio - half, -ratio + half), -1 - margin),
        )
        for form, case, ratio, half in zip(table["form"], table["case"], ratios, halves, strict=True)
    }
    remark = f"largest distance of a mean {100 * float(np.abs(ratios - 1).max()):.1f}%" if len(ratios) else ""
    verdict = settings_verdict(cases, remark)
    return verdict._replace(outcome="not reproduced") if False in cases.values() else verdict


def plot_cumulative(
    cumulative: pd.DataFrame, spectrum: str, titles: Mapping[tuple[str, float], str], axes: Sequence[Axes]
) -> None:
    """Draw the share of each profile in the tokens up to θ, a panel a law and temperature; shaded: what differs.

    spectrum: the one that is drawn.
    cumulative: of `cumulative_profiles`. titles: (law, temperature) -> title of its panel.
    """
    rows = cumulative[cumulative["spectrum"] == spectrum]
    for axis, ((law, temperature), title) in zip(axes, titles.items(), strict=True):
        part = rows[(rows["tokens"] == law) & (rows["temperature"] == temperature)]
        axis.fill_between(part["theta"], part["linear"], part["mass"], color=INK, alpha=0.15, linewidth=0)
        axis.plot(part["theta"], part["linear"], "--", color=LINEAR, label="unsaturated, piecewise linear")
        axis.plot(part["theta"], part["mass"], color=SOFTMAX, label="gradient mass of softmax")
        axis.set(xlim=(0, 1), ylim=(-0.03, 1.03), title=title, xlabel="location θ = i/T", ylabel="share up to θ")
        axis.label_outer()
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def plot_agreement(agreement: pd.DataFrame, tolerance: float, axes: Sequence[Axes]) -> None:
    """Draw the distance of both profiles: a panel a spectrum against λ, and all against the spread of the logits.

    agreement: of `agreement_table`. Filled: a profile is further than the tolerance from a flat one. Dotted: the
    tolerance, up to which profiles count as the same.
    """
    laws = agreement["tokens"].unique()
    looks = dict(zip(laws, zip(PALETTE[1:], "osD^", strict=False), strict=False))
    for axis, (_, group) in zip(axes, agreement.groupby("spectrum", sort=False), strict=False):
        for law, rows in group.groupby("tokens", sort=False):
            colour, marker = looks[str(law)]
            draw_intervals(
                axis, rows["temperature"], rows.rename(columns={"total_variation": "estimate"}), fmt="-", color=colour
            )
            axis.plot([], [], marker=marker, color=colour, label=str(law), markersize=5)
            fill = [colour if localized > tolerance else "none" for localized in rows["localized"]]
            for panel, column in ((axis, "temperature"), (axes[-1], "spread")):
                panel.scatter(
                    rows[column], rows["total_variation"], marker=marker, c=fill, edgecolors=colour, s=26, zorder=3
                )
        axis.set_xlabel("temperature λ")
    for axis in axes:
        axis.axhline(tolerance, color=INK, linestyle=":", linewidth=1.2)
        axis.set(xscale="log", ylim=(-0.03, 1.03), ylabel="total variation")
    axes[1].set(ylabel="", yticklabels=[])
    axes[-1].set_xlabel("standard deviation of a row of logits / λ")
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def plot_closed_forms(table: pd.DataFrame, axis: Axes) -> None:
    """Draw simulated over predicted value with its 95% interval, a line a case, coloured by form; shaded: CLOSE."""
    labels = {
        "high temperature": "high temperature, any spectrum",
        "geometric": "raw walk, equal eigenvalues",
        "normalised walk": "normalised walk, equal eigenvalues",
    }
    axis.axvspan(100 - 100 * CLOSE, 100 + 100 * CLOSE, color=INK, alpha=0.12, linewidth=0)
    axis.axvline(100, color=INK, linewidth=1)
    for (form, rows), colour in zip(table.groupby("form", sort=False), PALETTE[2:], strict=False):
        scale = 100 / rows["predicted"]
        bars = (TWO_SIDED * rows["standard_error"] * scale).abs()
        axis.errorbar(rows["simulated"] * scale, rows.index, xerr=bars, fmt="o", markersize=5, color=colour)
        place = (1.02, (rows.index.min() + rows.index.max()) / 2)
        axis.text(*place, labels[str(form)].replace(", ", ",\n"), color=colour, va="center", fontweight="bold",
                  transform=axis.get_yaxis_transform())  # fmt: skip
    axis.set_yticks(table.index, table["case"])
    axis.set(xlabel="simulated, in % of the closed form", ylim=(len(table) - 0.5, -0.5))


CLAIMS = (
    Claim(
        name="softmax-localizes-likewise",
        chapter="true_softmax",
        provenance="ours",
        statement=(
            "Where at least one of the two is not flat over the sequence, the gradient mass of the true softmax sits "
            "where the linearised probability says."
        ),
        conditions=(
            "concentrated and dispersed spectra of norm 4, four laws of tokens, temperatures 0.25 to 4096, d = 64, T = "
            "128"
        ),
        rule=(
            "In each setting in which a profile is further than 0.2 from a flat one (total variation), the two "
            "normalised profiles are within 0.2 of each other, by the 95% interval over batches."
        ),
        refuted_by="being further apart in some such settings and close in none",
        tables=("agreement",),
        judge=softmax_localizes,
        figure="fig-agreement",
        threshold=Threshold(
            "total variation between the profiles", SAME_PROFILE, (0.05, 0.1, 0.2, 0.3, 0.4, 0.5), softmax_localizes
        ),
    ),
    Claim(
        name="softmax-closed-forms",
        chapter="true_softmax",
        provenance="ours",
        statement=(
            "Closed forms give the entropy of the true softmax: at high temperature for any spectrum, on raw walks "
            "with T much smaller than d and on normalised walks for equal eigenvalues."
        ),
        rule=(
            "For each value the 95% interval of simulated over predicted lies within 5% of 1; inconclusive while one "
            "reaches beyond."
        ),
        refuted_by="one value whose interval lies outside",
        tables=("closed_forms",),
        judge=softmax_closed_forms,
        figure="fig-softmax-closed-forms",
        threshold=Threshold("relative distance", CLOSE, (0.01, 0.02, 0.03, 0.05, 0.1, 0.2), softmax_closed_forms),
    ),
)

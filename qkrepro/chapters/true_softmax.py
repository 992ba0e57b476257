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
from numpy.typing import NDArray
from torch import Generator, Tensor

from qkrepro.errors import check_choice, check_integer
from qkrepro.evidence.claims import claims_judged_by
from qkrepro.evidence.verdicts import SAME_PROFILE, Tables, Verdict, share_verdict
from qkrepro.theory.attention import attention_entropy, saturation, softmax_attention, softmax_gradient_mass
from qkrepro.theory.entropy import geometric_entropy, high_temperature_deficit, normalised_walk_deficit
from qkrepro.theory.propagation import signal_propagation
from qkrepro.theory.spectrum import matrix_moments
from qkrepro.theory.statistics import t_interval
from qkrepro.theory.tokens import ar1_tokens, independent_tokens, random_walk

TOKEN_LAWS = ("raw walk", "normalised walk", "AR(1)", "independent")


def draw_tokens(law: str, length: int, dim: int, *, coefficient: float, batch: int, generator: Generator) -> Tensor:
    """Tokens of a law of TOKEN_LAWS, float64, (batch, length, dim): variance 1 a coordinate but for the raw walk.

    "normalised walk" applies LayerNorm without gain and bias; coefficient is that of "AR(1)".
    """
    check_choice("law", law, TOKEN_LAWS)
    if law == "AR(1)":
        return ar1_tokens(length, dim, coefficient=coefficient, batch=batch, generator=generator)
    if law == "independent":
        return independent_tokens(length, dim, batch=batch, generator=generator)
    walk = random_walk(length, dim, batch=batch, generator=generator)
    return walk if law == "raw walk" else torch.nn.functional.layer_norm(walk, (dim,), eps=0.0)


def last_logits(tokens: Tensor, m: Tensor) -> Tensor:
    """x_iᵀ M x_T of the last token as query: tokens (batch, T, d), m (d, d) -> (batch, T)."""
    logits: Tensor = torch.einsum("bid,bd->bi", tokens, tokens[:, -1] @ m.double().mT)
    return logits


def location_profiles(
    matrices: Mapping[str, Tensor],
    temperatures: Sequence[float],
    *,
    length: int,
    draws: int,
    coefficient: float,
    seeds: Iterable[int],
) -> pd.DataFrame:
    """Both profiles for every token law, matrix, temperature and seed, one row a location.

    matrices: name -> (d, d). draws: sequences a seed; every matrix and temperature sees the same ones. Columns tokens,
    spectrum, temperature, seed, spread (mean standard deviation of a row's logits, over λ), theta, linear (share
    unsaturated), mass (mean A_i(1 − A_i)).
    """
    check_integer("draws", draws, at_least=1)
    dim = len(next(iter(matrices.values())))
    theta, tables = torch.arange(1, length + 1, dtype=torch.float64) / length, []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for law in TOKEN_LAWS:
            tokens = draw_tokens(law, length, dim, coefficient=coefficient, batch=draws, generator=generator)
            for spectrum, m in matrices.items():
                logits = last_logits(tokens, m)  # (draws, T)
                spread = float(logits.std(-1).mean())
                for temperature in temperatures:
                    columns = {"spread": spread / temperature, "theta": theta, **_both(logits, temperature)}
                    head = {"tokens": law, "spectrum": spectrum, "temperature": temperature, "seed": seed}
                    tables.append(pd.DataFrame({**head, **columns}))
    return pd.concat(tables, ignore_index=True)


def agreement_table(profiles: pd.DataFrame) -> pd.DataFrame:
    """Total variation between the two normalised profiles, with its 95% t interval over seeds; one row a setting.

    Columns tokens, spectrum, temperature, setting (spectrum and temperature as text), spread, total_variation, low,
    high. Noise of the draws can only raise a total variation.
    """
    rows = []
    for (tokens, spectrum, temperature), group in profiles.groupby(["tokens", "spectrum", "temperature"], sort=False):
        distances = [_total_variation(part) for _, part in group.groupby("seed")]
        estimate, low, high = t_interval(distances)
        head = {"tokens": tokens, "spectrum": spectrum, "temperature": temperature, "spread": group["spread"].mean()}
        setting = f"{spectrum}, λ = {temperature:g}"
        rows.append({**head, "setting": setting, "total_variation": estimate, "low": low, "high": high})
    return pd.DataFrame(rows)


def trusted_from(agreement: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """The lowest temperature from which on every upper end is at most `tolerance`, and the spread of the logits there.

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
    """Both profiles summed over seeds and accumulated along the sequence to 1; as `location_profiles` without seed."""
    keys = ["tokens", "spectrum", "temperature"]
    mean = profiles.groupby([*keys, "theta"], sort=False)[["linear", "mass"]].mean().reset_index()
    grouped = mean.groupby(keys, sort=False)
    for column in ("linear", "mass"):
        mean[column] = grouped[column].cumsum() / grouped[column].transform("sum")
    return mean


def late_mass(
    means: Sequence[float], *, dim: int, length: int, share: float, draws: int, generator: Generator
) -> pd.DataFrame:
    """Part of the gradient mass in the last `share` of sites, raw walks, M = (mean/dim) I, temperature 1.

    Columns mean, softmax (of the true softmax, simulated), linear (of ρ, exact law).
    """
    tokens = random_walk(length, dim, batch=draws, generator=generator)
    unit = torch.eye(dim, dtype=torch.float64) / dim
    logits, rows = last_logits(tokens, unit), []
    theta = torch.arange(1, length + 1, dtype=torch.float64) / length
    late = theta > 1 - share
    for mean in means:
        mass = softmax_gradient_mass(softmax_attention(mean * logits)).site.mean(0)  # (T,)
        rho = signal_propagation(theta, mean * unit, length=length, method="exact")
        parts = {"softmax": mass[late].sum() / mass.sum(), "linear": rho[late].sum() / rho.sum()}
        rows.append({"mean": mean, **{name: float(part) for name, part in parts.items()}})
    return pd.DataFrame(rows)


def deficit_comparison(
    matrices: Mapping[str, Tensor], *, length: int, temperature: float, draws: int, generator: Generator
) -> pd.DataFrame:
    """Entropy deficit of raw walks at a high temperature, in units of (T² − 1)/(24 λ²), against its expansion.

    Columns form, case, predicted (ξ² + 2‖M‖_F² + tr M²), simulated, standard_error. Every matrix sees the same walks.
    """
    dim = len(next(iter(matrices.values())))
    tokens, rows = random_walk(length, dim, batch=draws, generator=generator), []
    scale = (length**2 - 1) / (24 * temperature**2)
    for case, m in matrices.items():
        entropy = attention_entropy(softmax_attention(last_logits(tokens, m), temperature))  # (draws,)
        deficit = (torch.tensor(length, dtype=torch.float64).log() - entropy) / scale
        predicted = float(high_temperature_deficit(matrix_moments(m), length, temperature)) / scale
        rows.append({"form": "high temperature", "case": case, "predicted": predicted, **_mean(deficit)})
    return pd.DataFrame(rows)


def geometric_comparison(
    kappas: Sequence[float], *, dim: int, length: int, draws: int, generator: Generator
) -> pd.DataFrame:
    """Entropy in nats of raw walks with M = (κ/dim) I against the geometric form; columns as `deficit_comparison`."""
    tokens = random_walk(length, dim, batch=draws, generator=generator)
    logits, rows = last_logits(tokens, torch.eye(dim, dtype=torch.float64) / dim), []
    for kappa in kappas:
        entropy = attention_entropy(softmax_attention(kappa * logits))
        predicted = float(geometric_entropy(kappa, length))
        rows.append(
            {"form": "geometric", "case": f"κ = {kappa:g}".replace("-", "−"), "predicted": predicted, **_mean(entropy)}
        )
    return pd.DataFrame(rows)


def normalised_comparison(
    kappas: Sequence[float], *, dim: int, length: int, draws: int, generator: Generator
) -> pd.DataFrame:
    """log T − H in nats of normalised walks with M = (κ/dim) I against its limit; columns as `deficit_comparison`."""
    tokens = draw_tokens("normalised walk", length, dim, coefficient=0.0, batch=draws, generator=generator)
    logits, rows = last_logits(tokens, torch.eye(dim, dtype=torch.float64) / dim), []
    for kappa in kappas:
        entropy = attention_entropy(softmax_attention(kappa * logits))
        deficit = torch.tensor(length, dtype=torch.float64).log() - entropy
        predicted = float(normalised_walk_deficit(kappa))
        rows.append(
            {
                "form": "normalised walk",
                "case": f"κ = {kappa:g}".replace("-", "−"),
                "predicted": predicted,
                **_mean(deficit),
            }
        )
    return pd.DataFrame(rows)


def _both(logits: Tensor, temperature: float) -> dict[str, Tensor]:
    free = (saturation(logits, temperature) == 0).double().mean(0)  # (T,)
    return {"linear": free, "mass": softmax_gradient_mass(softmax_attention(logits, temperature)).site.mean(0)}


def _total_variation(part: pd.DataFrame) -> float:
    linear, mass = (part[column] / part[column].sum() for column in ("linear", "mass"))
    return float((linear - mass).abs().sum() / 2)


def _mean(values: Tensor) -> dict[str, float]:
    return {"simulated": float(values.mean()), "standard_error": float(values.std() / len(values) ** 0.5)}


def softmax_localizes(tables: Tables) -> Verdict:
    """Table agreement: tokens, setting, total_variation, low, high (95% interval over seeds), one row a setting."""
    table = tables["agreement"]
    holds = [bool(high <= SAME_PROFILE) for high in table["high"]]
    because = (
        f"linearised and true profile agree (total variation at most {SAME_PROFILE}) in {sum(holds)} of {len(holds)} "
        f"settings; smallest {table['total_variation'].min():.2f}, largest {table['total_variation'].max():.2f}"
    )
    return share_verdict(holds, because)


def softmax_closed_forms(tables: Tables) -> Verdict:
    """Table closed_forms: form, predicted, simulated, standard_error; one row a case."""
    table = tables["closed_forms"]
    error = (table["predicted"] - table["simulated"]).abs()
    allowed = np.maximum(np.maximum(4 * table["standard_error"], 0.02 * table["simulated"].abs()), 0.01)
    holds = [bool(value) for value in error <= allowed]
    because = f"{sum(holds)} of {len(holds)} values within four standard errors, 2% or 0.01 of simulation"
    return share_verdict(holds, because)


def plot_cumulative(
    cumulative: pd.DataFrame, spectrum: str, temperatures: Sequence[float], axes: NDArray[np.object_]
) -> None:
    """Rows of panels by temperature, columns by token law: the share of each profile in the tokens up to θ.

    cumulative: of `true_softmax.cumulative_profiles`. axes: (temperatures, token laws).
    """
    rows = cumulative[cumulative["spectrum"] == spectrum]
    for line, temperature in zip(axes, temperatures, strict=True):
        for axis, law in zip(line, rows["tokens"].unique(), strict=True):
            part = rows[(rows["tokens"] == law) & (rows["temperature"] == temperature)]
            axis.plot(part["theta"], part["linear"], color="C1", linestyle="--", label="not saturated (linearised)")
            axis.plot(part["theta"], part["mass"], color="C0", label="gradient mass A(1 − A) of softmax")
            axis.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1, label="uniform")
            axis.set(xlim=(0, 1), ylim=(-0.03, 1.03), title=f"{law}, λ = {temperature:g}", xlabel="location θ = i/T")
            axis.label_outer()
        line[0].set_ylabel("share up to θ")
    axes[0, 0].figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def plot_agreement(agreement: pd.DataFrame, tolerance: float, axes: Sequence[Axes]) -> None:
    """Total variation between both profiles: a panel a spectrum against λ, and all against the spread of the logits.

    agreement: of `true_softmax.agreement_table`. Dotted: the tolerance up to which profiles count as the same.
    """
    markers = dict(zip(agreement["tokens"].unique(), "osD^", strict=False))
    for axis, (spectrum, group) in zip(axes, agreement.groupby("spectrum", sort=False), strict=False):
        for place, (law, rows) in enumerate(group.groupby("tokens", sort=False)):
            bars = [rows["total_variation"] - rows["low"], rows["high"] - rows["total_variation"]]
            style = {"marker": markers[law], "color": f"C{place}", "markersize": 4, "linewidth": 1.3}
            axis.errorbar(rows["temperature"], rows["total_variation"], yerr=bars, label=str(law), **style)
            axes[-1].scatter(rows["spread"], rows["total_variation"], marker=markers[law], color=f"C{place}", s=16)
        axis.set(title=str(spectrum), xlabel="temperature λ")
    for axis in axes:
        axis.axhline(tolerance, color="0.4", linestyle=":", linewidth=1.2)
        axis.set(xscale="log", ylim=(-0.03, 1.03))
        axis.label_outer()
    axes[-1].set(title="all settings", xlabel="spread of the logits / λ")
    axes[0].set_ylabel("total variation")
    axes[0].legend()


def plot_closed_forms(table: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """One panel a form: simulated value with four standard errors against the predicted one, and the diagonal."""
    labels = {
        "high temperature": "entropy deficit, in units of its scale",
        "geometric": "entropy on a raw walk (nats)",
        "normalised walk": "log T − entropy, normalised (nats)",
    }
    for axis, (form, rows) in zip(axes, table.groupby("form", sort=False), strict=True):
        ends = [rows["predicted"].min(), rows["predicted"].max()]
        axis.plot(ends, ends, color="0.5", linestyle="--", linewidth=1)
        for place, (_, row) in enumerate(rows.iterrows()):
            bar = 4 * row["standard_error"]
            axis.errorbar(
                row["predicted"],
                row["simulated"],
                yerr=bar,
                fmt="o",
                markersize=4,
                color=f"C{place}",
                label=row["case"],
            )
        axis.set(title=labels[str(form)], xlabel="closed form", ylabel="simulated")
        axis.legend(loc="upper left")


CLAIMS = claims_judged_by(softmax_localizes, softmax_closed_forms)

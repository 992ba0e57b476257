"""Matrices with a chosen spectrum, and Xavier draws beside their law. Book, "The eigenspectrum"."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from qkrepro.errors import check_integer
from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.style import COLOURS, INK, PALETTE, draw_intervals, label_lines
from qkrepro.evidence.verdicts import universal_verdict, within
from qkrepro.theory.spectrum import matrix_moments, qk_eigenvalues, qk_matrix, qk_moments, random_spectrum_matrix
from qkrepro.theory.statistics import t_interval
from qkrepro.theory.xavier import XavierLaw, xavier_qk

CHUNK = 100  # heads drawn at once, bounds the memory
LIMIT = "spectral norm (limit)"


def chosen_spectra(dim: int, spectra: Sequence[Sequence[float]], *, generator: Generator) -> pd.DataFrame:
    """Return the eigenvalues of one symmetric draw per (mean, variance): mean, variance (asked for), eigenvalue."""
    tables = []
    for mean, variance in spectra:
        w = random_spectrum_matrix(dim, mean, variance, generator=generator)
        values = torch.linalg.eigvalsh(w).numpy()
        tables.append(pd.DataFrame({"mean": mean, "variance": variance, "eigenvalue": values}))
    return pd.concat(tables, ignore_index=True)


def equal_eigenvalues(dim: int, non_normality: float, *, generator: Generator) -> dict[str, Tensor]:
    """Return two pairs of (dim, dim) matrices by name; the second of a pair has the eigenvalues of the first alone.

    All eigenvalues 1/dim, alone and with a strictly triangular part of Frobenius norm `non_normality`; and a spectrum
    of mean 1 and variance 1, symmetric and with the default triangular part of `random_spectrum_matrix`.
    """
    state = generator.get_state()
    symmetric = random_spectrum_matrix(dim, 1.0, 1.0, generator=generator)
    generator.set_state(state)  # the same eigenvalues again
    slanted = random_spectrum_matrix(dim, 1.0, 1.0, symmetric=False, generator=generator)
    strong = random_spectrum_matrix(
        dim, 1 / dim, 0.0, symmetric=False, non_normality=non_normality, generator=generator
    )
    identity = torch.eye(dim, dtype=torch.float64) / dim
    return {"I/d": identity, "I/d + triangular": strong, "symmetric": symmetric, "not symmetric": slanted}


def singular_values(matrices: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return singular values, one row per value: matrix, rank (1 the largest), singular_value."""
    tables = []
    for name, w in matrices.items():
        values = torch.linalg.svdvals(w).numpy()
        tables.append(pd.DataFrame({"matrix": name, "rank": range(1, len(values) + 1), "singular_value": values}))
    return pd.concat(tables, ignore_index=True)


def compare(matrices: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return moments of named (d, d) matrices: matrix, mean, variance (from traces), and the two norms."""
    rows = []
    for name, w in matrices.items():
        moments = matrix_moments(w)
        rows.append(
            {
                "matrix": name,
                "mean": float(moments.eigen_mean),
                "variance": round(float(moments.eigen_variance), 12) + 0.0,  # rounding leaves ±1e-16 of a variance 0
                "Frobenius norm": float(moments.frobenius_sq) ** 0.5,
                "spectral norm": float(moments.spectral_norm),
            }
        )
    return pd.DataFrame(rows)


def xavier_moments(d_model: int, d_head: int, *, draws: int, generator: Generator) -> pd.DataFrame:
    """Return moments of Xavier draws, one row per draw.

    d_model: width of the matrices.
    Columns trace, trace_sq, frobenius_sq, spectral_norm, equal_number (tr W)²/Σ|λ|²: as many equal eigenvalues have
    this sum and this sum of squared moduli, at most d_head.
    """
    check_integer("draws", draws, at_least=1)
    tables = []
    for first in range(0, draws, CHUNK):
        weights = xavier_qk(d_model, d_head, batch=(min(CHUNK, draws - first),), generator=generator)
        moments = qk_moments(*weights)
        columns = {name: getattr(moments, name) for name in ("trace", "trace_sq", "frobenius_sq", "spectral_norm")}
        columns["equal_number"] = moments.trace.square() / qk_eigenvalues(*weights).abs().square().sum(-1)
        tables.append(pd.DataFrame({name: column.numpy() for name, column in columns.items()}))
    return pd.concat(tables, ignore_index=True)


def against_law(table: pd.DataFrame, law: XavierLaw) -> pd.DataFrame:
    """Return means over draws with 95% t intervals beside the law; that of the spectral norm is a limit.

    table: of `xavier_moments`. Columns: quantity, law, scale (what the quantity is measured in: the law itself, of the
    trace its standard deviation), estimate, low, high.
    """
    expected = {
        "trace": (table["trace"], 0.0),
        "trace squared": (table["trace"] ** 2, law.trace_std**2),
        "trace of W²": (table["trace_sq"], law.trace_sq),
        "squared Frobenius norm": (table["frobenius_sq"], law.frobenius_sq),
        LIMIT: (table["spectral_norm"], law.spectral_norm),
    }
    return pd.DataFrame(
        {"quantity": name, "law": value, "scale": value or law.trace_std, **t_interval(drawn)._asdict()}
        for name, (drawn, value) in expected.items()
    )


def radius_histogram(laws: Sequence[XavierLaw], *, bins: int, count: int, generator: Generator) -> pd.DataFrame:
    """Return the density of |eigenvalue| in units of each law's limit radius, with 95% t intervals over draws.

    laws: of the weights. bins: of the radius, equal widths.
    count: eigenvalues per law, from count // d_head draws (2 at least). Bins divide [0, 1.2].
    Columns: d_head, radius (middle of the bin), estimate, low, high (of the density).
    """
    check_integer("bins", bins, at_least=1)
    edges = torch.linspace(0, 1.2, bins + 1, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    rows = []
    for law in laws:
        draws = max(2, count // law.d_head)
        weights = xavier_qk(law.d_model, law.d_head, batch=(draws,), generator=generator)
        ratios = qk_eigenvalues(*weights).abs() / law.eigen_radius  # (draws, d_head)
        inside = (ratios[..., None] > edges[:-1]) & (ratios[..., None] <= edges[1:])  # (draws, d_head, bins)
        density = inside.double().mean(1) * bins / 1.2  # (draws, bins)
        rows += [
            {"d_head": law.d_head, "radius": float(middle), **t_interval(column)._asdict()}
            for middle, column in zip(middles, density.mT.numpy(), strict=True)
        ]
    return pd.DataFrame(rows)


def xavier_spectrum(tables: Tables, margin: float = 0.2) -> Verdict:
    """Judge table checks: quantity, law, scale, low, high (95% over draws); the limit of the spectral norm is left out.

    margin: distance from the law, in units of `scale`, that counts as equal.
    """
    table = tables["checks"].query(f"quantity != {LIMIT!r}")
    low, high = ((table[end] - table["law"]) / table["scale"] for end in ("low", "high"))
    holds = [within(*ends, -margin, margin) for ends in zip(low, high, strict=True)]
    worst = float(np.maximum(low.abs(), high.abs()).max()) if len(table) else 0.0
    because = (
        f"{holds.count(True)} of {len(holds)} moments within {margin:.0%} of their closed form with their whole 95% "
        f"interval; the farthest end of one is {worst:.1%} off"
    )
    return universal_verdict(holds, because)


def xavier_starts_dispersed(tables: Tables, bound: float = 1.0) -> Verdict:
    """Judge table xavier: equal_number, one row per draw.

    bound: number of equal eigenvalues below which a head counts as dispersed.
    """
    number = tables["xavier"]["equal_number"].to_numpy()
    if len(number) < 2:
        return Verdict("not run", "fewer than two draws")
    mean = t_interval(number)
    dispersed = int((number < bound).sum())
    because = (
        f"as many as {mean.estimate:.2f} [{mean.low:.2f}, {mean.high:.2f}] equal eigenvalues on average; "
        f"below {bound:g} in {dispersed} of {len(number)} heads"
    )
    inside = within(mean.low, mean.high, -math.inf, bound)
    outcome: Outcome = "reproduced" if inside else "inconclusive" if inside is None else "not reproduced"
    return Verdict(outcome, because, dispersed, len(number))


def plot_one_head(w_q: Tensor, w_k: Tensor, axes: Mapping[str, Axes]) -> None:
    """Draw the two weights of a head, their product, and its eigenvalues; axes: query, key, product, plane."""
    product, eigenvalues = qk_matrix(w_q, w_k), qk_eigenvalues(w_q, w_k).numpy()
    titles = {"query": "$W_q^\\top$", "key": "·  $W_k$", "product": "=  $W_{QK}$"}
    for (place, title), matrix in zip(titles.items(), (w_q.mT, w_k, product), strict=True):
        bound = float(matrix.abs().max())
        axes[place].imshow(matrix.numpy(), cmap="vlag", vmin=-bound, vmax=bound)
        axes[place].set(title=title, xlabel=f"{matrix.shape[1]} columns", ylabel=f"{matrix.shape[0]} rows")
        axes[place].set(xticks=[], yticks=[])
        axes[place].spines[:].set_visible(False)
    plane, rest = axes["plane"], len(product) - len(eigenvalues)
    plane.plot(eigenvalues.real, eigenvalues.imag, "o", color=PALETTE[0])
    plane.plot(0, 0, "x", color=INK, markersize=9)
    plane.annotate(f"{rest} more are zero", (0, 0), (8, -14), textcoords="offset points", fontsize="small")
    plane.axvline(eigenvalues.real.sum() / len(product), color=PALETTE[1])
    plane.annotate("mean μ of all", (eigenvalues.real.sum() / len(product), 0.97), (-5, 0), ha="right", va="top",
                   xycoords=("data", "axes fraction"), textcoords="offset points", color=PALETTE[1])  # fmt: skip
    plane.set(xlabel="real part", ylabel="imaginary part", title=f"{len(eigenvalues)} eigenvalues are not zero")
    plane.set_aspect("equal", adjustable="datalim")
    plane.margins(0.2)


def plot_chosen_spectra(table: pd.DataFrame, axis: Axes) -> None:
    """Draw eigenvalues as ticks, one line per case, with mean and standard deviation above each line.

    table: one row per eigenvalue: mean and variance (as asked for), eigenvalue (real).
    """
    labels = []
    for row, (_, group) in enumerate(table.groupby(["mean", "variance"])):
        mean, variance = (float(group[name].iloc[0]) for name in ("mean", "variance"))
        colour = COLOURS["concentrated" if variance == table["variance"].min() else "dispersed"]
        axis.plot(group["eigenvalue"], np.full(len(group), row), "|", markersize=12, color=colour)
        axis.errorbar(
            group["mean"].iloc[0],
            row + 0.35,
            xerr=group["variance"].iloc[0] ** 0.5,
            fmt="o",
            markersize=4,
            capsize=3,
            color=INK,
        )
        labels.append(f"mean {mean:g}\nvariance {variance:g}")
    axis.set(xlabel="eigenvalue", ylim=(-0.5, len(labels) - 0.2))
    axis.set_yticks(range(len(labels)), labels)


def plot_singular_values(table: pd.DataFrame, axis: Axes) -> None:
    """Draw sorted singular values, a line per matrix. table: matrix, rank (1 the largest), singular_value."""
    for number, (name, group) in enumerate(table.groupby("matrix", sort=False)):
        line = "--" if number % 2 else "-"
        axis.plot(group["rank"], group["singular_value"], line, color=PALETTE[3 + number // 2], label=str(name))
    axis.set(yscale="log", ylim=(1e-4, 80), xlabel="rank", ylabel="singular value")
    axis.legend(loc="lower left", fontsize=8)


def plot_complex_eigenvalues(values: Tensor, axis: Axes, **look: Any) -> None:
    """Draw eigenvalues, complex of any shape, in the complex plane with equal scales."""
    settings: dict[str, Any] = {"marker": ".", "linestyle": "none", **look}
    axis.plot(values.flatten().real, values.flatten().imag, **settings)
    axis.set(xlabel="real part", ylabel="imaginary part", aspect="equal")
    axis.locator_params(nbins=5)


def plot_radius_law(table: pd.DataFrame, laws: Sequence[XavierLaw], axis: Axes) -> None:
    """Draw the histogram of |eigenvalue| over its limit radius beside the limit density; table: `radius_histogram`."""
    ratio = torch.linspace(0, 1, 200, dtype=torch.float64)
    for colour, law in zip(PALETTE[3:], laws, strict=False):
        rows = table[table["d_head"] == law.d_head]
        density = law.radius_density(ratio * law.eigen_radius) * law.eigen_radius
        draw_intervals(axis, rows["radius"], rows, color=colour)
        axis.plot(ratio, density, color=colour, label=f"$d_{{head}}$ = {law.d_head}")
    axis.set(xlabel="|eigenvalue| / limit radius", ylabel="density", xlim=(0, 1.25), ylim=(0, 2.2))
    label_lines(axis)


def plot_trace_histogram(traces: pd.Series, trace_std: float, axis: Axes) -> None:
    """Draw a histogram of tr W over draws in units of its standard deviation, beside the normal density."""
    axis.hist(traces / trace_std, bins=20, range=(-4, 4), density=True, color=PALETTE[0], alpha=0.6, edgecolor="none")
    z = np.linspace(-4, 4, 200)
    axis.plot(z, np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), color=INK)
    axis.set(xlabel="sum / its standard deviation", ylabel="density")


CLAIMS = (
    Claim(
        name="xavier-spectrum",
        chapter="eigenspectrum",
        provenance="derived",
        statement=(
            "Xavier initialisation of query and key weights gives W a trace of mean zero, and closed forms to its "
            "variance and to the means of tr W² and of the squared Frobenius norm."
        ),
        rule=(
            "Each of the four moments lies within a fifth of its closed form with its whole 95% t interval over draws "
            "(the mean of the trace: within a fifth of a standard deviation of zero). Inconclusive while an interval "
            "reaches across that margin."
        ),
        refuted_by="one moment whose whole interval lies beyond the margin",
        tables=("checks",),
        judge=xavier_spectrum,
        figure="fig-xavier-spectrum",
        threshold=Threshold(
            "distance from the closed form, as a share of it", 0.2, (0.05, 0.1, 0.15, 0.2, 0.3, 0.5), xavier_spectrum
        ),
    ),
    Claim(
        name="xavier-starts-dispersed",
        chapter="eigenspectrum",
        provenance="derived",
        statement=(
            "Under Xavier initialisation a head starts dispersed: its eigenvalues are worth less than one of "
            "d_head equal ones."
        ),
        rule=(
            "The 95% t interval over draws of (tr W)²/Σ|λ|², which is d_head for equal eigenvalues, lies below 1. "
            "Inconclusive when it contains 1."
        ),
        refuted_by="an interval that lies above 1",
        tables=("xavier",),
        judge=xavier_starts_dispersed,
        figure="fig-xavier-spectrum",
        threshold=Threshold(
            "number of equal eigenvalues", 1.0, (0.02, 0.05, 0.1, 0.5, 1.0, 2.0, 8.0), xavier_starts_dispersed
        ),
    ),
)
READS = ()

"""Localization over the plane of mean and spread of a symmetric spectrum, and matrices that the plane cannot place."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy import stats
from torch import Generator, Tensor

from qkrepro.errors import check_integer, check_number
from qkrepro.evidence.claims import Claim, Tables, Verdict
from qkrepro.evidence.rounding import fixed
from qkrepro.evidence.verdicts import LOCALIZED, share_verdict
from qkrepro.theory.propagation import localization, signal_propagation, signal_propagation_limit
from qkrepro.theory.spectrum import matrix_moments, random_spectrum_matrix

BOX = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2.0}


class Counterexample(NamedTuple):
    """A matrix of trace 1, by its width and moments; `m` itself where the exact law is affordable."""

    name: str
    dim: int
    trace_sq: float
    frobenius_sq: float
    m: Tensor | None


def token_grid(length: int, locations: int) -> Tensor:
    """Locations i/T of at most `locations` evenly spaced tokens of T = `length`, float64, (n,)."""
    check_integer("length", length, at_least=2)
    check_integer("locations", locations, at_least=2)
    return torch.linspace(1, length, min(length, locations), dtype=torch.float64).round() / length


def localization_plane(
    means: Sequence[float], spreads: Sequence[float], *, dim: int, length: int, locations: int
) -> pd.DataFrame:
    """Index, centre and level for symmetric M of `dim` eigenvalues, one row a cell of means × spreads.

    means: ξ/λ, ξ = tr M. spreads: √(d σ²)/λ, σ² the variance of the eigenvalues, >= 0; √(d σ²) is the Frobenius norm of
    M minus its mean, the book's dispersion. Columns mean_scaled, spread_scaled, dispersion (σ/|μ|, the root of the
    book's relative variance; infinite at mean zero), effective_number (N = ξ²/η), index, centre, level. ρ by the
    Gaussian form with the moments of the length.
    Source: book, "The localization plane", "Theory: signal propagation".
    """
    check_integer("dim", dim, at_least=1)
    theta = token_grid(length, locations)
    cells = torch.cartesian_prod(torch.tensor(means).double(), torch.tensor(spreads).double())  # (cells, 2)
    mean, spread = cells[:, 0], cells[:, 1]
    eta = mean.square() / dim + spread.square()  # tr M² = d μ² + d σ²
    found = localization(theta, signal_propagation_limit(theta, mean, eta, length=length))
    return pd.DataFrame(
        {
            "mean_scaled": mean,
            "spread_scaled": spread,
            "dispersion": dim**0.5 * spread / mean.abs(),
            "effective_number": mean.square() / eta,
            "index": found.index,
            "centre": found.centre,
            "level": found.level,
        }
    )


def counterexamples(
    *, wide_dim: int, wide_ratio: float, narrow_dim: int, dim: int, non_normality: float, generator: Generator
) -> list[Counterexample]:
    """Four matrices of trace 1: dispersed but wide, concentrated but narrow, equal eigenvalues without and with more.

    wide: symmetric, σ²/μ² = `wide_ratio`, `wide_dim` eigenvalues. narrow: I/narrow_dim. normal: I/dim. not normal:
    I/dim plus a strictly triangular part of Frobenius norm `non_normality`, all eigenvalues still 1/dim.
    Source: book, "Theory: signal propagation" (ours).
    """
    check_number("wide_ratio", wide_ratio, at_least=0)
    eta = (1 + wide_ratio) / wide_dim
    narrow, normal = (torch.eye(d, dtype=torch.float64) / d for d in (narrow_dim, dim))
    triangular = random_spectrum_matrix(
        dim, 1 / dim, 0.0, symmetric=False, non_normality=non_normality, generator=generator
    )
    named = {
        f"equal eigenvalues, d = {narrow_dim}": narrow,
        f"equal eigenvalues, d = {dim}": normal,
        f"the same and a triangular part of norm {non_normality:g}": triangular,
    }
    wide = Counterexample(f"variance {wide_ratio:g} squared means, d = {wide_dim}", wide_dim, eta, eta, None)
    return [wide, *(_with_matrix(name, m) for name, m in named.items())]


def counterexample_profiles(examples: Sequence[Counterexample], *, length: int, locations: int) -> pd.DataFrame:
    """ρ_θ of each at temperature 1; columns name, theta, rho, form ("exact", or "finite" where no matrix is kept)."""
    theta = token_grid(length, locations)
    tables = []
    for example in examples:
        if example.m is None:
            rho = signal_propagation_limit(theta, 1.0, example.trace_sq, example.frobenius_sq, length=length)
        else:
            rho = signal_propagation(theta, example.m, length=length, method="exact")
        form = "finite" if example.m is None else "exact"
        tables.append(pd.DataFrame({"name": example.name, "theta": theta, "rho": rho, "form": form}))
    return pd.concat(tables, ignore_index=True)


def counterexample_table(examples: Sequence[Counterexample], profiles: pd.DataFrame) -> pd.DataFrame:
    """One row a matrix: name, relative_variance (σ²/μ² over all eigenvalues), effective_number, index, centre, level.

    effective_number is ξ²/‖M‖_F². gaussian_index is the index of the Gaussian limit. The relative variance comes from
    tr M², which rounding leaves within 1e-9 of 0.
    """
    rows = []
    for example in examples:
        rows_of = profiles[profiles["name"] == example.name]
        theta = rows_of["theta"].to_numpy()
        found = localization(theta, rows_of["rho"].to_numpy())
        gauss = signal_propagation_limit(theta, 1.0, example.trace_sq, example.frobenius_sq)
        rows.append(
            {
                "name": example.name,
                "relative_variance": max(round(example.dim * example.trace_sq - 1, 9), 0.0),
                "effective_number": 1 / example.frobenius_sq,
                "index": float(found.index),
                "gaussian_index": float(localization(theta, gauss).index),
                "centre": float(found.centre),
                "level": float(found.level),
            }
        )
    return pd.DataFrame(rows)


def _with_matrix(name: str, m: Tensor) -> Counterexample:
    moments = matrix_moments(m)
    return Counterexample(name, len(m), float(moments.trace_sq), float(moments.frobenius_sq), m)


def plane_check(
    cells: Sequence[tuple[float, float]], *, dim: int, length: int, locations: int, generator: Generator
) -> pd.DataFrame:
    """The Gaussian form of the plane against the exact law of a random symmetric spectrum, one row a cell.

    cells: pairs (mean_scaled, spread_scaled). Columns those two, index, exact_index, largest_error (of ρ).
    """
    theta = token_grid(length, locations)
    rows = []
    for mean, spread in cells:
        m = random_spectrum_matrix(dim, mean / dim, spread**2 / dim, generator=generator)
        gauss, exact = (
            signal_propagation(theta, m, length=length),
            signal_propagation(theta, m, length=length, method="exact"),
        )
        rows.append(
            {
                "mean_scaled": mean,
                "spread_scaled": spread,
                "index": float(localization(theta, gauss).index),
                "exact_index": float(localization(theta, exact).index),
                "largest_error": float((gauss - exact).abs().max()),
            }
        )
    return pd.DataFrame(rows)


def variance_localizes(tables: Tables) -> Verdict:
    """Table plane: mean_scaled (tr M over temperature), dispersion (σ/|μ|), index; symmetric M, one row a cell."""
    plane = tables["plane"].query("mean_scaled != 0").dropna(subset=["index"])
    holds, weakest, least = [], -1.0, 1.0
    for _, column in plane.groupby("mean_scaled"):
        correlation = float(stats.spearmanr(column["dispersion"], column["index"]).statistic)
        concentrated = float(column["index"].to_numpy()[column["dispersion"].argmin()])
        holds.append(correlation <= -0.9 and concentrated >= LOCALIZED)
        weakest, least = max(weakest, correlation), min(least, concentrated)
    because = (
        f"holds at {sum(holds)} of {len(holds)} means; rank correlation of index with dispersion at most "
        f"{weakest:.2f}, index of the most concentrated spectrum at least {least:.2f}"
    )
    return share_verdict(holds, because)


def variance_decides(tables: Tables) -> Verdict:
    """Table counterexamples: name, relative_variance (variance over squared mean), index, one row a matrix."""
    table = tables["counterexamples"].sort_values("relative_variance")
    pairs = [
        (low, high)
        for (_, low), (_, high) in ((a, b) for a in table.iterrows() for b in table.iterrows())
        if low["relative_variance"] < high["relative_variance"] and high["index"] > low["index"] + 0.1
    ]
    if not pairs:
        return Verdict("reproduced", f"no counterexample among {len(table)} matrices")
    low, high = max(pairs, key=lambda pair: pair[1]["index"] - pair[0]["index"])
    because = (
        f"{len(pairs)} counterexamples; widest: {high['name']} (relative variance {fixed(high['relative_variance'])}) "
        f"has index {high['index']:.2f}, {low['name']} ({fixed(low['relative_variance'])}) has {low['index']:.2f}"
    )
    return Verdict("not reproduced", because)


def plot_plane(
    plane: pd.DataFrame,
    column: str,
    axis: Axes,
    *,
    colours: str,
    label: str,
    contour: float,
    limits: tuple[float, float] = (0, 1),
) -> None:
    """One measure over the plane of tr M and spread, with the line where the localization index is `contour`.

    plane: of `localization_plane.localization_plane`. Dashed lines: tr M = ±2λ, beyond which the focus is in the middle
    of a half. column: index, centre or level, on a colour scale from limits[0] to limits[1].
    """
    grid, index = (plane.pivot(index="spread_scaled", columns="mean_scaled", values=name) for name in (column, "index"))
    x, y = grid.columns.to_numpy(), grid.index.to_numpy()
    mesh = axis.pcolormesh(x, y, grid.to_numpy(), cmap=colours, vmin=limits[0], vmax=limits[1], shading="nearest")
    colorbar = axis.figure.colorbar(mesh, ax=axis, location="top", shrink=0.9)
    colorbar.set_label(label)
    axis.contour(x, y, index.to_numpy(), levels=[contour], colors="black", linewidths=1.4)
    for boundary in (-2, 2):
        axis.axvline(boundary, color="white", linestyle="--", linewidth=1.2)
    axis.set(yscale="log", xlabel="tr M / λ", ylabel="√(d σ²) / λ")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.label_outer()


def mark_regimes(axis: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Write the name of each regime at its place (tr M / λ, √(d σ²) / λ)."""
    for name, (mean, spread) in places.items():
        axis.text(mean, spread, name, ha="center", va="center", fontsize="small", bbox=BOX)


def plot_counterexamples(
    profiles: pd.DataFrame, table: pd.DataFrame, pairs: Sequence[Sequence[str]], axes: Sequence[Axes]
) -> None:
    """One panel a group of names: ρ_θ of each matrix, with its relative variance and its localization index."""
    rows = table.set_index("name")
    for axis, names in zip(axes, pairs, strict=True):
        for name in names:
            curve = profiles[profiles["name"] == name]
            row = rows.loc[name]
            label = f"{name}:\nσ²/μ² = {row['relative_variance']:.3g}, L = {row['index']:.2f}"
            axis.plot(curve["theta"], curve["rho"], linewidth=1.8, label=label)
        axis.set(xlabel="location θ = i/T", ylim=(-0.04, 1.55), xlim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1])
        axis.legend(loc="upper left")
        axis.label_outer()
    axes[0].set_ylabel("ρ, share not saturated")


CLAIMS = (
    Claim(
        name="variance-localizes",
        chapter="localization_plane",
        provenance="paper",
        statement="A small eigenspectrum variance leads attention to be localized.",
        rule=(
            "For symmetric spectra and each non-zero mean: the localization index falls with dispersion (rank "
            "correlation at most −0.9) and is at least 0.3 at the least dispersion."
        ),
        refuted_by="a mean at which concentration does not localize",
        tables=("plane",),
        judge=variance_localizes,
        quote="a small eigenspectrum variance leads attention to be localized",
        figure="fig-plane",
    ),
    Claim(
        name="eigenvalue-variance-decides",
        chapter="localization_plane",
        provenance="ours",
        statement="The quick reading: eigenvalue variance alone decides whether attention localizes.",
        rule=(
            "Not reproduced when some matrix of larger relative variance has a localization index larger by 0.1 "
            "or more than one of smaller relative variance."
        ),
        refuted_by="one such pair",
        tables=("counterexamples",),
        judge=variance_decides,
        figure="fig-caveats",
    ),
)

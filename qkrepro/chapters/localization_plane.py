"""Localization over the plane of mean and dispersion of a symmetric spectrum, and what the plane cannot place."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Generator, Tensor

from qkrepro.errors import check_integer, check_number
from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import COLOURS, DISPERSION_LABEL, MEAN_LABEL, PALETTE
from qkrepro.evidence.verdicts import LOCALIZED, share_verdict, universal_verdict
from qkrepro.theory.propagation import localization, signal_propagation, signal_propagation_limit
from qkrepro.theory.spectrum import matrix_moments, random_spectrum_matrix

BROAD = 0.1  # localization index below which a profile counts as broad
REACH = 10.0  # |tr M|(T − 1)/λ from which an index of 0.3 is within reach: tokens at 0.4 of either side are shut out
BOX = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 2.0}


class Counterexample(NamedTuple):
    """A matrix of trace 1, by its width and moments; `m` itself where the exact law is affordable."""

    name: str
    is_symmetric: bool
    dim: int
    trace_sq: float
    frobenius_sq: float
    m: Tensor | None


def token_grid(length: int, locations: int) -> Tensor:
    """Return locations i/T of at most `locations` evenly spaced tokens of T = `length`, float64, (n,)."""
    check_integer("length", length, at_least=2)
    check_integer("locations", locations, at_least=2)
    return torch.linspace(1, length, min(length, locations), dtype=torch.float64).round() / length


def localization_plane(
    means: Sequence[float], dispersions: Sequence[float], *, dim: int, length: int, locations: int
) -> pd.DataFrame:
    """Return index, centre and level for symmetric M of `dim` eigenvalues, one row a cell of means × dispersions.

    locations: tokens at which ρ is taken, evenly spaced.
    means: ξ/λ, ξ = tr M. dispersions: √(d σ²)/λ, σ² the variance of the eigenvalues, >= 0; √(d σ²) is the Frobenius
    norm of M minus its mean. Columns mean_scaled, dispersion, relative_spread (σ/|μ|, infinite at mean zero),
    effective_number (N = ξ²/η), index, centre, level. ρ by the Gaussian form with the moments of the length.
    Source: book, "The localization plane", "Theory: signal propagation".
    """
    check_integer("dim", dim, at_least=1)
    theta = token_grid(length, locations)
    grid = [torch.tensor(values, dtype=torch.float64) for values in (means, dispersions)]
    cells = torch.cartesian_prod(*grid)  # (cells, 2)
    mean, dispersion = cells[:, 0], cells[:, 1]
    eta = mean.square() / dim + dispersion.square()  # tr M² = d μ² + d σ²
    position = localization(theta, signal_propagation_limit(theta, mean, eta, length=length))
    return pd.DataFrame(
        {
            "mean_scaled": mean,
            "dispersion": dispersion,
            "relative_spread": dim**0.5 * dispersion / mean.abs(),
            "effective_number": mean.square() / eta,
            "index": position.index,
            "centre": position.centre,
            "level": position.level,
        }
    )


def falling_columns(
    sizes: Sequence[float],
    *,
    least_relative: float,
    most: float,
    steps: int,
    dim: int,
    length: int,
    locations: int,
) -> pd.DataFrame:
    """Return cells of the plane at fixed means of both signs, from hardly any dispersion on: how the index falls.

    dim, length, locations: as for `localization_plane`.
    sizes: |ξ|/λ > 0. The dispersion runs from `least_relative` |ξ| to `most` λ in geometric steps, so that the first
    cell is concentrated however small the mean is. Returns the columns of `localization_plane` and reach,
    |ξ|(T − 1)/λ: below 2 every token passes while the spectrum is concentrated.
    """
    tables = []
    for mean in (sign * size for size in sizes for sign in (1.0, -1.0)):
        check_number("sizes", abs(mean), above=0)
        dispersions = np.geomspace(least_relative * abs(mean), most, steps).tolist()
        cells = localization_plane([mean], dispersions, dim=dim, length=length, locations=locations)
        tables.append(cells.assign(reach=abs(mean) * (length - 1)))
    return pd.concat(tables, ignore_index=True)


def counterexamples(
    *, wide_dim: int, wide_ratio: float, narrow_dim: int, dim: int, non_normality: float, generator: Generator
) -> list[Counterexample]:
    """Return five matrices of trace 1; the last three have one dimension, the first two compare dimensions.

    wide: symmetric, σ²/μ² = `wide_ratio`, `wide_dim` eigenvalues. narrow: I/narrow_dim. At `dim`: I/dim; symmetric with
    σ²/μ² = `wide_ratio`; I/dim plus a strictly triangular part of norm `non_normality`, eigenvalues still equal.
    Source: book, "Theory: signal propagation" (ours).
    """
    check_number("wide_ratio", wide_ratio, at_least=0)
    eta = (1 + wide_ratio) / wide_dim
    narrow, normal = (torch.eye(d, dtype=torch.float64) / d for d in (narrow_dim, dim))
    spread = random_spectrum_matrix(dim, 1 / dim, wide_ratio / dim**2, generator=generator)
    triangular = random_spectrum_matrix(
        dim, 1 / dim, 0.0, symmetric=False, non_normality=non_normality, generator=generator
    )
    return [
        Counterexample(f"σ²/μ² = {wide_ratio:g}, d = {wide_dim}", True, wide_dim, eta, eta, None),
        _with_matrix(f"equal eigenvalues, d = {narrow_dim}", narrow, is_symmetric=True),
        _with_matrix(f"equal eigenvalues, d = {dim}", normal, is_symmetric=True),
        _with_matrix(f"σ²/μ² = {wide_ratio:g}, d = {dim}", spread, is_symmetric=True),
        _with_matrix(f"equal, not symmetric, d = {dim}", triangular, is_symmetric=False),
    ]


def counterexample_profiles(examples: Sequence[Counterexample], *, length: int, locations: int) -> pd.DataFrame:
    """Return ρ_θ of each at temperature 1; columns name, theta, rho, form ("exact"; "finite" without a matrix)."""
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
    """Return one row a matrix: name, dim, symmetric, relative_variance (σ²/μ², all eigenvalues), index, centre, level.

    effective_number is ξ²/‖M‖_F². gaussian_index is the index of the Gaussian limit. The relative variance comes from
    tr M², which rounding leaves within 1e-9 of 0.
    """
    rows = []
    for example in examples:
        rows_of = profiles[profiles["name"] == example.name]
        theta = rows_of["theta"].to_numpy()
        position = localization(theta, rows_of["rho"].to_numpy())
        gauss = signal_propagation_limit(theta, 1.0, example.trace_sq, example.frobenius_sq)
        rows.append(
            {
                "name": example.name,
                "dim": example.dim,
                "symmetric": example.is_symmetric,
                "relative_variance": max(round(example.dim * example.trace_sq - 1, 9), 0.0),
                "effective_number": 1 / example.frobenius_sq,
                "index": float(position.index),
                "gaussian_index": float(localization(theta, gauss).index),
                "centre": float(position.centre),
                "level": float(position.level),
            }
        )
    return pd.DataFrame(rows)


def _with_matrix(name: str, m: Tensor, *, is_symmetric: bool) -> Counterexample:
    moments = matrix_moments(m)
    return Counterexample(name, is_symmetric, len(m), float(moments.trace_sq), float(moments.frobenius_sq), m)


def plane_check(
    cells: Sequence[tuple[float, float]], *, dim: int, length: int, locations: int, generator: Generator
) -> pd.DataFrame:
    """Return the Gaussian form of the plane against the exact law of a random symmetric spectrum, one row a cell.

    dim, length, locations: as for `localization_plane`.
    cells: pairs (mean_scaled, dispersion). Columns those two, index, exact_index, largest_error (of ρ).
    """
    theta = token_grid(length, locations)
    rows = []
    for mean, dispersion in cells:
        m = random_spectrum_matrix(dim, mean / dim, dispersion**2 / dim, generator=generator)
        gauss, exact = (
            signal_propagation(theta, m, length=length),
            signal_propagation(theta, m, length=length, method="exact"),
        )
        rows.append(
            {
                "mean_scaled": mean,
                "dispersion": dispersion,
                "index": float(localization(theta, gauss).index),
                "exact_index": float(localization(theta, exact).index),
                "largest_error": float((gauss - exact).abs().max()),
            }
        )
    return pd.DataFrame(rows)


def variance_localizes(tables: Tables, localized: float = LOCALIZED) -> Verdict:
    """Judge the plane: mean_scaled (tr M/λ), dispersion (√(dσ²)/λ), reach (|tr M|(T − 1)/λ), index, one row a cell.

    localized: index from which a profile counts as localized at the least dispersion.
    """
    table = tables["columns"].dropna(subset=["index"])
    judged = table[table["reach"] >= REACH]
    ends = judged.groupby("mean_scaled")["index"].agg(["first", "last", _largest_rise])
    # a concentrated spectrum has to localize, a dispersed one must not, and what has fallen may only ripple
    fails = (ends["first"] < localized) | (ends["last"] >= BROAD) | (ends["_largest_rise"] >= BROAD)
    because = (
        f"from at least {ends['first'].min():.2f} to at most {ends['last'].max():.2f} at {int((~fails).sum())} of "
        f"{len(fails)} means; it never rises again by more than {ends['_largest_rise'].max():.3f}"
    )
    if ends.empty or judged.groupby("mean_scaled").size().min() < 3 or judged["mean_scaled"].nunique() < 2:
        return universal_verdict([], because)
    verdict = share_verdict([not fail for fail in fails], because)
    is_covered = (judged["mean_scaled"] > 0).any() and (judged["mean_scaled"] < 0).any()
    return verdict if is_covered or verdict.outcome != "reproduced" else verdict._replace(outcome="inconclusive")


def _largest_rise(index: pd.Series) -> float:
    """Return how far the index rises above the lowest value before."""
    return float((index - index.cummin()).max())


def variance_decides(tables: Tables, margin: float = 0.1) -> Verdict:
    """Judge table counterexamples: name, dim, symmetric, relative_variance (σ²/μ²), index, a row a matrix.

    Only matrices of one dimension are compared: what differs in dimension differs in more than its variance.
    margin: difference of two indices up to which they count as equal.
    """
    table = tables["counterexamples"]
    pairs = [(a, b) for a, b in combinations(table.to_dict("records"), 2) if a["dim"] == b["dim"]]
    ordered = [sorted(pair, key=lambda row: row["relative_variance"]) for pair in pairs]
    holds = [_agrees(low, high, margin) for low, high in ordered]
    remarks = [
        f"{low['name']} has index {low['index']:.2f}, {high['name']} has {high['index']:.2f}"
        for (low, high), good in zip(ordered, holds, strict=True)
        if not good
    ]
    because = f"of {len(holds)} pairs of one dimension {holds.count(False)} contradict it"
    because += f": {'; '.join(remarks)}" if remarks else ""
    verdict = universal_verdict([*holds], because)
    is_tested = {row["symmetric"] for pair in pairs for row in pair} == {True, False}
    return verdict if is_tested or verdict.outcome != "reproduced" else verdict._replace(outcome="inconclusive")


def _agrees(low: Mapping[Hashable, Any], high: Mapping[Hashable, Any], margin: float) -> bool:
    """Return whether equal relative variances go with equal indices, and a larger variance not with a larger index."""
    gap = float(high["index"] - low["index"])
    is_equal = high["relative_variance"] - low["relative_variance"] <= 1e-6
    return bool(abs(gap) <= margin if is_equal else gap <= margin)


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
    """Draw one measure over the plane of tr M and dispersion, with the line where the localization index is `contour`.

    colours: name of a colour map. label: what the colours show.
    plane: of `localization_plane.localization_plane`. Dashed lines: tr M = ±2λ, beyond which the focus is in the middle
    of a half. column: index, centre or level, on a colour scale from limits[0] to limits[1].
    """
    grid, index = (plane.pivot(index="dispersion", columns="mean_scaled", values=name) for name in (column, "index"))
    x, y = grid.columns.to_numpy(), grid.index.to_numpy()
    mesh = axis.pcolormesh(x, y, grid.to_numpy(), cmap=colours, vmin=limits[0], vmax=limits[1], shading="nearest")
    axis.figure.colorbar(mesh, ax=axis, label=label, aspect=16)
    axis.contour(x, y, index.to_numpy(), levels=[contour], colors="black", linewidths=1.4)
    for boundary in (-2, 2):
        axis.axvline(boundary, color="white", linestyle="--", linewidth=1.2)
    axis.set(yscale="log", xlabel=MEAN_LABEL, ylabel=DISPERSION_LABEL)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_yticks(ticks := [t for t in (0.03, 0.1, 0.3, 1, 3, 10) if y[0] <= t <= y[-1]], [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.grid(False)


def mark_regimes(axis: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Write the name of each regime at its place (tr M / λ, √(d σ²) / λ)."""
    for name, (mean, dispersion) in places.items():
        axis.text(mean, dispersion, name, ha="center", va="center", fontsize="small", color="black", bbox=BOX)


def plot_counterexamples(
    profiles: pd.DataFrame, table: pd.DataFrame, panels: Mapping[str, Sequence[str]], axes: Sequence[Axes]
) -> None:
    """Draw one panel a title: ρ_θ of each matrix named there, with its localization index L in the legend.

    profiles, table: of `counterexample_profiles` and `counterexample_table`. panels: title -> matrices.
    """
    index = table.set_index("name")["index"]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            kind = "dispersed" if name.startswith("σ²/μ²") else "concentrated"
            colour, line = (PALETTE[3], "-.") if "not symmetric" in name else (COLOURS[kind], "-")
            curve, label = profiles[profiles["name"] == name], f"{name}: L = {index[name]:.2f}"
            axis.plot(curve["theta"], curve["rho"], line, color=colour, linewidth=2.2, label=label)
        axis.set(title=title, xlabel="location θ = i/T", ylabel="ρ, probability", ylim=(-0.04, 1.04), xlim=(0, 1.02))
        axis.legend(loc="upper left")
        axis.label_outer()


CLAIMS = (
    Claim(
        name="variance-localizes",
        chapter="localization_plane",
        provenance="paper",
        statement="A small eigenspectrum variance leads attention to be localized.",
        conditions=(
            "for symmetric spectra of either sign whose mean is not too small for the length, |tr M|(T − 1) ≥ 10λ, on "
            "random walks and for the linearised softmax"
        ),
        rule=(
            "At each mean the localization index is at least 0.3 where the dispersion √(dσ²)/λ is a hundredth of the "
            "mean, less than 0.1 at the greatest dispersion, and in between never rises by 0.1 or more. Partly when "
            "this holds at some means only, inconclusive with one sign only."
        ),
        refuted_by="no mean at which it holds",
        tables=("columns",),
        judge=variance_localizes,
        quote="a small eigenspectrum variance leads attention to be localized",
        figure="fig-plane",
        threshold=Threshold(
            "localization index at the least dispersion", LOCALIZED, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), variance_localizes
        ),
    ),
    Claim(
        name="eigenvalue-variance-decides",
        chapter="localization_plane",
        provenance="ours",
        statement=(
            "The quick reading: at equal dimension and trace the eigenvalue variance alone decides whether attention "
            "localizes, symmetric or not."
        ),
        rule=(
            "Of two matrices of one dimension and trace, equal relative variances give indices that differ by at most "
            "0.1, and the larger variance has no index that is larger by more. Inconclusive while no matrix that is "
            "not symmetric is among them."
        ),
        refuted_by="one pair that does not agree",
        tables=("counterexamples",),
        judge=variance_decides,
        figure="fig-caveats",
        threshold=Threshold(
            "difference of two localization indices", 0.1, (0.05, 0.1, 0.2, 0.3, 0.4, 0.5), variance_decides
        ),
    ),
)
READS = ()

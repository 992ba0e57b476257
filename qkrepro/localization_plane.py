"""Localization over the plane of mean and spread of a symmetric spectrum, and matrices that the plane cannot place."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Generator, Tensor

from qkrepro.errors import check_integer, check_number
from qkrepro.propagation import localization, signal_propagation, signal_propagation_limit
from qkrepro.spectrum import matrix_moments, random_spectrum_matrix


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
    M minus its mean. Columns mean_scaled, spread_scaled, dispersion (σ/|μ|, infinite at mean zero), effective_number
    (N = ξ²/η), index, centre, level. ρ by the Gaussian form with the moments of the length.
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

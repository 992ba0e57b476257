"""The matrices on which the book shows signal propagation, and their profiles by every method as one table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Generator, Tensor

from qkrepro.errors import check_integer
from qkrepro.propagation import localization, signal_propagation
from qkrepro.spectrum import matrix_moments, random_rotation, random_spectrum_matrix


@dataclass(frozen=True)
class PropagationCase:
    """A query-key matrix for increments of unit covariance, with the temperature and the length to see it at."""

    name: str
    m: Tensor  # (d, d)
    temperature: float
    length: int


def regime_cases(
    dim: int, length: int, *, middle_mean: float, broad_norm: float, generator: Generator
) -> list[PropagationCase]:
    """One case a row of the regime table, at temperature 1, and the late one at temperature √dim.

    late: tr M = 1; middle: tr M = `middle_mean` > 2; mirror: tr M = −1; all three with all eigenvalues equal. broad:
    tr M = 0 and ‖M‖_F = `broad_norm`, a random symmetric spectrum. all pass: |tr M| (length − 1)/2 = 0.6.
    Source: book, "Theory: signal propagation", when attention localizes.
    """
    unit = torch.eye(dim, dtype=torch.float64) / dim
    broad = random_spectrum_matrix(dim, 0.0, broad_norm**2 / dim, generator=generator)
    return [
        PropagationCase("late", unit, 1.0, length),
        PropagationCase("middle", middle_mean * unit, 1.0, length),
        PropagationCase("mirror", -unit, 1.0, length),
        PropagationCase("broad", broad, 1.0, length),
        PropagationCase("all pass", 1.2 / (length - 1) * unit, 1.0, length),
        PropagationCase("high temperature", unit, math.sqrt(dim), length),
    ]


def stress_cases(
    dim: int, length: int, *, short_length: int, top_share: float, generator: Generator
) -> list[PropagationCase]:
    """Cases where the Gaussian form or its limit must fail, and two that are far from symmetric.

    one eigenvalue: tr M = 1, of which one eigenvalue holds `top_share`, at temperature 0.3. near-nilpotent: all
    eigenvalues 1/dim, and one singular value near 1. rank two: symmetric, tr M = 1, eigenvalues 1.25 and −0.25.
    short sequence: the late case at `short_length` tokens. not symmetric: I/dim plus half a rotation of norm 1.
    antisymmetric: a rotation minus its transpose, ‖M‖_F about √2.
    """
    unit = torch.eye(dim, dtype=torch.float64) / dim
    peak = torch.zeros_like(unit)
    peak[0, 0] = 1.0
    corner = torch.zeros_like(unit)
    corner[0, -1] = 1.0
    pair = torch.diag(torch.tensor([1.25, -0.25, *[0.0] * (dim - 2)], dtype=torch.float64))
    turn = random_rotation(dim, generator=generator) / math.sqrt(dim)  # ‖turn‖_F = 1
    return [
        PropagationCase("one eigenvalue", top_share * peak + (1 - top_share) * unit, 0.3, length),
        PropagationCase("near-nilpotent", unit + corner, 1.0, length),
        PropagationCase("rank two", pair, 1.0, length),
        PropagationCase("short sequence", unit, 1.0, short_length),
        PropagationCase("not symmetric", unit + turn / 2, 1.0, length),
        PropagationCase("antisymmetric", turn - turn.mT, 1.0, length),
    ]


def profile_table(
    cases: Sequence[PropagationCase], *, locations: int, samples: int, generator: Generator
) -> pd.DataFrame:
    """ρ_θ by all four ways, one row a case and location: limit, finite, exact, drawn with its 95% interval low, high.

    Columns case, theta, limit (T → ∞), finite (Gaussian with the moments of the length), exact, drawn, low, high,
    singular_share (‖M‖_2 / ‖M‖_F). At most `locations` tokens, evenly spaced. Every location has `samples` draws of
    its own, so that the intervals of a profile miss independently of each other.
    """
    check_integer("locations", locations, at_least=2)
    return pd.concat([_profile(case, locations, samples, generator) for case in cases], ignore_index=True)


def localization_table(profiles: pd.DataFrame, column: str = "exact") -> pd.DataFrame:
    """Index, centre and level of each case of `profile_table`, from one of its columns of ρ; one row a case."""
    rows = []
    for name, group in profiles.groupby("case", sort=False):
        found = localization(group["theta"].to_numpy(), group[column].to_numpy())
        values = {"index": found.index, "centre": found.centre, "level": found.level}
        rows.append({"case": name, **{key: float(value) for key, value in values.items()}})
    return pd.DataFrame(rows)


def error_table(profiles: pd.DataFrame) -> pd.DataFrame:
    """Per case: the largest errors of limit and finite form against the exact law, and the share inside [low, high]."""
    rows = []
    for name, group in profiles.groupby("case", sort=False):
        inside = (group["low"] <= group["exact"]) & (group["exact"] <= group["high"])
        rows.append(
            {
                "case": name,
                "singular_share": group["singular_share"].iloc[0],
                "limit_error": (group["limit"] - group["exact"]).abs().max(),
                "finite_error": (group["finite"] - group["exact"]).abs().max(),
                "inside_interval": inside.mean(),
            }
        )
    return pd.DataFrame(rows)


def _profile(case: PropagationCase, locations: int, samples: int, generator: Generator) -> pd.DataFrame:
    count = min(locations, case.length)
    token = torch.linspace(1, case.length, count, dtype=torch.float64).round()
    theta, moments = token / case.length, matrix_moments(case.m)
    drawn = [
        signal_propagation(
            place,
            case.m,
            temperature=case.temperature,
            length=case.length,
            method="monte-carlo",
            samples=samples,
            generator=generator,
        )
        for place in theta
    ]
    return pd.DataFrame(
        {
            "case": case.name,
            "theta": theta,
            "limit": signal_propagation(theta, case.m, temperature=case.temperature),
            "finite": signal_propagation(theta, case.m, temperature=case.temperature, length=case.length),
            "exact": exact_profile(case, theta).round(decimals=12),  # what is beyond its accuracy differs by machine
            "drawn": [float(estimate.rho) for estimate in drawn],
            "low": [float(estimate.low) for estimate in drawn],
            "high": [float(estimate.high) for estimate in drawn],
            "singular_share": float(moments.spectral_norm / moments.frobenius_sq.sqrt()),
        }
    )


def exact_profile(case: PropagationCase, theta: Tensor) -> Tensor:
    """The exact ρ of a case at the locations theta, float64, shaped like theta."""
    return signal_propagation(theta, case.m, temperature=case.temperature, length=case.length, method="exact")

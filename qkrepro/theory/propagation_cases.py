"""Query-key matrices whose signal propagation is known or must fail, and the share of keys that pass along a walk.

Increments have unit covariance. Source: book, "Theory: signal propagation".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Generator, Tensor

from qkrepro.errors import ArgumentError, check_integer
from qkrepro.theory.attention import saturation
from qkrepro.theory.propagation import signal_propagation
from qkrepro.theory.spectrum import random_rotation, random_spectrum_matrix
from qkrepro.theory.statistics import t_interval
from qkrepro.theory.tokens import random_walk

CHUNK = 50  # walks drawn at once, few enough for a processor to keep near


@dataclass(frozen=True)
class PropagationCase:
    """A query-key matrix for increments of unit covariance, with the temperature and the length to see it at."""

    name: str
    m: Tensor  # (d, d)
    temperature: float
    length: int

    def rho(self, theta: Tensor, *, length: int | None = None, method: Literal["limit", "exact"] = "limit") -> Tensor:
        """Return ρ at the locations theta, by `signal_propagation`; float64, shaped like theta."""
        return signal_propagation(theta, self.m, temperature=self.temperature, length=length, method=method)


def regime_cases(
    dim: int, length: int, *, middle_mean: float, broad_norm: float, generator: Generator
) -> list[PropagationCase]:
    """Return one case per row of the regime table, at temperature 1, and the late one at temperature √dim.

    late: tr M = 1; middle: tr M = `middle_mean` > 2; the mirror of each has the other sign; all four have equal
    eigenvalues. broad: tr M = 0 and ‖M‖_F = `broad_norm`, a random symmetric spectrum. all pass: |tr M| (length − 1)/2
    is 0.6.
    Source: book, "Theory: signal propagation", when attention localizes.
    """
    unit = torch.eye(dim, dtype=torch.float64) / dim
    broad = random_spectrum_matrix(dim, 0.0, broad_norm**2 / dim, generator=generator)
    return [
        PropagationCase("late", unit, 1.0, length),
        PropagationCase("middle", middle_mean * unit, 1.0, length),
        PropagationCase("mirror", -unit, 1.0, length),
        PropagationCase("mirror of middle", -middle_mean * unit, 1.0, length),
        PropagationCase("broad", broad, 1.0, length),
        PropagationCase("all pass", 1.2 / (length - 1) * unit, 1.0, length),
        PropagationCase("high temperature", unit, math.sqrt(dim), length),
    ]


def stress_cases(
    dim: int, length: int, *, short_length: int, top_share: float, generator: Generator
) -> list[PropagationCase]:
    """Return cases where the Gaussian form or its limit must fail, and two that are far from symmetric.

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


def antisymmetric_walks(
    norms: Sequence[float], *, dim: int, length: int, draws: int, parts: int, generator: Generator
) -> pd.DataFrame:
    """Return the share of keys that pass in each part of random walks, for antisymmetric matrices and a symmetric one.

    norms: ‖M‖_F of the antisymmetric matrices, in units of the temperature; the control is I/dim, tr M = 1. draws:
    walks per matrix, through the clipped function itself. parts: equal parts of the sequence; they divide `length`.
    Returns one row per matrix and part: case, control (0 or 1), part (1 … parts), level (share of the whole sequence),
    estimate, low, high: the share in this part less the level, with t intervals that hold for all rows at once
    (95% after Bonferroni). Raises ArgumentError for sizes below 1 or parts that do not divide the length.
    Source: book, "Theory: signal propagation", antisymmetric heads (ours).
    """
    check_integer("draws", draws, at_least=2)
    check_integer("parts", parts, at_least=2)
    if length % parts:
        raise ArgumentError(f"parts must be a divisor of the length {length}, got {parts}")
    turn = random_rotation(dim, generator=generator)
    turn = (turn - turn.mT) / (turn - turn.mT).norm()
    matrices = {f"antisymmetric, norm {norm:g} λ": norm * turn for norm in norms}
    matrices["symmetric control"] = torch.eye(dim, dtype=torch.float64) / dim
    confidence = 1 - 0.05 / (len(matrices) * parts)
    rows = []
    for name, m in matrices.items():
        sizes = [min(CHUNK, draws - first) for first in range(0, draws, CHUNK)]
        shares = torch.cat([_part_shares(m, length, size, parts, generator) for size in sizes])  # (draws, parts)
        level = float(shares.mean())
        for part, column in enumerate((shares - shares.mean(-1, keepdim=True)).mT.numpy(), start=1):
            row = {"case": name, "control": int(name == "symmetric control"), "part": part, "level": level}
            rows.append(row | t_interval(column, confidence)._asdict())
    return pd.DataFrame(rows)


def _part_shares(m: Tensor, length: int, draws: int, parts: int, generator: Generator) -> Tensor:
    """Return the share of keys that pass in each part of each of `draws` walks, (draws, parts); the last one asks."""
    walks = random_walk(length, len(m), batch=draws, generator=generator)  # (draws, T, d)
    logits = (walks @ (m.mT @ walks[:, -1, :, None])).squeeze(-1)  # (draws, T), x_Tᵀ M x_i
    return (saturation(logits) == 0).double().view(draws, parts, -1).mean(-1)

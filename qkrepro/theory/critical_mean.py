"""How large the mean of a spectrum without variance must be: tokens at equal angles, in closed form at every length.

T unit tokens of pairwise cosine ϱ (a simplex) and W = (ξ/d) I stay a simplex in every layer of full attention, so a
layer is a map of ϱ. scaled_mean is ξ/λ, similarity is ϱ in [0, 1); everything is float64.
Source: book, "Theory: how large the mean must be"; Chen, Lin, Polyanskiy and Rigollet 2025 (arXiv 2510.05554).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from qkrepro.errors import check_finite, check_integer, check_number

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64


def own_weight(
    length: int, similarity: float, scaled_mean: Float[Tensor, "*shape"] | float
) -> Float64[Tensor, "*shape"]:
    """Return the weight of each token on itself, a = E/(E + T − 1) with E = e^{(1 − ϱ)ξ/λ}.

    scaled_mean: finite, any shape. Returns float64 of that shape. Raises ArgumentError for T < 2 or ϱ outside [0, 1).
    """
    return torch.sigmoid(_gap(length, similarity, scaled_mean) - math.log(length - 1))


def own_advantage(
    length: int, similarity: float, scaled_mean: Float[Tensor, "*shape"] | float
) -> Float64[Tensor, "*shape"]:
    """Return by how much a token's weight on itself exceeds its weight on another one, g = (E − 1)/(E + T − 1).

    Arguments, shape and errors as `own_weight`. Negative for a negative mean.
    """
    gap, others = _gap(length, similarity, scaled_mean), float(length - 1)
    shrunk = (-gap.abs()).exp()  # of 1 and E the smaller over the larger
    positive = -torch.expm1(-gap.abs()) / (1 + others * shrunk)
    negative = torch.expm1(-gap.abs()) / (shrunk + others)
    return torch.where(gap >= 0, positive, negative)


def simplex_layers(
    length: int, similarity: float, scaled_mean: float, layers: int, *, residual: bool = False
) -> Float64[Tensor, " depths"]:
    """Return the pairwise cosine of the tokens after 0 … L layers of full attention and normalisation, at every length.

    With z = 1/T + ϱ/(1 − ϱ) and the own advantage g, a layer maps z to z/g², and to 2z/(1 + g²) with a residual
    connection. A mean of zero makes all tokens equal at once.

    Parameters
    ----------
    length, similarity, scaled_mean
        T >= 2, ϱ of the input in [0, 1), and ξ/λ, finite.
    layers
        L >= 1.
    residual
        Add each layer's input to its output, through an independent value matrix of many dimensions.

    Returns
    -------
    Tensor
        Cosines, float64, (layers + 1,), the input first.

    Raises
    ------
    ArgumentError
        A value out of range.

    Source: book, layers of a simplex (ours).
    """
    _check(length, similarity)
    check_number("scaled_mean", scaled_mean)
    check_integer("layers", layers, at_least=1)
    log_z = math.log(1 / length + similarity / (1 - similarity))
    cosines = [similarity]
    for _ in range(layers):
        if cosines[-1] >= 1:
            cosines.append(1.0)
            continue
        advantage = abs(float(own_advantage(length, cosines[-1], scaled_mean)))
        if residual:
            log_z += math.log(2 / (1 + advantage**2))
        else:
            log_z += -2 * math.log(advantage) if advantage > 0 else math.inf
        odds = max(0.0, math.exp(min(log_z, 700)) - 1 / length)  # at right angles rounding may fall below zero
        cosines.append(odds / (1 + odds) if log_z < 700 else 1.0)
    return torch.tensor(cosines, dtype=torch.float64)


def critical_mean(length: int, similarity: float) -> float:
    """Return the scaled mean at which a token gives exactly half of its weight to itself, log(T − 1)/(1 − ϱ).

    Raises ArgumentError for T < 3 or a similarity outside [0, 1).
    """
    check_integer("length", length, at_least=3)
    _check(length, similarity)
    return math.log(length - 1) / (1 - similarity)


def cosine_limit(growth: Float[Tensor, "*shape"] | float, similarity: float) -> Float64[Tensor, "*shape"]:
    """Return the cosine after one layer as T → ∞ with ξ/λ = growth · log T.

    It is 1, 4ϱ/(1 + 3ϱ) or ϱ for a growth below, at or above 1/(1 − ϱ).

    growth: finite, any shape. similarity: in (0, 1). Returns float64. Raises ArgumentError for another similarity; for
    independent tokens (ϱ = 0) the limit depends on the depth.
    """
    check_number("similarity", similarity, above=0)
    _check(2, similarity)
    values = torch.as_tensor(growth, dtype=torch.float64)
    check_finite("growth", values)
    side = torch.sign(torch.round(values * (1 - similarity) - 1, decimals=12))
    below, at = torch.ones_like(values), torch.full_like(values, 4 * similarity / (1 + 3 * similarity))
    return torch.where(side < 0, below, torch.where(side > 0, torch.full_like(values, similarity), at))


def simplex_curves(lengths: Sequence[int], growths: Sequence[float], *, similarity: float) -> pd.DataFrame:
    """Return the cosine after one layer of full attention on tokens at equal angles; one row a length and growth.

    growths: ξ/λ over the critical mean log T/(1 − ϱ). Columns length (0 for the limit), growth, cosine.
    """
    rows: list[tuple[int, float, float]] = []
    for growth in growths:
        for length in lengths:
            mean = growth * math.log(length) / (1 - similarity)
            rows.append((length, growth, float(simplex_layers(length, similarity, mean, 1)[-1])))
        rows.append((0, growth, float(cosine_limit(growth / (1 - similarity), similarity))))
    return pd.DataFrame(rows, columns=["length", "growth", "cosine"])


def right_angle_curves(depths: Sequence[int], growths: Sequence[float], *, length: int) -> pd.DataFrame:
    """Return the cosine of independent tokens after some layers of full attention; growths are ξ/λ over log T.

    Columns layers, growth, cosine and threshold, 1 − 1/(2L); one row a depth and growth.
    """
    rows = []
    for growth in growths:
        cosines = simplex_layers(length, 0.0, growth * math.log(length), max(depths))
        rows += [(depth, growth, float(cosines[depth]), 1 - 1 / (2 * depth)) for depth in depths]
    return pd.DataFrame(rows, columns=["layers", "growth", "cosine", "threshold"])


def _check(length: int, similarity: float) -> None:
    check_integer("length", length, at_least=2)
    check_number("similarity", similarity, at_least=0, below=1)


def _gap(length: int, similarity: float, scaled_mean: Tensor | float) -> Tensor:
    """Return (1 − ϱ)ξ/λ, by how much the own logit exceeds another one."""
    _check(length, similarity)
    values = torch.as_tensor(scaled_mean, dtype=torch.float64)
    check_finite("scaled_mean", values)
    return (1 - similarity) * values

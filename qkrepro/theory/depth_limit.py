"""Cosines of the tokens over depth in infinitely many dimensions: attention, LayerNorm and residual as one recursion.

With W = (ξ/d) I and random value matrices the T × T matrix C of cosines follows C ← normalise(A C Aᵀ), A the causal
softmax of (ξ/λ) C; with a residual connection C ← normalise(C + A C Aᵀ). Float64; no width appears.
Source: book, "Theory: how large the mean must be" (ours).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_finite, check_integer, check_number
from qkrepro.theory.attention import causal_mask, softmax_attention

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64


class DepthLimit(NamedTuple):
    """Cosines of the tokens and attention, layer by layer."""

    cosines: Tensor  # (layers + 1, T, T), the input first
    attention: Tensor  # (layers, T, T)


def walk_cosines(length: int) -> Float64[Tensor, "T T"]:
    """Return the cosines of a random walk of many dimensions, √(min(s, t)/max(s, t)); (T, T). Raises for T < 2."""
    check_integer("length", length, at_least=2)
    position = torch.arange(1, length + 1, dtype=torch.float64)
    ratio: Tensor = torch.minimum(position, position[:, None]) / torch.maximum(position, position[:, None])
    return ratio.sqrt()


def ar1_cosines(length: int, coefficient: float) -> Float64[Tensor, "T T"]:
    """Return the cosines φ^|s − t| of a stationary autoregression of many dimensions; float64, (T, T).

    coefficient: φ in [0, 1); 0 gives independent tokens, the identity. Raises ArgumentError for another φ or T < 2.
    """
    check_integer("length", length, at_least=2)
    check_number("coefficient", coefficient, at_least=0, below=1)
    position = torch.arange(length, dtype=torch.float64)
    distance = (position - position[:, None]).abs()
    return torch.tensor(coefficient, dtype=torch.float64) ** distance


def depth_limit(
    cosines: Float[Tensor, "T T"],
    scaled_mean: float,
    layers: int,
    *,
    dispersion: float = 0.0,
    residual: bool = False,
    generator: Generator | None = None,
) -> DepthLimit:
    """Follow the cosines of the tokens through L layers of causal attention and LayerNorm as d → ∞.

    Parameters
    ----------
    cosines
        Of the input, (T, T): symmetric with a unit diagonal, not negative.
    scaled_mean
        ξ/λ, the same in every layer.
    layers
        L >= 1.
    dispersion
        √(dσ²)/λ >= 0. When positive, the logits gain a Gaussian matrix, drawn anew in every layer with `generator`.
    residual
        Add each layer's input to its output.
    generator
        Source of the draws; a positive dispersion needs it.

    Returns
    -------
    DepthLimit
        Float64 cosines (layers + 1, T, T) and attention (layers, T, T).

    Raises
    ------
    ShapeError
        A matrix that is not square.
    ArgumentError
        A matrix that holds no cosines, a dispersion without a generator, a value out of range.

    Source: book, limit of many dimensions (ours).
    """
    current = _checked_cosines(cosines)
    check_number("scaled_mean", scaled_mean)
    check_integer("layers", layers, at_least=1)
    check_number("dispersion", dispersion, at_least=0)
    if dispersion > 0 and generator is None:
        raise ArgumentError("generator must be given with a positive dispersion, which draws logits, got None")
    mask = causal_mask(len(current))
    all_cosines, all_attention = [current], []
    for _ in range(layers):
        logits = scaled_mean * current
        if dispersion > 0:
            logits = logits + dispersion * dispersed_logits(current, generator)
        attention = softmax_attention(logits, mask=mask)  # (T, T)
        mixed = attention @ current @ attention.mT
        gram = current + mixed if residual else mixed
        scale = gram.diagonal().rsqrt()
        current = (gram * scale * scale[:, None]).clamp(max=1.0)
        all_cosines.append(current)
        all_attention.append(attention)
    return DepthLimit(torch.stack(all_cosines), torch.stack(all_attention))


def dispersed_logits(cosines: Float[Tensor, "T T"], generator: Generator | None) -> Float64[Tensor, "T T"]:
    """Draw the logits of a symmetric W of trace zero and unit dispersion as d → ∞: symmetric Gaussian, (T, T).

    Their covariance is E[G_ti G_sj] = C_ts C_ij + C_tj C_is. cosines: (T, T). Returns float64.
    Source: book, limit of many dimensions (ours).
    """
    values, vectors = torch.linalg.eigh(cosines.double())
    root = vectors * values.clamp(min=0).sqrt()  # C = root rootᵀ
    noise = torch.randn(len(cosines), len(cosines), generator=generator, dtype=torch.float64)
    logits: Tensor = root @ ((noise + noise.mT) / math.sqrt(2)) @ root.mT
    return logits


def cosine_residual(cosines: Float[Tensor, "*batch T T"]) -> Float64[Tensor, "*batch"]:
    """Return the residual to rank one of tokens of equal norm with these cosines, √(1 − mean cosine); (...)."""
    return (1 - cosines.double().mean((-2, -1))).clamp(min=0).sqrt()


def smallest_mean(
    cosines: Float[Tensor, "T T"], layers: int, *, kept: float = 0.5, residual: bool = False, largest: float = 1024.0
) -> float:
    """Find the smallest positive scaled mean that keeps this share of the input's residual, by bisection.

    Assumes that the residual grows with the mean, as it does for the tokens of this book.

    Parameters
    ----------
    cosines, layers, residual
        As for `depth_limit`.
    kept
        Share of the residual to be left after these layers, between 0 and 1.
    largest
        Largest mean to try.

    Returns
    -------
    float
        ξ/λ: 0 when uniform attention keeps the share, infinity when `largest` does not.

    Raises as `depth_limit` does.
    """
    target = kept * float(cosine_residual(_checked_cosines(cosines)))

    def enough(mean: float) -> bool:
        end = depth_limit(cosines, mean, layers, residual=residual).cosines[-1]
        return float(cosine_residual(end)) >= target

    if enough(0.0):
        return 0.0
    if not enough(largest):
        return math.inf
    low, high = 0.0, largest
    while high - low > 1e-3 * max(1.0, low):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _checked_cosines(cosines: Tensor) -> Tensor:
    if cosines.ndim != 2 or cosines.shape[0] != cosines.shape[1] or len(cosines) < 2:
        raise ShapeError(f"cosines must have shape (T, T) with T >= 2, got {tuple(cosines.shape)}")
    check_finite("cosines", cosines)
    values = cosines.double()
    if not torch.allclose(values.diagonal(), torch.ones(len(values), dtype=torch.float64), atol=1e-9):
        raise ArgumentError("cosines must have a unit diagonal")
    if float(values.min()) < 0 or not torch.allclose(values, values.mT, atol=1e-9):
        raise ArgumentError("cosines must be symmetric and not negative")
    return values

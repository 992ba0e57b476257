"""How alike the tokens of a sequence are: residual to equal tokens, mean cosine similarity, stable rank.

Tokens are (..., T, d), one row per token, of any floating dtype; measures are float64 with the leading shape.
Source: book, "Rank collapse"; Dong, Cordonnier, Loukas 2021 (arXiv 2103.03404); Noci et al. 2022 (arXiv 2206.03126).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_choice, check_finite

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64

ResidualNorm = Literal["frobenius", "l1-linf"]
Array = npt.NDArray[np.float64]


def rank_residual(x: Float[Tensor, "*batch T d"], norm: ResidualNorm = "frobenius") -> Float64[Tensor, "*batch"]:
    """Return the relative distance of the tokens from being all equal, ‖x − 1x̄ᵀ‖ / ‖x‖ with x̄ the mean token.

    "frobenius": the mean token is the exact minimiser over all tokens; the value lies between 0 (equal tokens) and 1.
    "l1-linf": √(‖·‖₁ ‖·‖_∞), largest absolute column sum times largest absolute row sum (no norm: it violates the
    triangle inequality). The mean token is not its minimiser: the value is at least the minimum of Dong et al. and at
    most twice it, and can exceed 1.
    x: (..., T, d). Returns float64, (...).
    Raises ShapeError for fewer than two dimensions, ArgumentError for non-finite values, all-zero tokens, another norm.
    Source: arXiv 2103.03404; the factor of two is derived in the book, "Rank collapse".
    """
    check_choice("norm", norm, ("frobenius", "l1-linf"))
    tokens = checked_tokens(x)
    measure = l1_linf_norm if norm == "l1-linf" else torch.linalg.matrix_norm
    size = measure(tokens)
    if bool((size == 0).any()):
        raise ArgumentError("x must hold at least one non-zero token in every sequence, got zeros alone")
    residual: Tensor = measure(tokens - tokens.mean(-2, keepdim=True)) / size
    return residual


def l1_linf_norm(x: Float[Tensor, "*batch T d"]) -> Float64[Tensor, "*batch"]:
    """Return √(largest absolute column sum × largest absolute row sum) of matrices (..., T, d); float64, (...)."""
    size = checked_tokens(x).abs()
    value: Tensor = (size.sum(-2).amax(-1) * size.sum(-1).amax(-1)).sqrt()
    return value


def mean_cosine_similarity(x: Float[Tensor, "*batch T d"]) -> Float64[Tensor, "*batch"]:
    """Return the mean cosine of two different tokens: 1 when all point the same way, about 0 for independent ones.

    x: (..., T, d) with T >= 2. Returns float64, (...), between −1/(T − 1) and 1.
    Raises ShapeError for T < 2, ArgumentError for non-finite values or a token that is zero (it has no direction).
    Source: Noci et al. 2022 (arXiv 2206.03126).
    """
    tokens = checked_tokens(x)
    length = tokens.shape[-2]
    if length < 2:
        raise ShapeError(f"x must have shape (..., T, d) with T >= 2 tokens, got {tuple(x.shape)}")
    norms = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)  # (..., T, 1)
    if bool((norms == 0).any()):
        raise ArgumentError(f"x must hold no zero tokens, which have no direction, got {int((norms == 0).sum())}")
    total = (tokens / norms).sum(-2).square().sum(-1)  # ‖Σ x̂_t‖² = T + the sum over pairs
    mean: Tensor = (total - length) / (length * (length - 1))
    return mean


def stable_rank(x: Float[Tensor, "*batch T d"]) -> Float64[Tensor, "*batch"]:
    """Return ‖x‖_F² / ‖x‖₂², between 1 (rank one) and min(T, d).

    x: (..., T, d). Returns float64, (...). Raises as `rank_residual` does.
    """
    tokens = checked_tokens(x)
    gram = tokens @ tokens.mT if tokens.shape[-2] <= tokens.shape[-1] else tokens.mT @ tokens  # the smaller one
    largest = torch.linalg.eigvalsh(gram)[..., -1]
    if bool((largest <= 0).any()):
        raise ArgumentError("x must hold at least one non-zero token in every sequence, got zeros alone")
    rank: Tensor = tokens.square().sum((-2, -1)) / largest
    return rank


def checked_tokens(x: Float[Tensor, "*batch T d"]) -> Float64[Tensor, "*batch T d"]:
    """Return the tokens (..., T, d) in float64; ShapeError or ArgumentError unless they are tokens, all finite."""
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ShapeError(f"x must have shape (..., T, d), neither T nor d 0, got {tuple(x.shape)}")
    check_finite("x", x)
    return x.double()

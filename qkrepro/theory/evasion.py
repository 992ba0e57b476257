"""How LocAteR's penalty on W can be evaded through the tokens.

Tokens Bx with the matrix B⁻ᵀ W B⁻¹ have the logits of x with W. Matrices are (d, d), everything is float64; Ω(W) is
‖W‖_F² + (tr W − τ)². Source: book, "Theory: LocAteR", what the regulariser does not see (ours).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_number
from qkrepro.theory.spectrum import check_square

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64


def change_coordinates(w: Float[Tensor, "d d"], b: Float[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """Return B⁻ᵀ W B⁻¹, which scores tokens Bx as W scores x. w, b: (d, d), b invertible. Raises for other shapes."""
    matrix, tokens = _checked("w", w), _checked("b", b)
    if matrix.shape != tokens.shape:
        raise ShapeError(f"w and b must have equal shapes, got {tuple(w.shape)} and {tuple(b.shape)}")
    inverse = torch.linalg.inv(tokens)
    moved: Tensor = inverse.mT @ matrix @ inverse
    return moved


def evading_map(w: Float[Tensor, "d d"], tau: float = 1.0, *, small: float = 1e-4) -> Float64[Tensor, "d d"]:
    """Return a B with Ω(B⁻ᵀ W B⁻¹) at its infimum for symmetric W, up to terms of order small⁴.

    Each of the p positive eigenvalues becomes τ/(p + 1); the others are multiplied by small², those up to 1e-10 of the
    largest counting as zero. With no negative eigenvalue the infimum is attained.

    w: (d, d), symmetric with a positive eigenvalue. Returns float64, (d, d).
    Raises ArgumentError for a matrix that is not symmetric or has no positive eigenvalue, or for tau or small <= 0.
    """
    matrix = _checked("w", w)
    check_number("tau", tau, above=0)
    check_number("small", small, above=0)
    difference, largest = float((matrix - matrix.mT).abs().max()), float(matrix.abs().max())
    if difference > 1e-10 * largest:
        raise ArgumentError(f"w must be symmetric, got a difference of {difference:.3g}")
    values, vectors = torch.linalg.eigh(matrix)
    positive = values > 1e-10 * values.abs().max()
    count = int(positive.sum())
    if count == 0:
        raise ArgumentError(f"w must have a positive eigenvalue, got {float(values[-1]):g} as the largest")
    gain = torch.where(positive, (values.clamp(min=0) * (count + 1) / tau).sqrt(), torch.full_like(values, 1 / small))
    b: Tensor = (vectors * gain) @ vectors.mT
    return b


def hidden_head(count: int, *, dim: int, tokens: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return a dispersed head before and after the change of tokens that hides it from the penalty.

    count: positive eigenvalues of W, (dim, dim). Returns eigenvalues and hidden_eigenvalues, (count,), from the
    largest, and logits and hidden_logits of random tokens with W and after the change, (tokens²,).
    """
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q[:, :count]
    w = (basis * torch.logspace(0.5, -1.5, count, dtype=torch.float64)) @ basis.T
    b = evading_map(w)
    moved = change_coordinates(w, b)
    x = torch.randn(tokens, dim, generator=generator, dtype=torch.float64)
    values = {"eigenvalues": torch.linalg.eigvalsh(w), "hidden_eigenvalues": torch.linalg.eigvalsh(moved)}
    shown = {name: value.flip(0)[:count].numpy() for name, value in values.items()}
    y = x @ b.T  # the tokens Bx
    return shown | {"logits": (x @ w @ x.T).flatten().numpy(), "hidden_logits": (y @ moved @ y.T).flatten().numpy()}


def _checked(name: str, w: Tensor) -> Tensor:
    check_square(name, w)
    return w.double()

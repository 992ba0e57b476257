"""How LocAteR's penalty on W can be evaded through the tokens, and what of it cannot.

Tokens Bx with the matrix B⁻ᵀ W B⁻¹ have the logits of x with W. Matrices are (d, d), everything is float64; Ω(W) is
‖W‖_F² + (tr W − τ)². Source: book, "Theory: LocAteR", what the regulariser does not see (ours).
"""

import torch
from torch import Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_finite, check_number
from qkrepro.theory.spectrum import check_square, covariance_root


def effective_number(w: Tensor) -> Tensor:
    """Return N_W = (tr W)²/‖W‖_F², the number of equal eigenvalues with this trace and norm; (..., d, d) to (...).

    At most the rank of W, and below 1 for a dispersed spectrum. Raises ShapeError unless w is square, ArgumentError for
    non-finite entries or a matrix of zeros.
    """
    matrix = _checked(w)
    size = matrix.square().sum((-2, -1))
    if bool((size == 0).any()):
        raise ArgumentError("w must not be a matrix of zeros, which has no effective number")
    return _trace(matrix).square() / size


def matrix_penalty(w: Tensor, tau: float = 1.0) -> Tensor:
    """Return LocAteR's Ω of whole matrices, (..., d, d) to (...); zeros are allowed. Raises for other shapes."""
    matrix = _checked(w)
    check_number("tau", tau)
    return matrix.square().sum((-2, -1)) + (_trace(matrix) - tau).square()


def change_coordinates(w: Tensor, b: Tensor) -> Tensor:
    """Return B⁻ᵀ W B⁻¹, which scores tokens Bx as W scores x. w, b: (d, d), b invertible. Raises for other shapes."""
    matrix, tokens = _checked(w), _checked(b)
    if matrix.shape != tokens.shape:
        raise ShapeError(f"w has shape {tuple(w.shape)} and b {tuple(b.shape)}; they must be equal")
    inverse = torch.linalg.inv(tokens)
    moved: Tensor = inverse.mT @ matrix @ inverse
    return moved


def token_matrix(w: Tensor, cov: Tensor) -> Tensor:
    """Return M = Σ^{1/2} W Σ^{1/2}, the head in the coordinates in which the tokens' increments are white.

    w, cov: (d, d), cov a covariance. The eigenvalues and norms of M are the same in all coordinates of the tokens.
    """
    matrix = _checked(w)
    root = covariance_root(cov, matrix.shape[-1])
    return root @ matrix @ root


def least_by_scale(w: Tensor, tau: float = 1.0) -> float:
    """Least Ω of W/c² over all c > 0: τ²/(1 + N_W) for a positive trace, and τ² (an infimum) otherwise.

    w: (d, d), not zero. tau: > 0. Raises as `effective_number` does, and ArgumentError for tau.
    """
    check_number("tau", tau, above=0)
    number = float(effective_number(w))
    return tau**2 / (1 + number) if float(_trace(_checked(w))) > 0 else tau**2


def positive_directions(w: Tensor) -> int:
    """Number of positive eigenvalues of the symmetric part of w, (d, d): the same in all coordinates of the tokens.

    Eigenvalues up to 1e-10 of the largest count as zero. Raises as `effective_number` does for shape and values.
    """
    matrix = _checked(w)
    values = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)
    return int((values > 1e-10 * values.abs().max()).sum())


def least_by_linear_map(w: Tensor, tau: float = 1.0) -> tuple[float, float]:
    """Lower and upper bound on the infimum of Ω(B⁻ᵀ W B⁻¹) over all invertible B; equal for symmetric W.

    With p positive directions τ²/(p + 1), up to τ²/2 when W is not symmetric; τ² for p = 0. w: (d, d). tau: > 0.
    Raises ShapeError or ArgumentError for anything else.
    """
    check_number("tau", tau, above=0)
    matrix, count = _checked(w), positive_directions(w)
    low = tau**2 / (count + 1)
    symmetric = torch.allclose(matrix, matrix.mT, rtol=1e-10, atol=1e-12 * float(matrix.abs().max()))
    return low, low if symmetric or count == 0 else tau**2 / 2


def evading_map(w: Tensor, tau: float = 1.0, *, small: float = 1e-4) -> Tensor:
    """Return a B with Ω(B⁻ᵀ W B⁻¹) at its infimum for symmetric W, up to terms of order small⁴.

    Each positive eigenvalue becomes τ/(p + 1); the others are multiplied by small². With no negative eigenvalue the
    infimum is attained. w: (d, d), symmetric with a positive eigenvalue. Returns float64, (d, d).
    Raises ArgumentError for a matrix that is not symmetric or has no positive eigenvalue, or for small <= 0.
    """
    matrix = _checked(w)
    check_number("tau", tau, above=0)
    check_number("small", small, above=0)
    if not torch.allclose(matrix, matrix.mT, rtol=1e-10, atol=1e-12 * float(matrix.abs().max())):
        raise ArgumentError("w must be symmetric")
    count = positive_directions(matrix)
    if count == 0:
        raise ArgumentError("w must have a positive eigenvalue; without one the infimum is τ², reached by shrinking")
    values, vectors = torch.linalg.eigh(matrix)
    positive = values > 1e-10 * values.abs().max()
    gain = torch.where(positive, (values.clamp(min=0) * (count + 1) / tau).sqrt(), torch.full_like(values, 1 / small))
    b: Tensor = (vectors * gain) @ vectors.mT
    return b


def _checked(w: Tensor) -> Tensor:
    check_square("w", w)
    check_finite("w", w)
    return w.double()


def _trace(w: Tensor) -> Tensor:
    trace: Tensor = w.diagonal(dim1=-2, dim2=-1).sum(-1)
    return trace

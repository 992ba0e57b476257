"""What Xavier initialisation of W_q and W_k gives: the draw, and the law of the spectrum of W_QK = w_qᵀ w_k.

The moments are exact at every size (derived: the entries of w_q and w_k are independent, of mean 0 and variance v, and
every term pairs one of each, so the shape of their law does not matter). The radius law of the eigenvalues and the
edge of the singular values hold for d_model, d_head → ∞ at a fixed ratio (derived from the free-probability rules of
Haagerup and Larsen, J. Funct. Anal. 176, 2000; as in Burda et al., arXiv 1007.3594). Book, "The eigenspectrum".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from qkrepro.errors import ArgumentError, check_integer

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64


@dataclass(frozen=True)
class XavierLaw:
    """Expected spectrum of W_QK for independent Xavier w_q, w_k of shape (d_head, d_model)."""

    d_model: int  # d
    d_head: int  # h
    entry_variance: float  # v, of one entry of w_q or w_k

    @property
    def trace_std(self) -> float:
        """Return the standard deviation of tr W, v √(h d); its mean is 0."""
        return self.entry_variance * math.sqrt(self.d_head * self.d_model)

    @property
    def trace_sq(self) -> float:
        """Return E tr W² = h d v²."""
        return self.d_head * self.d_model * self.entry_variance**2

    @property
    def frobenius_sq(self) -> float:
        """Return E ‖W‖_F² = h d² v², d times E tr W²: far from a symmetric matrix."""
        return self.d_head * self.d_model**2 * self.entry_variance**2

    @property
    def eigen_variance(self) -> float:
        """Return E [tr W²/d − (tr W/d)²] = h v² (1 − 1/d), over all d_model eigenvalues."""
        return self.d_head * self.entry_variance**2 * (1 - 1 / self.d_model)

    @property
    def eigen_radius(self) -> float:
        """Return the limit of the largest |eigenvalue|, v √(h d)."""
        return self.trace_std

    @property
    def spectral_norm(self) -> float:
        """Return the limit of ‖W‖_2, the minimum of d v (1 + cz) √((1 + z)/z) over z > 0, c = h/d (two Wisharts)."""
        c = self.d_head / self.d_model
        z = (math.sqrt(c**2 + 8 * c) - c) / (4 * c)
        return self.d_model * self.entry_variance * math.sqrt((1 + z) / z) * (1 + c * z)

    def radius_cdf(self, radius: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """Return the limit of the share of the d_head non-zero eigenvalues with |λ| <= radius, shaped like `radius`.

        F solves F (1 − c + cF) = (radius / eigen_radius)², c = d_head/d_model: the circular law F = r² for c → 0, F = r
        for c = 1. The angle is uniform, but for a share of order 1/√d_head that lies on the real axis.
        """
        c = self.d_head / self.d_model
        ratio_sq = (radius.double() / self.eigen_radius).clamp(0, 1).square()
        return (((1 - c) ** 2 + 4 * c * ratio_sq).sqrt() - (1 - c)) / (2 * c)

    def radius_density(self, radius: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """Return the derivative of `radius_cdf`, per unit of |λ|; float64, 0 beyond `eigen_radius`."""
        c, ratio = self.d_head / self.d_model, radius.double() / self.eigen_radius
        inside = 2 * ratio / ((1 - c) ** 2 + 4 * c * ratio.square()).sqrt() / self.eigen_radius
        return torch.where(ratio <= 1, inside, 0.0)


def xavier_law(d_model: int, d_head: int, *, fan_out: int | None = None) -> XavierLaw:
    """Return the law of the spectrum under Xavier initialisation, whose entries have variance 2 / (d_model + fan_out).

    fan_out: rows of the matrix that was initialised in one piece: d_head (the default, one head on its own), d_model
    (all query heads together), or 3 d_model (PyTorch's MultiheadAttention, queries, keys and values together).
    Raises ArgumentError for sizes below 1, d_head > d_model or fan_out < d_head.
    """
    check_integer("d_model", d_model, at_least=1)
    check_integer("d_head", d_head, at_least=1)
    if d_head > d_model:
        raise ArgumentError(f"d_head must be at most d_model = {d_model}, got {d_head}")
    if fan_out is not None:
        check_integer("fan_out", fan_out, at_least=d_head)
    return XavierLaw(d_model, d_head, 2 / (d_model + (d_head if fan_out is None else fan_out)))


def xavier_qk(
    d_model: int,
    d_head: int,
    *,
    fan_out: int | None = None,
    batch: tuple[int, ...] = (),
    generator: Generator,
) -> tuple[Float64[Tensor, "*batch d_head d_model"], Float64[Tensor, "*batch d_head d_model"]]:
    """Draw (w_q, w_k) with independent Xavier-uniform entries.

    Parameters
    ----------
    d_model, d_head, fan_out
        As for `xavier_law`, whose variance the entries have.
    batch
        Leading shape.
    generator
        Source of the draws.

    Returns
    -------
    tuple of Tensor
        w_q and w_k, float64, (*batch, d_head, d_model) each.

    Raises as `xavier_law` does.
    """
    bound = (3 * xavier_law(d_model, d_head, fan_out=fan_out).entry_variance) ** 0.5  # variance of U(−b, b) is b²/3
    shape = (2, *batch, d_head, d_model)
    draws = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    w_q, w_k = bound * (2 * draws - 1)
    return w_q, w_k

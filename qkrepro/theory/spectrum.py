"""The eigenspectrum of a query-key matrix W_QK = w_qᵀ w_k: eigenvalues, moments, matrices with a chosen spectrum.

Everything is float64, and no moment forms a d_model × d_model matrix. "Mean" and "variance" of a spectrum always run
over all d_model eigenvalues, the zeros included. Source: book, "The eigenspectrum"; arXiv 2402.02098 (abstract).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_finite, check_integer, check_number, check_qk_shapes

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Complex128, Float, Float64


@dataclass(frozen=True)
class SpectrumMoments:
    """Moments of W, one number per matrix: float64 tensors with the leading (batch) shape of the weights.

    `eigen_variance` is tr W²/d − (tr W/d)². For complex eigenvalues it is the mean of (λ − mean)², not of |λ − mean|²,
    and can be negative: a plane rotation by 90 degrees has eigenvalues ±i and variance −1.
    """

    d_model: int  # the number of eigenvalues that means and variances run over
    trace: Tensor  # ξ, the sum of the eigenvalues
    trace_sq: Tensor  # tr W² = η for increments of unit covariance, the sum of their squares
    frobenius_sq: Tensor  # ‖W‖_F², the sum of the squared singular values; equals tr W² when W is symmetric
    spectral_norm: Tensor  # ‖W‖_2, the largest singular value

    @property
    def eigen_mean(self) -> Tensor:
        """Return the mean over all d_model eigenvalues, tr W / d_model."""
        return self.trace / self.d_model

    @property
    def eigen_variance(self) -> Tensor:
        """Return the variance over all d_model eigenvalues, tr W²/d_model − (tr W/d_model)²; it can be negative."""
        return self.trace_sq / self.d_model - self.eigen_mean.square()

    @property
    def symmetry_score(self) -> Tensor:
        """½(1 + tr W²/tr WWᵀ): 1 for a symmetric W, 0 for an antisymmetric one. Source: arXiv 2502.10927."""
        return (1 + self.trace_sq / self.frobenius_sq) / 2

    @property
    def spectral_energy_share(self) -> Tensor:
        """‖W‖_2²/‖W‖_F², the largest squared singular value over the sum of all: 1 for rank one, at least 1/d_head.

        It is one over the stable rank. Source: the "spectral energy concentration" of arXiv 2505.21910, as one number.
        """
        return self.spectral_norm.square() / self.frobenius_sq


def qk_matrix(
    w_q: Float[Tensor, "*batch d_head d_model"], w_k: Float[Tensor, "*batch d_head d_model"]
) -> Float64[Tensor, "*batch d_model d_model"]:
    """Return W_QK = w_qᵀ w_k itself, with which the logit of query t and key i is x_tᵀ W_QK x_i.

    w_q, w_k: (..., d_head, d_model), the weights of the query and key projections (q = w_q x, k = w_k x).
    Returns float64, (..., d_model, d_model), of rank at most d_head.
    Raises ShapeError when the two shapes differ or d_head > d_model, ArgumentError for non-finite weights.
    """
    check_qk_shapes(w_q, w_k)
    w: Tensor = w_q.double().mT @ w_k.double()  # (..., d_model, d_model)
    return w


def qk_eigenvalues(
    w_q: Float[Tensor, "*batch d_head d_model"], w_k: Float[Tensor, "*batch d_head d_model"]
) -> Complex128[Tensor, "*batch d_head"]:
    """Return the eigenvalues of W_QK = w_qᵀ w_k that can differ from zero, per head.

    w_q, w_k: (..., d_head, d_model), the weights of the query and key projections (q = w_q x).
    Returns complex128, (..., d_head); the other d_model − d_head eigenvalues of W_QK are zero.
    Raises ShapeError when the two shapes differ or d_head > d_model, ArgumentError for non-finite weights.
    Source: book, "The eigenspectrum"; AB and BA share their non-zero eigenvalues.
    """
    check_qk_shapes(w_q, w_k)
    small = w_k.double() @ w_q.double().mT  # (..., d_head, d_head)
    values: Tensor = torch.linalg.eigvals(small)  # (..., d_head)
    return values


def qk_moments(
    w_q: Float[Tensor, "*batch d_head d_model"], w_k: Float[Tensor, "*batch d_head d_model"]
) -> SpectrumMoments:
    """Return the moments of W_QK = w_qᵀ w_k, per head, from d_head × d_head products alone.

    w_q, w_k: (..., d_head, d_model). Returns float64 tensors of the leading shape (...).
    The singular values come from the triangular QR factors, which keep full relative accuracy where the Gram matrices
    w_q w_qᵀ would square the condition number.
    Raises ShapeError when the two shapes differ or d_head > d_model, ArgumentError for non-finite weights.
    """
    check_qk_shapes(w_q, w_k)
    q, k = w_q.double(), w_k.double()
    small = k @ q.mT  # (..., d_head, d_head), the non-zero eigenvalues of W
    r_q, r_k = torch.linalg.qr(q.mT, mode="r").R, torch.linalg.qr(k.mT, mode="r").R  # (..., d_head, d_head)
    core = r_q @ r_k.mT  # (..., d_head, d_head), the non-zero singular values of W
    return SpectrumMoments(
        d_model=q.shape[-1],
        trace=small.diagonal(dim1=-2, dim2=-1).sum(-1),
        trace_sq=(small * small.mT).sum((-2, -1)),
        frobenius_sq=core.square().sum((-2, -1)),
        spectral_norm=torch.linalg.matrix_norm(core, 2),
    )


def matrix_moments(w: Float[Tensor, "*batch d d"]) -> SpectrumMoments:
    """Return the moments of matrices that are given whole, w (..., d, d), real; float64 tensors of the leading shape.

    Raises ShapeError unless w is square, ArgumentError for non-finite entries.
    """
    check_square("w", w)
    w = w.double()
    return SpectrumMoments(
        d_model=w.shape[-1],
        trace=w.diagonal(dim1=-2, dim2=-1).sum(-1),
        trace_sq=(w * w.mT).sum((-2, -1)),
        frobenius_sq=w.square().sum((-2, -1)),
        spectral_norm=torch.linalg.matrix_norm(w, 2),
    )


def random_spectrum_matrix(
    dim: int,
    mean: float,
    variance: float,
    *,
    symmetric: bool = True,
    non_normality: float | None = None,
    batch: tuple[int, ...] = (),
    generator: Generator,
) -> Float64[Tensor, "... dim dim"]:
    """Draw W = U (D + N) Uᵀ whose dim real eigenvalues have exactly this mean and variance.

    D is a Gaussian sample shifted and scaled to the exact mean and (population) variance, U a Haar-random rotation.
    An eigenvalue solver scatters the eigenvalues of a strongly non-normal W (equal ones most of all, by a power 1/dim
    of the rounding error); tr W and tr W², hence mean and variance, stay exact.

    Parameters
    ----------
    dim
        Size of W, at least 1.
    mean, variance
        Of its eigenvalues; variance >= 0, and 0 at dim 1.
    symmetric
        True has N = 0. False adds N, Gaussian and strictly upper triangular: same eigenvalues, other singular values.
    non_normality
        ‖N‖_F >= 0, for symmetric=False alone; None takes ‖D‖_F, so that ‖W‖_F² = 2 tr W².
    batch
        Leading shape.
    generator
        Source of the draws.

    Returns
    -------
    Tensor
        Float64, (*batch, dim, dim), on the generator's device.

    Raises
    ------
    ArgumentError
        A value out of range, or a non_normality together with symmetric=True.
    """
    _check_random_spectrum(dim, mean, variance, symmetric, non_normality)
    eigenvalues = mean + variance**0.5 * _standard_sample((*batch, dim), generator)  # (*batch, dim)
    core = torch.diag_embed(eigenvalues)  # (*batch, dim, dim)
    if not symmetric and dim > 1:
        strict = _normal((*batch, dim, dim), generator).triu(1)
        norm = (
            eigenvalues.norm(dim=-1) if non_normality is None else torch.full_like(eigenvalues[..., 0], non_normality)
        )
        core = core + strict * (norm / torch.linalg.matrix_norm(strict))[..., None, None]
    rotation = random_rotation(dim, batch=batch, generator=generator)
    w = rotation @ core @ rotation.mT
    return (w + w.mT) / 2 if symmetric else w


def random_rotation(dim: int, *, batch: tuple[int, ...] = (), generator: Generator) -> Float64[Tensor, "... dim dim"]:
    """Draw Haar-random orthogonal matrices, float64, (*batch, dim, dim), by QR of a Gaussian."""
    check_integer("dim", dim, at_least=1)
    q, r = torch.linalg.qr(_normal((*batch, dim, dim), generator))
    rotation: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]  # the signs of R move to Q
    return rotation


def factor(
    w: Float[Tensor, "*batch d_model d_model"], d_head: int
) -> tuple[Float64[Tensor, "*batch d_head d_model"], Float64[Tensor, "*batch d_head d_model"]]:
    """Return balanced factors of w = w_qᵀ w_k: w_q w_qᵀ = w_k w_kᵀ, diagonal, with the singular values of w.

    w: (..., d_model, d_model). Returns two float64 tensors (..., d_head, d_model).
    Raises ShapeError unless w is square, ArgumentError for non-finite w, for d_head outside 1..d_model, and when the
    rank of w (at the precision of its dtype) is above d_head.
    """
    check_square("w", w)
    d_model = w.shape[-1]
    check_integer("d_head", d_head, at_least=1)
    if d_head > d_model:
        raise ArgumentError(f"d_head must be at most d_model = {d_model}, got {d_head}")
    u, s, vh = torch.linalg.svd(w.double())
    precision = torch.finfo(w.dtype).eps if w.dtype.is_floating_point else torch.finfo(torch.float64).eps
    rank = int((s > s[..., :1] * d_model * precision).sum(-1).max())
    if rank > d_head:
        raise ArgumentError(f"w must have rank at most d_head = {d_head}, got {rank}")
    root = s[..., :d_head, None].sqrt()  # (..., d_head, 1)
    return root * u.mT[..., :d_head, :], root * vh[..., :d_head, :]


def covariance_root(cov: Float[Tensor, "d d"], dim: int) -> Float64[Tensor, "d d"]:
    """Return the symmetric square root Σ^{1/2} of a covariance matrix, float64, (dim, dim).

    Raises ShapeError unless cov is (dim, dim), ArgumentError when it is not finite, not symmetric or not positive
    semi-definite (a rounding error of 1e-10 of the largest entry or eigenvalue is let through).
    """
    if cov.shape != (dim, dim):
        raise ShapeError(f"cov must have shape {(dim, dim)}, got {tuple(cov.shape)}")
    check_finite("cov", cov)
    cov = cov.double()
    if float((cov - cov.mT).abs().max()) > 1e-10 * float(cov.abs().max()):
        raise ArgumentError(f"cov must be symmetric, got a difference of {float((cov - cov.mT).abs().max()):.3g}")
    values, vectors = torch.linalg.eigh(cov)
    if float(values[0]) < -1e-10 * float(values.abs().max()):
        raise ArgumentError(f"cov must be positive semi-definite, got the eigenvalue {float(values[0]):.3g}")
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    return root


def check_square(name: str, w: Tensor) -> None:
    """Raise ShapeError unless w is (..., d, d) with d >= 1, ArgumentError unless it is finite."""
    if w.ndim < 2 or w.shape[-2] != w.shape[-1] or 0 in w.shape:
        raise ShapeError(f"{name} must have shape (..., d, d), got {tuple(w.shape)}")
    check_finite(name, w)


def _check_random_spectrum(
    dim: int, mean: float, variance: float, symmetric: bool, non_normality: float | None
) -> None:
    check_integer("dim", dim, at_least=1)
    check_number("mean", mean)
    check_number("variance", variance, at_least=0)
    if dim == 1 and variance > 0:
        raise ArgumentError(f"variance must be 0 at dim 1, since one number does not vary, got {variance!r}")
    if non_normality is not None:
        check_number("non_normality", non_normality, at_least=0)
        if symmetric:
            raise ArgumentError(f"non_normality must be None with symmetric=True, got {non_normality!r}")


def _standard_sample(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Draw a Gaussian sample of mean exactly 0 and variance exactly 1 over the last dimension (0 at size 1)."""
    sample = _normal(shape, generator)
    sample = sample - sample.mean(-1, keepdim=True)
    if shape[-1] == 1:
        return torch.zeros_like(sample)
    return sample / sample.square().mean(-1, keepdim=True).sqrt()


def _normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)

"""Signal propagation: the probability ρ_θ that the token at location θ is not saturated by the linearised softmax.

The walk x_t = ε_1 + … + ε_t has increments ε ~ N(0, Σ), the query is the last token, and M = LᵀWL with LLᵀ = Σ. The
centred logit of token i is γ UᵀMU + √c UᵀMZ with U, Z standard normal, γ = i − (T + 1)/2, c = (T² − 1)/12, and
ρ_i = P(−λ < logit < λ(T − 1)). Source: book, "Theory: signal propagation" (reported of arXiv 2402.02098; derived).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_choice, check_finite, check_integer, check_number
from qkrepro.theory.exact_law import interval_probability
from qkrepro.theory.gaussian_profile import gaussian_profile, limit_law, profile_localization
from qkrepro.theory.spectrum import check_square, covariance_root

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64

METHODS = ("limit", "exact")


class PropagationEstimate(NamedTuple):
    """A Monte Carlo profile: rho and its 95% Wilson interval [low, high], each float64, shaped like theta."""

    rho: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Localization:
    """How localized a profile is, float64, (...)."""

    index: Tensor  # 1 − exp(H(p))/span, 0 for a flat profile
    centre: Tensor  # ∫ θ p dθ
    level: Tensor  # ∫ ρ dθ / span, the mean of ρ


def signal_propagation_limit(
    theta: Any,
    trace: Any,
    trace_sq: Any,
    frobenius_sq: Any = None,
    temperature: float = 1.0,
    length: int | None = None,
) -> Float64[Tensor, "*shape"]:
    """Return ρ_θ when the logit is Gaussian, from the moments tr M, tr M² and ‖M‖_F² alone.

    It is good when no singular value of M dominates. M = 0 gives 1.

    Parameters
    ----------
    theta
        Locations in (0, 1], any shape.
    trace, trace_sq, frobenius_sq
        Numbers or tensors of one shape (...); frobenius_sq=None says that M is symmetric, ‖M‖_F² = tr M².
    temperature
        λ > 0.
    length
        Number of tokens, whose moments and thresholds −λ and λ(T − 1) are taken; None takes T → ∞, with the
        thresholds 0 and λ in units of T.

    Returns
    -------
    Tensor
        ρ, float64, (..., *theta.shape).

    Raises
    ------
    ArgumentError
        θ outside (0, 1], temperature <= 0, length < 2, |tr M²| > ‖M‖_F².

    Source: book, "Theory: signal propagation".
    """
    theta = _check_theta(theta)
    check_number("temperature", temperature, above=0)
    xi, eta, frob = _check_moments(trace, trace_sq, frobenius_sq, theta.ndim)
    if length is None:
        gamma, spread_sq, lower, upper = limit_law(theta, float(temperature))
    else:
        gamma, spread_sq, lower, upper = finite_length_law(theta, length, temperature)
    rho: Tensor = gaussian_profile(gamma, spread_sq, lower, upper, xi, eta, frob)  # (..., *theta.shape)
    return rho


def finite_length_law(
    theta: Any, length: int, temperature: float
) -> tuple[Float64[Tensor, "*shape"], float, float, float]:
    """Return γ of each location, c = (T² − 1)/12 and the thresholds −λ, λ(T − 1) of a walk of `length` tokens.

    θ stands for token i = clamp(⌊θT + ½⌋, 1, T), γ = i − (T + 1)/2 (float64, shaped like theta).
    Source: book, "Theory: signal propagation", moments.
    """
    check_integer("length", length, at_least=2)
    token = (_check_theta(theta) * length + 0.5).floor().clamp(1, length)
    return token - (length + 1) / 2, (length**2 - 1) / 12, -float(temperature), float(temperature) * (length - 1)


def localization(theta: Any, rho: Any) -> Localization:
    """Return the localization index, centre and level of profiles ρ on a grid of locations.

    theta: (n,), n >= 2, strictly increasing, in (0, 1]. rho: (..., n), non-negative. Integrals by the trapezoid rule
    on the grid; with p = ρ/∫ρ, H(p) = −∫ p log p and span = θ_n − θ_1, the index is 1 − exp(H(p))/span: 0 for a flat
    profile on any grid, 1 − width/span for an indicator. The level is ∫ρ/span, the mean of ρ; below 1e-12 the index
    and the centre are NaN (the index ignores the level, so report both).
    Source: book, "Theory: signal propagation", when attention localizes (ours).
    """
    theta, rho = _check_theta(theta), _float64(rho)
    if theta.ndim != 1 or len(theta) < 2 or not bool((theta.diff() > 0).all()):
        raise ShapeError(f"theta must have shape (n,), n >= 2, strictly increasing, got {tuple(theta.shape)}")
    if rho.shape[-1:] != theta.shape:
        raise ShapeError(
            f"rho and theta must have shapes (..., n) and (n,), got {tuple(rho.shape)} and {tuple(theta.shape)}"
        )
    check_finite("rho", rho)
    if bool((rho < 0).any()):
        raise ArgumentError(f"rho must be >= 0, got {float(rho.min()):g}")
    return Localization(*profile_localization(theta, rho))


def signal_propagation(
    theta: Any,
    w: Float[Tensor, "d d"],
    *,
    temperature: float = 1.0,
    length: int | None = None,
    cov: Float[Tensor, "d d"] | None = None,
    method: str = "limit",
) -> Float64[Tensor, "*shape"]:
    """Compute ρ_θ of a query-key matrix on a random walk.

    Parameters
    ----------
    theta
        Locations in (0, 1], any shape.
    w
        Query-key matrix W_QK as `qk_matrix` returns it, (d, d), any floating dtype.
    temperature
        λ > 0, which divides the logits.
    length
        Number of tokens, at least 2; None takes T → ∞ ("limit" only).
    cov
        Covariance of the walk's increments, (d, d); None is the identity.
    method
        "limit": the Gaussian form, at T → ∞ or with the moments of the given length. "exact": the law itself, with an
        absolute error below 1e-12, for every d, length and w.

    Returns
    -------
    Tensor
        ρ, float64, shaped like theta.

    Raises
    ------
    ShapeError
        Shapes that do not match.
    ArgumentError
        θ outside (0, 1], temperature <= 0, length < 2 or missing, a non-finite w, a cov that is not positive
        semi-definite, an unknown method.

    Source: book, "Theory: signal propagation", "Signal propagation".
    """
    theta = _check_theta(theta)
    check_number("temperature", temperature, above=0)
    check_choice("method", method, METHODS)
    m = whiten(w, cov)  # (d, d)
    if method == "limit":
        trace, trace_sq, frobenius_sq = m.diagonal().sum(), (m * m.mT).sum(), m.square().sum()
        return signal_propagation_limit(theta, trace, trace_sq, frobenius_sq, temperature, length)
    if length is None:
        raise ArgumentError("length must be an integer >= 2 with method 'exact', got None")
    gamma, spread_sq, lower, upper = finite_length_law(theta, length, temperature)
    return interval_probability(m, gamma, math.sqrt(spread_sq), lower, upper)


def simulate_signal_propagation(
    theta: Any,
    w: Float[Tensor, "d d"],
    *,
    length: int,
    temperature: float = 1.0,
    cov: Float[Tensor, "d d"] | None = None,
    samples: int = 20_000,
    generator: Generator,
) -> PropagationEstimate:
    """Estimate ρ_θ from draws of (X, Y), two vectors of d numbers instead of a whole walk.

    Every location sees the same draws, so that errors are correlated along the profile.

    Parameters
    ----------
    theta, w, length, temperature, cov
        As for `signal_propagation`; the length is finite.
    samples
        Number of draws, at least 1.
    generator
        Source of the draws.

    Returns
    -------
    PropagationEstimate
        The shares of draws with their 95% Wilson intervals.

    Raises as `signal_propagation` does. Source: book, "Signal propagation".
    """
    from scipy.stats import binomtest  # takes a second to import, and training needs the limit alone

    theta = _check_theta(theta)
    check_number("temperature", temperature, above=0)
    check_integer("samples", samples, at_least=1)
    gamma, spread_sq, lower, upper = finite_length_law(theta, length, temperature)
    hits = _count_hits(whiten(w, cov), gamma.flatten(), math.sqrt(spread_sq), (lower, upper), samples, generator)
    ends = [binomtest(int(count), samples).proportion_ci(method="wilson") for count in hits]
    low, high = torch.tensor([(end.low, end.high) for end in ends], dtype=torch.float64).T  # (n,) each
    return PropagationEstimate(*(part.reshape(theta.shape) for part in (hits / samples, low, high)))


def _count_hits(
    m: Tensor, gamma: Tensor, root: float, limits: tuple[float, float], samples: int, generator: Generator
) -> Tensor:
    """Return how many of `samples` draws of (X, Y) leave token i unsaturated; (n,), every location on the same draws.

    Y = √T U and X = (γ/T)Y + √(c/T)Z, so YᵀMX = γ UᵀMU + √c UᵀMZ.
    """
    hits = torch.zeros(len(gamma), dtype=torch.float64)
    chunk = max(1, min(2**22 // len(m), 2**23 // len(gamma)))  # rows at once, bounds the memory
    for first in range(0, samples, chunk):
        rows = min(chunk, samples - first)
        u, z = torch.randn(2, rows, len(m), generator=generator, dtype=torch.float64)  # (rows, d) each
        mapped = u @ m  # (rows, d), MᵀU
        logit = gamma[:, None] * (u * mapped).sum(-1) + root * (z * mapped).sum(-1)  # (n, rows)
        hits += ((logit > limits[0]) & (logit < limits[1])).sum(-1)
    return hits


def whiten(w: Float[Tensor, "d d"], cov: Float[Tensor, "d d"] | None = None) -> Float64[Tensor, "d d"]:
    """Return M = Σ^{1/2} W Σ^{1/2}, the query-key matrix in whitened variables; float64, (d, d).

    w: (d, d). cov: (d, d), covariance Σ of the walk's increments; None is the identity. Raises ShapeError for shapes
    that do not match, ArgumentError for a non-finite w or a cov that is not positive semi-definite.
    """
    if w.ndim != 2:
        raise ShapeError(f"w must have shape (d, d), got {tuple(w.shape)}")
    check_square("w", w)
    if cov is None:
        return w.double()
    root = covariance_root(cov, len(w))
    return root @ w.double() @ root


def _float64(values: Any) -> Tensor:
    """Return a float64 tensor; an array is copied, as pandas hands out read-only ones that PyTorch warns about."""
    return values.double() if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)


def _check_theta(theta: Any) -> Tensor:
    values = _float64(theta)
    outside = ~((values > 0) & (values <= 1))
    if values.numel() == 0 or bool(outside.any()):
        given = f"{float(values[outside].flatten()[0]):g}" if values.numel() else "nothing"
        raise ArgumentError(f"theta must be locations in (0, 1], got {given}")
    return values


def _check_moments(trace: Any, trace_sq: Any, frobenius_sq: Any, ndim: int) -> tuple[Tensor, Tensor, Tensor]:
    xi, eta = torch.as_tensor(trace, dtype=torch.float64), torch.as_tensor(trace_sq, dtype=torch.float64)
    frob = eta if frobenius_sq is None else torch.as_tensor(frobenius_sq, dtype=torch.float64)
    for name, value in (("trace", xi), ("trace_sq", eta), ("frobenius_sq", frob)):
        check_finite(name, value)
    if bool((eta.abs() > frob * (1 + 1e-9)).any()):
        raise ArgumentError(
            "trace_sq must not exceed frobenius_sq in size: |tr M²| <= ‖M‖_F² (and tr M² >= 0 for symmetric M)"
        )
    tail = (..., *(None,) * ndim)
    return xi[tail], eta[tail], frob[tail]

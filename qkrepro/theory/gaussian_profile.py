"""The Gaussian form of signal propagation and the localization of a profile, for tensors and for NumPy arrays alike.

`propagation` checks its arguments and calls these with tensors. The table of `qkrepro spectrum` calls them with arrays,
so that a file becomes a table without PyTorch, whose import takes longer than the rest. Everything is float64.
Source: book, "Theory: signal propagation".
"""

from typing import Any

import numpy as np

from qkrepro.theory.normal_law import normal_cdf

Array = Any  # a NumPy array or a tensor; results are of the kind that comes in
LEVEL = 1e-12  # below this level a profile has no index and no centre


def limit_law(theta: Array, temperature: Array) -> tuple[Array, float, float, Array]:
    """Return γ of each location θ, c and the thresholds 0 and λ for T → ∞, in units of T."""
    return theta - 0.5, 1 / 12, 0.0, temperature


def gaussian_profile(
    gamma: Array, spread_sq: float, lower: float, upper: Array, trace: Array, trace_sq: Array, frobenius_sq: Array
) -> Array:
    """Return P(lower < logit < upper) of a Gaussian logit of mean γξ and variance (γ² + c)‖M‖_F² + γ²η.

    Parameters
    ----------
    gamma, spread_sq
        γ of each location, (n,), and c.
    lower, upper
        Thresholds; the upper one may be (..., 1).
    trace, trace_sq, frobenius_sq
        ξ = tr M, η = tr M² and ‖M‖_F², (..., 1) each.

    Returns
    -------
    array or tensor
        Probabilities, (..., n); 1 where ‖M‖_F is 0.
    """
    library = _library(gamma)
    mean = gamma * trace
    std = library.sqrt((gamma**2 + spread_sq) * frobenius_sq + gamma**2 * trace_sq)
    rho = _normal_interval((lower - mean) / std, (upper - mean) / std)
    return library.where(frobenius_sq > 0, rho, library.ones_like(rho))


def profile_localization(theta: Array, rho: Array) -> tuple[Array, Array, Array]:
    """Return the index, centre and level of profiles, (...) each, as `propagation.localization` defines them.

    theta: (n,), strictly increasing. rho: (..., n), non-negative.
    """
    library = _library(theta)
    steps = library.diff(theta)
    weight = library.zeros_like(theta)  # (n,) trapezoid
    weight[:-1] += steps / 2
    weight[1:] += steps / 2
    level = _integral(weight, rho) / weight.sum()  # (...)
    p = rho / (level * weight.sum())[..., None]  # (..., n)
    entropy = -_integral(weight, _xlogx(p))
    nan = library.full_like(level, library.nan)
    index = library.where(level >= LEVEL, 1 - library.exp(entropy) / weight.sum(), nan)
    centre = library.where(level >= LEVEL, _integral(weight * theta, p), nan)
    return index, centre, level


def _normal_interval(low: Array, high: Array) -> Array:
    """Return Φ(high) − Φ(low), computed in the nearer tail so that small probabilities keep their digits."""
    library = _library(low)
    side = library.where(low > 0, -1.0, 1.0)
    return library.abs(_cdf(side * high) - _cdf(side * low))


def _library(array: Array) -> Any:
    """Return the module with the functions for this kind of array."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def _integral(weight: Array, values: Array) -> Array:
    """Return Σ_j weight_j values_j over the last dimension; for arrays as a product, which is faster there."""
    return values @ weight if isinstance(values, np.ndarray) else (weight * values).sum(-1)


def _cdf(x: Array) -> Array:
    """Return Φ(x)."""
    return normal_cdf(x) if isinstance(x, np.ndarray) else _library(x).special.ndtr(x)


def _xlogx(p: Array) -> Array:
    """Return p log p, 0 at p = 0."""
    if isinstance(p, np.ndarray):
        return p * np.log(np.maximum(p, np.finfo(np.float64).tiny))
    return _library(p).special.xlogy(p, p)

"""Where a random initialisation of the same shape would stand: draws of a head's scale-free statistics.

The null hypothesis is independent Gaussian weights of one variance, as at the start of training. Its scale is set to
the head's own Frobenius norm, so that a head is compared with random heads of its size, not with smaller ones.
Statistics are NumPy arrays, float64; the functions of numbers take tensors too.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qkrepro.models.head_products import Array, HeadProducts, products_in_covariance, random_products
from qkrepro.theory.gaussian_profile import gaussian_profile, limit_law, profile_localization
from qkrepro.theory.normal_law import normal_cdf

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Complex128, Float64

THETA = np.arange(1, 101) / 100  # locations of the profiles behind localization
ENERGY_DRAWS = 50  # that the spectral energy share is taken of: it varies little from draw to draw, and costs more
PIECE = 2**16  # numbers of profiles at a time, which stay in the cache


@dataclass(frozen=True)
class NullDraws:
    """Statistics of random heads of one shape, (draws,) float64 each; of eigenvalues None where not wanted."""

    trace: Array  # tr W / ‖W‖_F
    trace_sq: Array  # tr W² / ‖W‖_F²
    top_share: Array | None
    relative_variance: Array | None
    energy_share: Array | None  # ‖W‖_2² / ‖W‖_F² of the first ENERGY_DRAWS


def null_draws(products: HeadProducts, *, eigenvalues: bool = True, threads: int = 1) -> NullDraws:
    """Return the statistics of random products, whichever law they were drawn from; threads: that share the work."""
    norm_sq = products.frobenius_sq()
    trace, trace_sq = products.trace() / np.sqrt(norm_sq), products.trace_sq() / norm_sq
    if not eigenvalues:
        return NullDraws(trace, trace_sq, None, None, None)
    with ThreadPoolExecutor(threads) as pool:
        pieces = list(pool.map(np.linalg.eigvals, np.array_split(products.cross, threads)))
    values = np.concatenate(pieces).astype(np.complex128, copy=False)
    cross, gram_q, gram_k = (part[:ENERGY_DRAWS] for part in (products.cross, products.gram_q, products.gram_k))
    energy = HeadProducts(cross, gram_q, gram_k, products.d_model).spectral_energy_share()
    return NullDraws(trace, trace_sq, top_share(values), relative_variance(values), energy)


def random_heads(d_head: int, d_model: int, draws: int, seed: int, cov: Any = None) -> HeadProducts:
    """Return the products of random heads.

    Parameters
    ----------
    d_head, d_model
        Their shape.
    draws, seed
        Their number and the seed of the draws.
    cov
        Covariance Σ of the tokens, (d_model, d_model), for the products of Σ^½ W Σ^½; None is the identity.

    Returns
    -------
    HeadProducts
        Products (draws, d_head, d_head).
    """
    if cov is None:
        return random_products(d_head, d_model, draws, seed)
    generator = np.random.default_rng(seed)
    w_q, w_k = (generator.standard_normal((draws, d_head, d_model)) for _ in range(2))
    return products_in_covariance(w_q, w_k, cov)


def top_share(
    eigenvalues: Complex128[np.ndarray, "*heads d_head"],
) -> Float64[np.ndarray, "*heads"]:
    """Return the share of Σ|λ| in the largest |λ|, (...); 1/d_head when all are equal in size."""
    size = np.abs(eigenvalues)
    with np.errstate(invalid="ignore"):  # W = 0 has none: NaN
        return np.asarray(size.max(-1) / size.sum(-1))


def relative_variance(
    eigenvalues: Complex128[np.ndarray, "*heads d_head"],
) -> Float64[np.ndarray, "*heads"]:
    """Return mean |λ − μ|² / |μ|² over the given eigenvalues, (...): 0 when they all agree."""
    mean = eigenvalues.mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((np.abs(eigenvalues - mean[..., None]) ** 2).mean(-1) / np.abs(mean) ** 2)


def z_score(value: Array, draws: Array) -> Array:
    """Return (value − mean)/standard deviation of the draws, (...)."""
    return np.asarray((value - draws.mean()) / draws.std(ddof=1))


def percentile(value: Any, draws: Any) -> Array:
    """Return the percentage of draws below the value, draws equal to it counted half; NaN for a value that is NaN.

    value: (...). draws: (draws,) or (..., draws).
    """
    value, draws = np.asarray(value)[..., None], np.asarray(draws)
    share = ((draws < value) + 0.5 * (draws == value)).mean(-1)
    return np.where(np.isnan(value[..., 0]), np.nan, 100 * share)


def localization_of(trace: Array, trace_sq: Array, frobenius_sq: Array, temperature: float) -> tuple[Array, ...]:
    """Return the index, centre and level of the T → ∞ profile of the moments.

    Parameters
    ----------
    trace, trace_sq, frobenius_sq
        tr M, tr M² and ‖M‖_F², (...) each.
    temperature
        λ > 0.

    Returns
    -------
    tuple of arrays
        Index, centre and level, (...) each.

    Source: book, "Theory: signal propagation".
    """
    bounded = np.clip(trace_sq, -frobenius_sq, frobenius_sq)  # rounding may put a symmetric head just outside
    moments = (np.asarray(moment)[..., None] for moment in (trace, bounded, frobenius_sq))
    with np.errstate(invalid="ignore", divide="ignore"):  # M = 0 has a profile all the same
        rho = gaussian_profile(*limit_law(THETA, temperature), *moments)  # (..., 100)
        return profile_localization(THETA, rho)


def null_localization(
    draws: NullDraws, frobenius_sq: Float64[np.ndarray, " heads"], temperature: float
) -> Float64[np.ndarray, "heads draws"]:
    """Return the localization index of the random heads scaled to each head's Frobenius norm, (heads, draws).

    A head of norm s at temperature λ has the profile of the same head of norm 1 at λ/s. All heads share the moments of
    those, hence the law of their logits and its part below the lower threshold: only the upper one is a head's own.
    """
    gamma, spread_sq, lower, _ = limit_law(THETA, temperature)
    trace, trace_sq = draws.trace[:, None], np.clip(draws.trace_sq, -1, 1)[:, None]  # (draws, 1)
    mean = gamma * trace  # (draws, 100), as the next
    std = np.sqrt(gamma**2 + spread_sq + gamma**2 * trace_sq)
    std *= np.where(mean < lower, -1, 1)  # a sign, so that Φ is computed in the nearer tail
    below = normal_cdf((lower - mean) / std)
    index = np.empty((len(frobenius_sq), len(trace)))
    step = max(1, PIECE // mean.size)
    for start in range(0, len(index), step):
        norm_sq = frobenius_sq[start : start + step, None, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            upper = temperature / np.sqrt(norm_sq)
            rho = np.abs(normal_cdf((upper - mean) / std) - below)  # (heads, draws, 100)
            index[start : start + step] = profile_localization(THETA, np.where(norm_sq > 0, rho, 1.0))[0]
    return index

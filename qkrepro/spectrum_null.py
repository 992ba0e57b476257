"""Where a random initialisation of the same shape would stand: draws of a head's scale-free statistics.

The null hypothesis is independent Gaussian weights of one variance, as at the start of training. Its scale is set to
the head's own Frobenius norm, so that a head is compared with random heads of its size, not with smaller ones.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qkrepro.head_products import HeadProducts, products_in_covariance, random_products
from qkrepro.propagation import localization, signal_propagation_limit

THETA = torch.arange(1, 101, dtype=torch.float64) / 100  # locations of the profiles behind localization


@dataclass(frozen=True)
class NullDraws:
    """Statistics of random heads of one shape, (draws,) float64 each; of eigenvalues None where not wanted."""

    trace: Tensor  # tr W / ‖W‖_F
    trace_sq: Tensor  # tr W² / ‖W‖_F²
    top_share: Tensor | None
    relative_variance: Tensor | None


def null_draws(products: HeadProducts, *, eigenvalues: bool = True) -> NullDraws:
    """The statistics of random products, whichever law they were drawn from."""
    norm = products.frobenius_sq().sqrt()
    trace, trace_sq = products.trace() / norm, products.trace_sq() / norm.square()
    if not eigenvalues:
        return NullDraws(trace, trace_sq, None, None)
    values = products.eigenvalues()
    return NullDraws(trace, trace_sq, top_share(values), relative_variance(values))


def random_heads(d_head: int, d_model: int, draws: int, seed: int, cov: Tensor | None = None) -> HeadProducts:
    """Products of random heads; with a covariance (d_model, d_model) of the tokens, those of Σ^½ W Σ^½."""
    if cov is None:
        return random_products(d_head, d_model, draws, seed)
    generator = np.random.default_rng(seed)
    w_q, w_k = (torch.from_numpy(generator.standard_normal((draws, d_head, d_model))) for _ in range(2))
    return products_in_covariance(w_q, w_k, cov)


def top_share(eigenvalues: Tensor) -> Tensor:
    """Share of Σ|λ| in the largest |λ|, (...); 1/d_head when all are equal in size."""
    size = eigenvalues.abs()
    return size.amax(-1) / size.sum(-1)


def relative_variance(eigenvalues: Tensor) -> Tensor:
    """mean |λ − μ|² / |μ|² over the given eigenvalues, (...): 0 when they all agree."""
    mean = eigenvalues.mean(-1)
    return (eigenvalues - mean[..., None]).abs().square().mean(-1) / mean.abs().square()


def z_score(value: Tensor, draws: Tensor) -> Tensor:
    """(value − mean)/standard deviation of the draws, (...)."""
    return (value - draws.mean()) / draws.std()


def percentile(value: Tensor, draws: Tensor) -> Tensor:
    """Percentage of draws below the value, draws equal to it counted half; value (...), draws (draws,) or (..., draws).

    NaN where the value is not a number.
    """
    value = value[..., None]
    share = ((draws < value).double() + 0.5 * (draws == value).double()).mean(-1)
    return torch.where(value[..., 0].isnan(), torch.nan, 100 * share)


def localization_of(trace: Tensor, trace_sq: Tensor, frobenius_sq: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """Index, centre and level of the T → ∞ profile of the moments, (...) each (book, "Theory: signal propagation")."""
    bounded = trace_sq.clamp(-frobenius_sq, frobenius_sq)  # rounding may put a symmetric head just outside
    rho = signal_propagation_limit(THETA, trace, bounded, frobenius_sq, temperature)  # (..., 100)
    found = localization(THETA, rho)
    return found.index, found.centre, found.level


def null_localization(draws: NullDraws, frobenius_sq: Tensor, temperature: float) -> Tensor:
    """Localization index of the random heads scaled to each head's Frobenius norm, (heads, draws)."""
    norm_sq = frobenius_sq[:, None]  # (heads, 1)
    square = norm_sq.expand(-1, len(draws.trace))
    return localization_of(draws.trace * norm_sq.sqrt(), draws.trace_sq * norm_sq, square, temperature)[0]

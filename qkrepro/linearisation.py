"""How far the piecewise-linear softmax S is from softmax A, and what share of the keys it shuts off.

Closed forms for independent Gaussian logits ω_i ~ N(0, (spread·λ)²), and the experiment beside them. "Spread" is the
standard deviation of the logits over the temperature. Source: book, "The softmax and its linearisation"; derived.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Generator, Tensor

from qkrepro.attention import piecewise_linear_attention, saturation, softmax_attention
from qkrepro.errors import check_integer, check_number


class GaussianClipping(NamedTuple):
    """Expectations over T independent Gaussian logits, each float64 and shaped like the spread."""

    share_low: Tensor  # share of keys with weight clipped to 0
    share_high: Tensor  # share of keys with weight clipped to 1
    row_sum: Tensor  # Σ S_i, 1 as long as nothing is clipped


def linearisation_error(logits: Tensor, temperature: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
    """Total error Σ_i |S_i − A_i| of a row: 0 where they agree, 2 where two probabilities share no key.

    logits: (..., T). temperature: λ > 0. mask: True for visible. Returns float64, (...).
    Raises as `qkrepro.attention.softmax_attention` does.
    """
    linear = piecewise_linear_attention(logits, temperature, mask=mask)
    return (linear - softmax_attention(logits, temperature, mask=mask)).abs().sum(-1)


def small_spread_error(spread: Tensor) -> Tensor:
    """Leading order of the mean total error as spread → 0 and T → ∞, 2 φ(1) spread² = 0.484 spread².

    The weights differ by (u² − mean of u²)/(2T) to second order, u = (ω − ω̄)/λ, and E|Z² − 1|/2 = 2 φ(1).
    Returns float64, shaped like `spread`.
    """
    return 2 * _density(torch.ones((), dtype=torch.float64)) * spread.double().square()


def gaussian_clipping(spread: Tensor, length: int) -> GaussianClipping:
    """Closed form of what is clipped: u = (ω − ω̄)/λ is N(0, τ²), τ² = spread² (1 − 1/T), and T S = clip(1 + u, 0, T).

    spread: > 0, any shape. length: T >= 2. Raises ArgumentError outside of these.
    """
    check_integer("length", length, at_least=2)
    check_number("spread", float(spread.min()), above=0)
    deviation = spread.double() * (1 - 1 / length) ** 0.5  # τ
    low, high = -1 / deviation, (length - 1) / deviation
    share_low, share_high = torch.special.ndtr(low), torch.special.ndtr(-high)
    inside = 1 - share_low - share_high + deviation * (_density(low) - _density(high))  # E (1 + u) over the unclipped
    return GaussianClipping(share_low, share_high, inside + length * share_high)


def linearisation_draws(
    spreads: Sequence[float], *, length: int, temperature: float, draws: int, generator: Generator
) -> pd.DataFrame:
    """Compare S and A on rows of Gaussian logits; the same draws, scaled, serve every spread (paired).

    spreads: standard deviations of the logits over the temperature. length: keys a row. draws: rows a spread.
    Returns one row a draw and spread: spread, draw, error (Σ|S − A|), share_low, share_high (of keys), row_sum (Σ S).
    """
    check_integer("length", length, at_least=2)
    check_integer("draws", draws, at_least=1)
    noise = torch.randn(draws, length, generator=generator, dtype=torch.float64)
    tables = []
    for spread in spreads:
        check_number("spreads", spread, above=0)
        logits = spread * temperature * noise  # (draws, T)
        state = saturation(logits, temperature)
        columns = {
            "spread": torch.full((draws,), spread, dtype=torch.float64),
            "draw": torch.arange(draws),
            "error": linearisation_error(logits, temperature),
            "share_low": (state < 0).double().mean(-1),
            "share_high": (state > 0).double().mean(-1),
            "row_sum": piecewise_linear_attention(logits, temperature).sum(-1),
        }
        tables.append(pd.DataFrame({name: column.numpy() for name, column in columns.items()}))
    return pd.concat(tables, ignore_index=True)


def moved_logit(offsets: Tensor, *, length: int, temperature: float = 1.0) -> pd.DataFrame:
    """Weights when one key's logit is `offset` above T − 1 equal ones.

    offsets: (n,), in the unit of the logits. Returns one row an offset and function: offset (in units of λ), function
    ("softmax", "piecewise linear"), moved (weight of the moved key), other (weight of each other key).
    """
    check_integer("length", length, at_least=2)
    logits = torch.zeros(len(offsets), length, dtype=torch.float64)
    logits[:, 0] = offsets.double()
    tables = []
    for name, attend in [("softmax", softmax_attention), ("piecewise linear", piecewise_linear_attention)]:
        weights = attend(logits, temperature)  # (n, T)
        columns = {"offset": offsets / temperature, "moved": weights[:, 0], "other": weights[:, 1]}
        table = pd.DataFrame({key: column.numpy() for key, column in columns.items()})
        tables.append(table.assign(function=name))
    return pd.concat(tables, ignore_index=True)


def _density(x: Tensor) -> Tensor:
    density: Tensor = torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5
    return density

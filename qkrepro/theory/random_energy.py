"""Entropy of the true softmax when the other tokens are independent: the law of long rows and its exact finite form.

Given the query, the logits of n independent tokens are independent N(0, v), the energies of Derrida's random energy
model, and the query's own logit is one more number. Logits are in units of the temperature: spread is s = √v/λ, own is
x_Tᵀ W x_T/λ. Entropies are in nats, everything is float64.
Source: book, "Theory: how large the mean must be"; Derrida 1981; Giorlandino and Goldt 2025 (arXiv 2505.24333).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch import Generator, Tensor

from qkrepro.errors import ShapeError, check_finite, check_integer, check_number
from qkrepro.theory.attention import attention_entropy, softmax_attention
from qkrepro.theory.depth import Spectrum, Stack, first_attention, layer_entropy

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64

STEP = 0.25  # of both quadratures: analytic in a strip of half-width π/2, so they err by about e^{−π²/STEP}
REACH = 12.0  # standard deviations of a logit that the quadrature covers


class ExpectedRow(NamedTuple):
    """Expectations over the other tokens' logits, one number per own logit: float64 tensors of its shape."""

    entropy: Tensor  # nats
    own_weight: Tensor  # of the query's own token


def spread_ratio(spread: float, count: int) -> float:
    """Return b = s/√(2 log n), the spread of n >= 2 independent logits over the one at which their softmax freezes.

    Raises ArgumentError for s < 0 or n < 2.
    """
    check_number("spread", spread, at_least=0)
    check_integer("count", count, at_least=2)
    return spread / math.sqrt(2 * math.log(count))


def entropy_limit(ratio: Float[Tensor, "*shape"] | float) -> Float64[Tensor, "*shape"]:
    """Return the limit of H/log n as n → ∞ at a fixed ratio b: 1 − b² below b = 1, and 0 from there on.

    ratio: b >= 0, any shape. Returns float64 of that shape. Raises ArgumentError for b < 0.
    """
    return (1 - _not_negative("ratio", ratio).square()).clamp(min=0)


def log_partition_limit(ratio: Float[Tensor, "*shape"] | float) -> Float64[Tensor, "*shape"]:
    """Return the limit of log Σ e^{s g_i}/log n as n → ∞ at a fixed ratio b: 1 + b² up to b = 1, and 2b beyond.

    It is also the own token's threshold over log n: with an own logit of c log n the token takes all the weight for c
    above it and none below. ratio: b >= 0, any shape. Returns float64 of that shape. Raises ArgumentError for b < 0.
    """
    b = _not_negative("ratio", ratio)
    return torch.where(b <= 1, 1 + b.square(), 2 * b)


def own_token_threshold(spread: float, count: int) -> float:
    """Return the own logit over λ at which the own token takes about half of the weight beside n independent ones.

    log n + s²/2 while s < √(2 log n), and s√(2 log n) beyond. Raises as `spread_ratio` does.
    """
    return float(log_partition_limit(spread_ratio(spread, count))) * math.log(count)


def mean_entropy(count: int, spread: float) -> float:
    """Return the expected entropy in nats of a softmax of n independent N(0, s²) logits, exact for n >= 1 and s >= 0.

    By log z = ∫ (e^{−t} − e^{−tz}) dt/t, the entropy is one integral of powers of ψ(t) = E exp(−t e^{sg}).
    Raises ArgumentError for n < 1 or s < 0. Source: book, expected entropy at finite length (ours).
    """
    nothing = torch.tensor([-math.inf], dtype=torch.float64)
    return float(_expected_row(count, spread, nothing).entropy)


def mean_participation(count: int, spread: float) -> float:
    """Return the expected Σ a² of the softmax of n independent N(0, s²) logits, exact for n >= 1 and s >= 0.

    By z^{−2} = ∫ t e^{−tz} dt it is n ∫ E[(t e^{sg})² e^{−t e^{sg}}] ψ(t)^{n−1} dt/t; to 1e-5 up to n = 10¹². Its limit
    at fixed b is max(1 − 1/b, 0). Raises ArgumentError for n < 1 or s < 0. Source: Derrida 1981; finite form ours.
    """
    check_integer("count", count, at_least=1)
    check_number("spread", spread, at_least=0)
    end = REACH * spread + 5
    u = torch.arange(-(end + math.log(count) + 40), end, STEP, dtype=torch.float64)  # (U,), log t
    g, density = _standard_normal(spread)
    scale = (u[:, None] + spread * g).clamp(max=300).exp()  # (U, G), beyond it e^{−scale} is zero
    log_psi = torch.log1p(-(-torch.expm1(-scale) @ density).clamp(max=1 - 1e-16))  # (U,)
    integrand = count * ((count - 1) * log_psi).exp() * ((scale.square() * (-scale).exp()) @ density)
    return float(integrand.sum() * STEP)


def expected_row(count: int, spread: float, own: Float[Tensor, "*shape"]) -> ExpectedRow:
    """Return the expected entropy and own weight of a row of n independent N(0, s²) logits and one own logit, exact.

    count: n >= 1. spread: s >= 0. own: own logits over λ, any shape, finite; the others are drawn independently of it.
    Returns float64 tensors shaped like `own`. Raises ArgumentError for n < 1, s < 0 or a non-finite own logit.
    """
    values = torch.as_tensor(own, dtype=torch.float64)
    check_finite("own", values)
    row = _expected_row(count, spread, values.reshape(-1))
    return ExpectedRow(row.entropy.reshape(values.shape), row.own_weight.reshape(values.shape))


def concentrated_row(
    length: int, dim: int, scaled_mean: Float[Tensor, " means"], dispersion: float = 0.0
) -> ExpectedRow:
    """Return the expected entropy and own weight of a query among independent tokens of norm √d.

    The other logits have variance (ξ/λ)²/d + dispersion², the own one is N(ξ/λ, 2 dispersion²): both are Gaussian in
    the limit of many dimensions.

    Parameters
    ----------
    length, dim
        Tokens T >= 2, the query included, and their dimension d >= 1.
    scaled_mean
        ξ/λ of W, (m,).
    dispersion
        √(dσ²)/λ >= 0 of W.

    Returns
    -------
    ExpectedRow
        Float64 tensors, (m,) each.

    Raises
    ------
    ArgumentError, ShapeError
        A value out of range, or means that are not (m,).
    """
    check_integer("length", length, at_least=2)
    check_integer("dim", dim, at_least=1)
    check_number("dispersion", dispersion, at_least=0)
    means = torch.as_tensor(scaled_mean, dtype=torch.float64)
    if means.ndim != 1:
        raise ShapeError(f"scaled_mean must have shape (m,), got {tuple(means.shape)}")
    nodes, weights = _standard_normal(dispersion)
    rows = []
    for mean in means.tolist():
        spread = math.sqrt(mean**2 / dim + dispersion**2)
        row = expected_row(length - 1, spread, mean + math.sqrt(2) * dispersion * nodes)
        rows.append(torch.stack([row.entropy @ weights, row.own_weight @ weights]))
    entropy, own_weight = torch.stack(rows).T
    return ExpectedRow(entropy, own_weight)


def entropy_over_spread(counts: Sequence[int], ratios: Sequence[float], *, draws: int, seed: int) -> pd.DataFrame:
    """Return the entropy of rows of independent logits over log n: simulated, exact expectation and limit.

    counts: n. ratios: b, spread over √(2 log n). draws: rows simulated for each n. One row a case: count, ratio,
    simulated, standard_error, exact, limit.
    """
    generator = Generator().manual_seed(seed)
    rows = []
    for count in counts:
        noise = torch.randn(draws, count, generator=generator, dtype=torch.float64)
        for ratio in ratios:
            spread = ratio * math.sqrt(2 * math.log(count))
            sample = attention_entropy(softmax_attention(spread * noise)) / math.log(count)  # (draws,)
            simulated, error = float(sample.mean()), float(sample.std()) / math.sqrt(draws)
            exact = mean_entropy(count, spread) / math.log(count)
            rows.append((count, ratio, simulated, error, exact, float(entropy_limit(ratio))))
    return pd.DataFrame(rows, columns=["count", "ratio", "simulated", "standard_error", "exact", "limit"])


def entropy_over_dispersion(
    growths: Sequence[float], dispersions: Sequence[float], *, length: int, dim: int, seeds: Iterable[int]
) -> pd.DataFrame:
    """Return the entropy of independent tokens in one layer over the dispersion, at means of growth · log T.

    Symmetric matrices of drawn spectra, of width `dim`, one draw a seed. Columns growth, mean_scaled, dispersion, seed,
    entropy_ratio (last half of the queries, to uniform attention) and predicted (the exact expectation at the middle of
    that half).
    """
    stack = Stack(layers=1, length=length, dim=dim, tokens="independent")
    table = pd.DataFrame(product(growths, dispersions), columns=["growth", "dispersion"])
    table.insert(1, "mean_scaled", table["growth"] * math.log(length))
    spectra = [Spectrum(*pair) for pair in table[["mean_scaled", "dispersion"]].to_numpy().tolist()]
    middle = round(0.75 * length)
    rows = [
        concentrated_row(middle, dim, torch.tensor([trace], dtype=torch.float64), spread) for trace, spread in spectra
    ]
    predicted = torch.cat([row.entropy for row in rows]) / stack.entropy_scale
    drawn = []
    for seed in seeds:
        entropy = layer_entropy(first_attention(spectra, stack, seed=seed)) / stack.entropy_scale
        drawn.append(table.assign(seed=seed, entropy_ratio=entropy.numpy(), predicted=predicted.numpy()))
    return pd.concat(drawn, ignore_index=True)


def _expected_row(count: int, spread: float, own: Tensor) -> ExpectedRow:
    """Return `expected_row` for own logits (m,), −∞ for none.

    With t = e^u, F = E log Σ e^{θ·logit} = ∫ (exp(−e^u) − ψ^n o) du, o = exp(−e^{u + own}), and H = F − dF/dθ at θ = 1.
    """
    check_integer("count", count, at_least=1)
    check_number("spread", spread, at_least=0)
    finite = own[own.isfinite()]
    top = max(float(finite.max()), 0.0) if len(finite) else 0.0
    low = -(REACH * spread + math.log(count) + top + 45)  # below, e^{-45} of the integrand is left
    high = REACH * spread + 5 - min(float(finite.min()), 0.0) if len(finite) else REACH * spread + 5
    u = torch.arange(low, high + STEP, STEP, dtype=torch.float64)  # (U,)
    g, density = _standard_normal(spread)
    exponent = u[:, None] + spread * g  # (U, G), log of t e^{sg}
    scale = exponent.clamp(max=700).exp()
    decay = (-scale).exp()
    beyond = (-torch.expm1(-scale) @ density).clamp(max=1 - 1e-16)  # (U,), 1 − ψ
    log_psi = torch.log1p(-beyond)
    slope = (scale * decay) @ (spread * g * density)  # (U,), −dψ/dθ
    own_scale = (u + own[:, None]).clamp(max=700).exp()  # (m, U), 0 without an own token
    own_decay = (-own_scale).exp()
    all_decay = (count * log_psi).exp() * own_decay  # (m, U), ψ^n o
    others = count * ((count - 1) * log_psi).exp() * slope * own_decay
    weight = own_scale * all_decay
    scaled = own.clamp(min=-1e300)[:, None] * weight  # −∞ · 0 is 0 here
    entropy = (-u.clamp(max=700).exp()).exp() - all_decay - others - scaled
    return ExpectedRow((entropy.sum(-1) * STEP).clamp(min=0), weight.sum(-1) * STEP)


def _standard_normal(spread: float) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the trapezoidal rule for a standard normal g, fine enough for functions of s·g."""
    step = STEP / max(spread, 0.5)
    half = math.ceil(REACH / step)
    g = step * torch.arange(-half, half + 1, dtype=torch.float64)
    weights = torch.exp(-g.square() / 2)
    return g, weights / weights.sum()


def _not_negative(name: str, value: Tensor | float) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float64)
    check_finite(name, values)
    check_number(name, float(values.min()), at_least=0)
    return values

"""How far the entropy of softmax attention can fall: lower bounds from norms, and its deficit at high temperature.

Entropies are in nats. Source: book, "Entropy and rank" (with proofs); Zhai et al. 2023 (arXiv 2303.06296), which has
the first of the bounds.

Closed forms for the true softmax when all eigenvalues are equal, on raw walks and on normalised ones, in the scaled
mean ξ̂ = ξ/λ: the trace of M over the temperature. Source: book, "Theory: entropy and rank" (ours).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_choice, check_finite, check_integer, check_number
from qkrepro.theory.attention import attention_entropy, attention_logits, causal_mask, softmax_attention
from qkrepro.theory.spectrum import SpectrumMoments

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64

BoundKind = Literal["zhai", "centred", "logits"]
BOUND_KINDS: tuple[BoundKind, ...] = ("zhai", "centred", "logits")
SMALL = 1e-2  # |ξ̂| below which the series of log Z − ξ̂ (log Z)′ is used; its next term is of order ξ̂³/135


def entropy_lower_bound(spectral_norm_logits: Tensor | float, length: Tensor | int) -> Float64[Tensor, "*shape"]:
    """Return the least entropy of a softmax over T keys whose centred logits over λ have Euclidean norm at most σ̄.

    log(1 + (T − 1)β) + σ̄ √(T(T − 1)) β / (1 + (T − 1)β) with β = exp(−σ̄ √(T/(T − 1))): attained by one logit up and
    the others equal, log T at σ̄ = 0, decreasing to 0. The published form has σ̄ = ‖W‖₂ ‖XXᵀ‖₂ / λ.
    spectral_norm_logits: σ̄ >= 0, any shape. length: T >= 1, an integer or integers that broadcast (T = 1 gives 0).
    Returns float64 nats; 0 where the value underflows (`log_entropy_lower_bound` does not).
    Raises ArgumentError for a negative or non-finite σ̄ and for T < 1.
    Source: arXiv 2303.06296; book, "Entropy collapse", has a proof.
    """
    return log_entropy_lower_bound(spectral_norm_logits, length).exp()


def log_entropy_lower_bound(spectral_norm_logits: Tensor | float, length: Tensor | int) -> Float64[Tensor, "*shape"]:
    """Return the natural logarithm of `entropy_lower_bound`, finite for every σ̄ when T >= 2, −inf for T = 1."""
    sigma, size = _checked_bound(spectral_norm_logits, length)
    others = (size - 1).clamp(min=1)  # T = 1 is put right at the end
    gap = sigma * (size.clamp(min=2) / others).sqrt()  # by how much the extremal logit exceeds the others
    rest = others.log() - gap  # log of (T − 1)β, the weight of the others beside the 1 of the largest
    # bound = log1p(u) + gap · u/(1 + u) with u = e^rest; divided by u it never underflows
    u = rest.exp()
    ratio = torch.where(rest < -30, torch.ones_like(u), torch.log1p(u) / u.clamp(min=1e-300)) + gap / (1 + u)
    return torch.where(size > 1, rest + ratio.log(), torch.full_like(rest, -torch.inf))


def causal_logit_norms(
    tokens: Float[Tensor, "*batch T d"], w: Float[Tensor, "*weights d d"], *, kind: BoundKind = "zhai"
) -> Float64[Tensor, "... T"]:
    """Return σ̄ λ of every causal row; row t sees the t tokens X up to its own (x_t the query, x̄ their mean).

    kind, from the published bound to the sharpest of this family, each at most the one before:
    "zhai" ‖W‖₂ ‖XXᵀ‖₂; "centred" ‖W‖₂ ‖X − 1x̄ᵀ‖₂ ‖x_t‖; "logits" ‖ω − ω̄‖₂ itself.
    tokens: (..., T, d). w: (d, d) or (..., d, d). Returns float64, (..., T).
    Raises ArgumentError for another kind or non-finite values, ShapeError when d differs.
    """
    check_choice("kind", kind, BOUND_KINDS)
    logits = attention_logits(tokens, w)  # checks shapes and finiteness
    x, matrix_norm = tokens.double(), torch.linalg.matrix_norm(w.double(), 2)  # (..., T, d), (...)
    rows = []
    for t in range(1, x.shape[-2] + 1):
        visible = x[..., :t, :]
        centred = visible - visible.mean(-2, keepdim=True)
        if kind == "zhai":
            rows.append(matrix_norm * torch.linalg.matrix_norm(visible, 2).square())
        elif kind == "centred":
            rows.append(matrix_norm * torch.linalg.matrix_norm(centred, 2) * x[..., t - 1, :].norm(dim=-1))
        else:
            row = logits[..., t - 1, :t]
            rows.append((row - row.mean(-1, keepdim=True)).norm(dim=-1))
    return torch.stack(rows, dim=-1)


def entropy_and_bounds(
    tokens: Float[Tensor, "T d"], w: Float[Tensor, "d d"], temperatures: Sequence[float]
) -> pd.DataFrame:
    """Return the measured causal entropy beside its lower bounds: means over the last half of the queries, in nats.

    tokens: (T, d). w: (d, d). temperatures: λ > 0, each.
    Returns one row per temperature: temperature, entropy, one column per kind of `causal_logit_norms`, log10_zhai (the
    common logarithm of the bound, which may be far below what a float holds), and violated (rows where a bound exceeds
    the entropy by more than rounding). Raises as `causal_logit_norms` does, and
    ArgumentError for λ <= 0.
    """
    length = tokens.shape[-2]
    late = torch.arange(length // 2, length)
    norms = {kind: causal_logit_norms(tokens, w, kind=kind)[late] for kind in BOUND_KINDS}
    logits, mask = attention_logits(tokens, w), causal_mask(length)
    rows = []
    for temperature in temperatures:
        measured = attention_entropy(softmax_attention(logits, temperature, mask=mask))[late]
        logs = {kind: log_entropy_lower_bound(norms[kind] / temperature, late + 1) for kind in BOUND_KINDS}
        violated = [int((log.exp() > measured * (1 + 1e-6) + 1e-12).sum()) for log in logs.values()]
        row = {"temperature": temperature, "entropy": float(measured.mean()), "violated": sum(violated)}
        row |= {kind: float(log.exp().mean()) for kind, log in logs.items()}
        log_mean = float(torch.logsumexp(logs["zhai"], 0)) - math.log(len(late))
        rows.append(row | {"log10_zhai": log_mean / math.log(10)})
    return pd.DataFrame(rows)


def high_temperature_deficit(
    moments: SpectrumMoments, length: int, temperature: Float[Tensor, "*temperatures"] | float
) -> Float64[Tensor, "*shape"]:
    """Return the leading order of E[log T − H] for the last query of a raw random walk, as λ → ∞; nats.

    (T² − 1)/(24 λ²) · (ξ² + 2‖M‖_F² + tr M²): at a given trace it is least exactly for equal eigenvalues.
    moments: of M, W in whitened tokens (W itself for increments of unit covariance). temperature: λ > 0, any shape.
    Returns float64, of the broadcast shape. Source: book, "Entropy and rank", high temperature (ours).
    """
    check_integer("length", length, at_least=2)
    scale = torch.as_tensor(temperature, dtype=torch.float64)
    check_number("temperature", float(scale.min()), above=0)
    logits_sq = moments.trace.square() + 2 * moments.frobenius_sq + moments.trace_sq
    deficit: Tensor = (length**2 - 1) / (24 * scale.square()) * logits_sq
    return deficit


def extremal_logits(sigma: float, length: int) -> Float64[Tensor, " length"]:
    """Return the centred logits (T,) of Euclidean norm σ̄ with the least entropy: one is up, the others are equal."""
    check_number("sigma", sigma, at_least=0)
    _, size = _checked_bound(sigma, length)
    logits = torch.full((length,), -1.0 / length, dtype=torch.float64)
    logits[0] += 1
    return logits * sigma * math.sqrt(float(size) / (float(size) - 1)) if length > 1 else torch.zeros(1).double()


def geometric_entropy(scaled_mean: Float[Tensor, "*shape"] | float, length: int) -> Float64[Tensor, "*shape"]:
    """Return the entropy in nats of the last token's attention on a raw walk when T ≪ d, log Z + ξ̂ E[j].

    Attention is then geometric, with ratio e^{−ξ̂} from the last token (j = 0) back. As T → ∞ it stays bounded while
    log T grows.

    scaled_mean: > 0, any shape. Returns float64, shaped like scaled_mean. Raises ArgumentError for T < 2 or a ξ̂ that
    is not finite. Source: book, "Theory: entropy and rank", geometric attention.
    """
    check_integer("length", length, at_least=2)
    scaled_mean = _finite("scaled_mean", scaled_mean)
    short, whole = -torch.expm1(-scaled_mean), -torch.expm1(-scaled_mean * length)  # 1 − e^{−ξ̂}, 1 − e^{−ξ̂T}
    mean = (-scaled_mean).exp() / short - length * (-scaled_mean * length).exp() / whole  # E[j]
    entropy: Tensor = (whole / short).log() + scaled_mean * mean
    return entropy


def normalised_walk_deficit(scaled_mean: Float[Tensor, "*shape"] | float) -> Float64[Tensor, "*shape"]:
    """Return log T − H of the last token's attention on a walk normalised by LayerNorm, d → ∞ first and T → ∞ after.

    H − log T → log Z − ξ̂ (log Z)′ with Z = ∫_0^1 e^{ξ̂√θ} dθ = 2((ξ̂ − 1)e^ξ̂ + 1)/ξ̂². scaled_mean: any finite number or
    tensor, of either sign. Returns float64 nats, shaped like scaled_mean. It does not grow with the length.
    """
    scaled_mean = _finite("scaled_mean", scaled_mean)
    safe = torch.where(scaled_mean.abs() < SMALL, torch.ones_like(scaled_mean), scaled_mean)
    tilted = (safe - 1) * safe.exp() + 1  # ξ̂² Z/2, and ξ̂ e^ξ̂ is its derivative
    log_z = (2 * tilted / safe.square()).log()
    slope = safe * safe.exp() / tilted - 2 / safe  # (log Z)′
    series = scaled_mean.square() / 36 - scaled_mean.pow(3) / 405  # Var √θ = 1/18, third cumulant of √θ is −1/135
    return torch.where(scaled_mean.abs() < SMALL, series, safe * slope - log_z)


def _checked_bound(sigma: Tensor | float, length: Tensor | int) -> tuple[Tensor, Tensor]:
    norm, size = torch.as_tensor(sigma, dtype=torch.float64), torch.as_tensor(length)
    check_finite("spectral_norm_logits", norm)
    if bool((norm < 0).any()):
        raise ArgumentError(f"spectral_norm_logits must be >= 0, got {float(norm.min()):g}")
    if size.dtype.is_floating_point or size.dtype == torch.bool or bool((size < 1).any()):
        raise ArgumentError(f"length must be an integer >= 1, got {length!r}")
    try:
        shape = np.broadcast_shapes(norm.shape, size.shape)
    except ValueError:
        raise ShapeError(
            f"spectral_norm_logits and length must broadcast, got {tuple(norm.shape)} and {tuple(size.shape)}"
        ) from None
    return norm.broadcast_to(shape), size.to(norm.device, torch.float64).broadcast_to(shape)


def _finite(name: str, value: Any) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float64)
    check_finite(name, values)
    return values

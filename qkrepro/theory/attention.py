"""Attention weights from logits: softmax, its piecewise-linear approximation, and what each passes on.

Logits and weights are (..., T), the last dimension running over the keys; a boolean mask of that shape (or one that
broadcasts to it) says which keys are visible, True for visible. Everything is float64, entropies are in nats.
Source: book, "The softmax and its linearisation"; theory, piecewise-linear softmax (reported of arXiv 2402.02098).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_finite, check_integer, check_number
from qkrepro.theory.spectrum import check_square

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Bool, Float, Float64, Int8


class GradientMass(NamedTuple):
    """How much gradient the softmax lets through."""

    site: Tensor  # (..., T), A_i (1 − A_i) = ∂A_i/∂(ω_i/λ)
    total: Tensor  # (...), 1 − Σ A_i² = the sum over sites; 0 for one-hot attention, 1 − 1/T for uniform


def causal_mask(length: int) -> Bool[Tensor, "length length"]:
    """Return the (length, length) mask by which query t (row) sees keys 1 … t (columns). Raises for length < 1."""
    check_integer("length", length, at_least=1)
    return torch.ones(length, length, dtype=torch.bool).tril()


def attention_logits(
    tokens: Float[Tensor, "*batch T d"], w: Float[Tensor, "*weights d d"]
) -> Float64[Tensor, "... T T"]:
    """Return the logits ω[t, i] = x_tᵀ W x_i of every query t (row) and key i (column); the theory's are row T.

    tokens: (..., T, d); w: W_QK, (d, d) or (..., d, d), as `qk_matrix` returns it.
    Returns float64, (..., T, T), unmasked, not divided by λ.
    Raises ShapeError when d differs, ArgumentError for non-finite values.
    """
    check_square("w", w)
    if tokens.ndim < 2 or tokens.shape[-1] != w.shape[-1]:
        raise ShapeError(f"tokens must have shape (..., T, {w.shape[-1]}), got {tuple(tokens.shape)}")
    check_finite("tokens", tokens)
    x = tokens.double()
    return x @ w.double() @ x.mT  # (..., T, T): row t, column i is x_tᵀ W x_i


def softmax_attention(
    logits: Float[Tensor, "*batch T"], temperature: float = 1.0, *, mask: Bool[Tensor, "*visible T"] | None = None
) -> Float64[Tensor, "*batch T"]:
    """Return the softmax of logits / temperature over the visible keys; hidden ones get 0.

    logits: (..., T), finite. temperature: λ > 0 (√d_head in a standard layer). Returns float64, (..., T).
    Raises ArgumentError for λ <= 0, non-finite logits, a row with nothing visible; ShapeError for the mask's shape.
    """
    visible = _visible(logits, temperature, mask)
    return torch.softmax((logits.double() / temperature).masked_fill_(~visible, -torch.inf), dim=-1)


def piecewise_linear_attention(
    logits: Float[Tensor, "*batch T"], temperature: float = 1.0, *, mask: Bool[Tensor, "*visible T"] | None = None
) -> Float64[Tensor, "*batch T"]:
    """Return the softmax to first order around equal logits, clipped: S_i = clip(1/T + (ω_i − ω̄)/(λT), 0, 1).

    T is the number of visible keys and ω̄ their mean logit, so a causal row t uses T = t. Hidden keys get 0.
    logits: (..., T), finite. temperature: λ > 0. Returns float64, (..., T); once clipped, rows do not sum to 1.
    Raises as `softmax_attention` does.
    """
    centred, count, visible = _centred(logits, temperature, mask)
    return ((1 + centred / temperature) / count).clamp(0, 1).masked_fill(~visible, 0.0)


def saturation(
    logits: Float[Tensor, "*batch T"], temperature: float = 1.0, *, mask: Bool[Tensor, "*visible T"] | None = None
) -> Int8[Tensor, "*batch T"]:
    """Return where the linearisation is clipped: −1 below (ω_i − ω̄ <= −λ), +1 above (>= λ(T − 1)), 0 in between.

    Gradient passes where it is 0. A key that is alone (T = 1) counts as +1, a hidden key as −1. The thresholds are the
    linearisation's; the true softmax saturates near λ log T. Returns int8, (..., T). Raises as `softmax_attention`.
    """
    centred, count, visible = _centred(logits, temperature, mask)
    low = (centred <= -temperature) | ~visible
    high = (centred >= temperature * (count - 1)) & visible
    return high.to(torch.int8) - (low & ~high).to(torch.int8)


def attention_entropy(attention: Float[Tensor, "*batch T"]) -> Float64[Tensor, "*batch"]:
    """Return the entropy −Σ A_i log A_i of attention weights, in nats, between 0 (one-hot) and log T (uniform).

    attention: (..., T), rows that are probabilities. Returns float64, (...). Accurate down to entropies of 1e-300,
    where 1 − A_i has long rounded to 0 (the weight above one half is taken as one minus the others).
    Raises ArgumentError for a row that is not a probability (normalise `piecewise_linear_attention` first).
    """
    weights, complement = _complement(attention)
    surprise = torch.where(weights > 0.5, -weights * torch.log1p(-complement), torch.special.entr(weights))
    return surprise.sum(-1)


def softmax_gradient_mass(attention: Float[Tensor, "*batch T"]) -> GradientMass:
    """Return A_i(1 − A_i) per site, and in total 1 − ΣA_i².

    attention: (..., T), rows that are probabilities. Returns float64 `site` (..., T) and `total` (...).
    Accurate for almost one-hot rows, as `attention_entropy` is. Raises ArgumentError as it does.
    """
    weights, complement = _complement(attention)
    site = weights * complement
    return GradientMass(site=site, total=site.sum(-1))


def _visible(logits: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
    """Check the input and return the mask, of a shape that broadcasts to that of the logits."""
    check_number("temperature", temperature, above=0)
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise ShapeError(f"logits must have shape (..., T) with T >= 1, got {tuple(logits.shape)}")
    check_finite("logits", logits)
    if mask is None:
        return torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    if mask.dtype != torch.bool:
        raise ArgumentError(f"mask must have dtype torch.bool (True for visible), got {mask.dtype}")
    try:
        mask.broadcast_to(logits.shape)
    except RuntimeError:
        raise ShapeError(
            f"mask must broadcast to the shape of logits {tuple(logits.shape)}, got {tuple(mask.shape)}"
        ) from None
    if not bool(mask.any(-1).all()):
        raise ArgumentError("mask must leave at least one visible key per row")
    return mask.to(logits.device)


def _centred(logits: Tensor, temperature: float, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return ω_i − ω̄ (..., T), the number of visible keys and the mask; both broadcast to (..., T)."""
    visible = _visible(logits, temperature, mask)
    count = visible.sum(-1, keepdim=True)
    values = logits.double().masked_fill(~visible, 0.0)
    return values - values.sum(-1, keepdim=True) / count, count, visible


def _complement(attention: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights and 1 − A_i, the latter free of cancellation; checks that rows are probabilities."""
    check_finite("attention", attention)
    weights = attention.double()
    worst = float((weights.sum(-1) - 1).abs().max())
    if bool((weights < 0).any()) or worst > 1e-3:
        raise ArgumentError(
            "attention must hold probabilities (weights >= 0, rows that sum to 1 within 0.001), "
            f"got a smallest weight {float(weights.min()):.3g} and a sum {worst:.3g} away from 1"
        )
    others = weights.masked_fill(weights > 0.5, 0.0).sum(-1, keepdim=True)  # at most one weight is above one half
    return weights, torch.where(weights > 0.5, others, 1 - weights)

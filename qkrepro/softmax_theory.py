"""Closed forms for the true softmax when all eigenvalues are equal: on raw walks and on normalised ones.

κ = ξ/λ is the trace of M over the temperature. The expansion at high temperature, for every M, is
`entropy_bound.high_temperature_deficit`. Source: book, "Theory: entropy and rank" (ours).
"""

from typing import Any

import torch
from torch import Tensor

from qkrepro.errors import check_finite, check_integer

SMALL = 1e-2  # |κ| below which the series of log Z − κ (log Z)′ is used; its next term is of order κ³/135


def geometric_attention(kappa: float, length: int) -> Tensor:
    """Attention of the last token of a raw walk when T ≪ d: geometric with ratio e^{−κ} from the last token back.

    kappa: any finite number; length: T >= 2 tokens. Returns float64, (T,), positions 1 … T.
    Raises ArgumentError for another κ or T. Source: book, "Theory: entropy and rank", geometric attention.
    """
    check_integer("length", length, at_least=2)
    steps = torch.arange(1 - length, 1, dtype=torch.float64)  # (T,), −j for the j-th token from the end
    weights: Tensor = torch.softmax(_finite("kappa", kappa) * steps, dim=-1)
    return weights


def geometric_entropy(kappa: Any, length: int) -> Tensor:
    """Entropy in nats of `geometric_attention`, in closed form: log Z + κ E[j] of the truncated geometric law.

    kappa: > 0, any shape. Returns float64, shaped like kappa. As T → ∞ it stays bounded while log T grows.
    """
    check_integer("length", length, at_least=2)
    kappa = _finite("kappa", kappa)
    short, whole = -torch.expm1(-kappa), -torch.expm1(-kappa * length)  # 1 − e^{−κ}, 1 − e^{−κT}
    mean = (-kappa).exp() / short - length * (-kappa * length).exp() / whole  # E[j], j = 0 at the last token
    entropy: Tensor = (whole / short).log() + kappa * mean
    return entropy


def normalised_walk_deficit(kappa: Any) -> Tensor:
    """log T − H of the last token's attention on a walk normalised by LayerNorm, d → ∞ first and T → ∞ after.

    H − log T → log Z − κ (log Z)′ with Z = ∫_0^1 e^{κ√θ} dθ = 2((κ − 1)e^κ + 1)/κ². kappa: any finite number or
    tensor, of either sign. Returns float64 nats, shaped like kappa. It does not grow with the length.
    """
    kappa = _finite("kappa", kappa)
    safe = torch.where(kappa.abs() < SMALL, torch.ones_like(kappa), kappa)
    tilted = (safe - 1) * safe.exp() + 1  # κ² Z/2, and κ e^κ is its derivative
    log_z = (2 * tilted / safe.square()).log()
    slope = safe * safe.exp() / tilted - 2 / safe  # (log Z)′
    series = kappa.square() / 36 - kappa.pow(3) / 405  # Var √θ = 1/18, third cumulant of √θ is −1/135
    return torch.where(kappa.abs() < SMALL, series, safe * slope - log_z)


def _finite(name: str, value: Any) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float64)
    check_finite(name, values)
    return values

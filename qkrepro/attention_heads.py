"""One attention head as tensors: its query and key weights and its logits, with all that acts between them.

    logit(query at n, key at m) = c · ((gain_q ⊙ q̂) ᵀ R(m − n) (gain_k ⊙ k̂)),  q = w_q x + b_q,  k = w_k x + b_k

in the notation of `attention_layers`, which says what the parts are.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkrepro.attention_layers import InputNorm, QKLayer, QKNorm
from qkrepro.rotary import Rotary


@dataclass(frozen=True)
class QKHead:
    """One attention head. w_q, w_k: (d_head, d_model) float64, q = w_q x + b_q; b_q, b_k: (d_head,) or None."""

    layer: int
    head: int
    w_q: Tensor
    w_k: Tensor
    b_q: Tensor | None
    b_k: Tensor | None
    multiplier: float  # of the logits; 1/√d_head unless the model says otherwise
    part: str = ""  # the tower, for models of several
    softcap: float | None = None  # Gemma 2: the logit ω becomes softcap · tanh(ω / softcap)
    rotary: Rotary | None = None
    qk_norm: QKNorm | None = None
    input_norm: InputNorm | None = None

    @property
    def temperature(self) -> float:
        """λ of the book: one over the model's own logit multiplier."""
        return 1 / self.multiplier

    def logits(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Attention logits, (..., T, T) float64, row = query, before any mask; x is what the projections read.

        x: (..., T, d_model). positions: (T,), 0 … T − 1 by default; they matter under rotary positions alone.
        """
        q = x.double() @ self.w_q.mT + (0 if self.b_q is None else self.b_q)  # (..., T, d_head)
        k = x.double() @ self.w_k.mT + (0 if self.b_k is None else self.b_k)
        if self.qk_norm is not None:
            q = rms_normalised(q, self.qk_norm.eps) * self.qk_norm.gain_q
            k = rms_normalised(k, self.qk_norm.eps) * self.qk_norm.gain_k
        logits = q @ k.mT if self.rotary is None else _rotary_logits(q, k, self.rotary, positions)
        logits = self.multiplier * logits
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


def head_of_layer(layer: QKLayer, index: int) -> QKHead:
    """One head of a layer, in tensors of its own, with the key weights that it reads."""
    key, qk_norm, input_norm = index // layer.group, layer.qk_norm, layer.input_norm
    if qk_norm is not None:
        qk_norm = QKNorm(torch.from_numpy(qk_norm.gain_q), torch.from_numpy(qk_norm.gain_k), qk_norm.eps)
    if input_norm is not None:
        bias = None if input_norm.bias is None else torch.from_numpy(input_norm.bias)
        input_norm = InputNorm(torch.from_numpy(input_norm.gain), bias)
    return QKHead(
        layer=layer.layer,
        head=index,
        w_q=_double(layer.w_q[index]),
        w_k=_double(layer.w_k[key]),
        b_q=None if layer.b_q is None else _double(layer.b_q[index]),
        b_k=None if layer.b_k is None else _double(layer.b_k[key]),
        multiplier=layer.multiplier,
        part=layer.part,
        softcap=layer.softcap,
        rotary=layer.rotary,
        qk_norm=qk_norm,
        input_norm=input_norm,
    )


def _double(values: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64, order="C"))


def rms_normalised(x: Tensor, eps: float) -> Tensor:
    """x divided by its root mean square over the last dimension."""
    normalised: Tensor = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return normalised


def _rotary_logits(q: Tensor, k: Tensor, rotary: Rotary, positions: Tensor | None) -> Tensor:
    """qᵀ R(m − n) k for every pair, by rotating queries and keys to their own positions."""
    length, d_head = q.shape[-2:]
    places = range(length) if positions is None else positions.tolist()
    rotations = np.stack([rotary.rotation(-float(place), d_head) / rotary.scaling for place in places])
    turns = torch.from_numpy(rotations)  # (T, d_head, d_head)
    rotated_q, rotated_k = (turns @ q[..., None])[..., 0], (turns @ k[..., None])[..., 0]
    logits: Tensor = rotated_q @ rotated_k.mT
    return logits

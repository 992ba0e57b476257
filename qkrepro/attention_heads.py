"""A layer's query and key weights with all that acts between them and the logits: the parts of an attention head.

    logit(query at n, key at m) = c · ((gain_q ⊙ q̂) ᵀ R(m − n) (gain_k ⊙ k̂)),  q = w_q x + b_q,  k = w_k x + b_k

with the model's multiplier c, the rotation R of rotary positions, and q̂ = q divided by its root mean square where the
model normalises queries and keys. Each part is absent (None) where the model has none.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qkrepro.rotary import Rotary


@dataclass(frozen=True)
class QKNorm:
    """Normalisation of queries and keys: each divided by its root mean square, then multiplied by a gain (d_head,)."""

    gain_q: Tensor
    gain_k: Tensor
    eps: float


@dataclass(frozen=True)
class InputNorm:
    """The normalisation that x has gone through: gain (d_model,) and bias (d_model,) or None."""

    gain: Tensor
    bias: Tensor | None


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


@dataclass(frozen=True)
class QKLayer:
    """All heads of a layer. w_q: (heads, d_head, d_model), w_k: (kv_heads, d_head, d_model), in the file's precision.

    Query head h reads key head h // (heads / kv_heads). Other fields as in QKHead; b_q (heads, d_head), b_k
    (kv_heads, d_head), float64. Whatever computes with the weights makes them float64 first.
    """

    layer: int
    w_q: Tensor
    w_k: Tensor
    b_q: Tensor | None
    b_k: Tensor | None
    multiplier: float
    part: str = ""
    softcap: float | None = None
    rotary: Rotary | None = None
    qk_norm: QKNorm | None = None
    input_norm: InputNorm | None = None

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.w_q.shape[0]

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.w_q.shape[0] // self.w_k.shape[0]

    def head(self, index: int) -> QKHead:
        """One head of the layer, with the key weights that it reads."""
        key = index // self.group
        return QKHead(
            layer=self.layer,
            head=index,
            w_q=self.w_q[index].double(),
            w_k=self.w_k[key].double(),
            b_q=None if self.b_q is None else self.b_q[index],
            b_k=None if self.b_k is None else self.b_k[key],
            **{name: getattr(self, name) for name in SHARED_FIELDS},
        )

    def folded(self) -> "QKLayer":
        """The same layer with the gain of the input's normalisation folded into w_q and w_k, its bias into b_q and b_k.

        The logits of x̂ (normalised, without gain and bias) are then those of gain ⊙ x̂ + bias in the layer as it was.
        """
        if self.input_norm is None:
            return self
        gain, bias = self.input_norm.gain, self.input_norm.bias
        b_q, b_k = _moved(self.w_q, self.b_q, bias), _moved(self.w_k, self.b_k, bias)
        w_q, w_k = self.w_q.double() * gain, self.w_k.double() * gain
        return replace(self, w_q=w_q, w_k=w_k, b_q=b_q, b_k=b_k, input_norm=None)

    def core(self, distance: float = 0, *, gains: bool = False) -> Tensor | None:
        """C (d_head, d_head) in W = w_qᵀ C w_k for a key `distance` tokens before the query; None for the identity.

        C is the rotation of rotary positions; with gains=True also the gains of query-key normalisation.
        """
        core = None
        if self.rotary is not None and (distance != 0 or self.rotary.scaling != 1):
            core = self.rotary.rotation(distance, self.w_q.shape[1])
        if gains and self.qk_norm is not None:
            core = torch.eye(self.w_q.shape[1], dtype=torch.float64) if core is None else core
            core = self.qk_norm.gain_q[:, None] * core * self.qk_norm.gain_k
        return core


SHARED_FIELDS = ("multiplier", "part", "softcap", "rotary", "qk_norm", "input_norm")


def _moved(w: Tensor, b: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Bias of a projection (heads, d_head) after the bias of its input has been moved into it."""
    if bias is None:
        return b
    moved: Tensor = w.double() @ bias  # (heads, d_head)
    return moved if b is None else b + moved


def rms_normalised(x: Tensor, eps: float) -> Tensor:
    """x divided by its root mean square over the last dimension."""
    normalised: Tensor = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return normalised


def _rotary_logits(q: Tensor, k: Tensor, rotary: Rotary, positions: Tensor | None) -> Tensor:
    """qᵀ R(m − n) k for every pair, by rotating queries and keys to their own positions."""
    length, d_head = q.shape[-2:]
    positions = torch.arange(length) if positions is None else positions
    turns = torch.stack([rotary.rotation(-float(p), d_head) / rotary.scaling for p in positions])  # (T, d_head, d_head)
    rotated_q, rotated_k = (turns @ q[..., None])[..., 0], (turns @ k[..., None])[..., 0]
    logits: Tensor = rotated_q @ rotated_k.mT
    return logits

"""A layer's query and key weights with all that acts between them and the logits, and one head of it as tensors.

    logit(query at n, key at m) = c · ((gain_q ⊙ q̂) ᵀ R(m − n) (gain_k ⊙ k̂)),  q = w_q x + b_q,  k = w_k x + b_k

with the model's multiplier c, the rotation R of rotary positions, and q̂ = q divided by its root mean square where the
model normalises queries and keys. Each part is absent (None) where the model has none. A layer holds NumPy arrays as
they were read from a file; PyTorch is imported for heads alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qkrepro.models.rotary import Rotary

if TYPE_CHECKING:  # heads are made of tensors; a table of spectra does not need them
    from jaxtyping import Float, Float64
    from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class QKNorm:
    """Normalisation of queries and keys: each divided by its root mean square, then multiplied by a gain (d_head,).

    Gains are arrays in a layer and tensors in a head, float64.
    """

    gain_q: Any
    gain_k: Any
    eps: float


@dataclass(frozen=True)
class InputNorm:
    """The normalisation that x has gone through: gain (d_model,) and bias (d_model,) or None.

    Arrays in a layer and tensors in a head, float64.
    """

    gain: Any
    bias: Any


@dataclass(frozen=True, kw_only=True)
class LogitRule:
    """What a layer and each of its heads have between queries, keys and logits."""

    multiplier: float  # of the logits; 1/√d_head unless the model says otherwise
    part: str = ""  # the tower, for models of several
    softcap: float | None = None  # Gemma 2: the logit ω becomes softcap · tanh(ω / softcap)
    rotary: Rotary | None = None
    qk_norm: QKNorm | None = None
    input_norm: InputNorm | None = None


@dataclass(frozen=True, kw_only=True)
class QKLayer(LogitRule):
    """All heads of a layer. w_q: (heads, d_head, d_model), w_k: (kv_heads, d_head, d_model), in the file's precision.

    bfloat16, which NumPy does not know, comes as float32. Query head h reads key head h // (heads / kv_heads). Biases:
    b_q (heads, d_head), b_k (kv_heads, d_head), float64. Whatever computes with the weights makes them float64 first.
    """

    layer: int
    w_q: NDArray[Any]
    w_k: NDArray[Any]
    b_q: Array | None
    b_k: Array | None

    @property
    def heads(self) -> int:
        """Return the number of query heads."""
        return len(self.w_q)

    @property
    def group(self) -> int:
        """Return how many query heads share one key head."""
        return len(self.w_q) // len(self.w_k)

    def head(self, index: int) -> QKHead:
        """Return one head of the layer, in tensors of its own, with the key weights that it reads."""
        rule = {entry.name: getattr(self, entry.name) for entry in fields(LogitRule)}
        if (norm := self.qk_norm) is not None:
            rule["qk_norm"] = QKNorm(_double(norm.gain_q), _double(norm.gain_k), norm.eps)
        if self.input_norm is not None:
            rule["input_norm"] = InputNorm(_double(self.input_norm.gain), _double(self.input_norm.bias))
        key = index // self.group
        w_q, w_k = _double(self.w_q[index]), _double(self.w_k[key])
        b_q, b_k = (_double(None if b is None else b[at]) for b, at in ((self.b_q, index), (self.b_k, key)))
        return QKHead(layer=self.layer, head=index, w_q=w_q, w_k=w_k, b_q=b_q, b_k=b_k, **rule)

    def folded(self) -> QKLayer:
        """Return the layer with the normalisation of its input folded in: gain in w_q and w_k, bias in b_q and b_k.

        The logits of x̂ (normalised, without gain and bias) are then those of gain ⊙ x̂ + bias in the layer as it was.
        """
        if self.input_norm is None:
            return self
        gain, bias = self.input_norm.gain, self.input_norm.bias
        b_q, b_k = _moved(self.w_q, self.b_q, bias), _moved(self.w_k, self.b_k, bias)
        return replace(self, w_q=self.w_q * gain, w_k=self.w_k * gain, b_q=b_q, b_k=b_k, input_norm=None)

    def core(self, distance: float = 0, *, gains: bool = False) -> Array | None:
        """Return C (d_head, d_head) in W = w_qᵀ C w_k for a key `distance` tokens before the query; None for I.

        C is the rotation of rotary positions; with gains=True also the gains of query-key normalisation.
        """
        d_head = self.w_q.shape[1]
        core = None
        if self.rotary is not None and (distance != 0 or self.rotary.scaling != 1):
            core = self.rotary.rotation(distance, d_head)
        if gains and self.qk_norm is not None:
            core = np.eye(d_head) if core is None else core
            core = self.qk_norm.gain_q[:, None] * core * self.qk_norm.gain_k
        return core


def _moved(w: NDArray[Any], b: Array | None, bias: Array | None) -> Array | None:
    """Return the bias of a projection (heads, d_head) after the bias of its input has been moved into it."""
    if bias is None:
        return b
    moved = w.astype(np.float64) @ bias  # (heads, d_head)
    return moved if b is None else b + moved


@dataclass(frozen=True, kw_only=True)
class QKHead(LogitRule):
    """One attention head. w_q, w_k: (d_head, d_model) float64, q = w_q x + b_q; b_q, b_k: (d_head,) or None."""

    layer: int
    head: int
    w_q: Tensor
    w_k: Tensor
    b_q: Tensor | None
    b_k: Tensor | None

    @property
    def temperature(self) -> float:
        """Return λ of the book, one over the model's own logit multiplier."""
        return 1 / self.multiplier

    def logits(
        self, x: Float[Tensor, "*batch T d_model"], positions: Tensor | None = None
    ) -> Float64[Tensor, "*batch T T"]:
        """Return the attention logits, (..., T, T) float64, row = query, before any mask.

        x: what the projections read, (..., T, d_model). positions: (T,), 0 … T − 1 by default, of matter
        under rotary positions alone.
        """
        q = x.double() @ self.w_q.mT + (0 if self.b_q is None else self.b_q)  # (..., T, d_head)
        k = x.double() @ self.w_k.mT + (0 if self.b_k is None else self.b_k)
        if self.qk_norm is not None:
            q = rms_normalised(q, self.qk_norm.eps) * self.qk_norm.gain_q
            k = rms_normalised(k, self.qk_norm.eps) * self.qk_norm.gain_k
        logits = q @ k.mT if self.rotary is None else _rotary_logits(q, k, self.rotary, positions)
        logits = self.multiplier * logits
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


def _double(values: NDArray[np.floating] | None) -> Any:
    """Return a float64 tensor of its own, None for None."""
    import torch

    return None if values is None else torch.from_numpy(np.array(values, dtype=np.float64, order="C"))


def rms_normalised(x: Float[Tensor, "*shape"], eps: float) -> Float[Tensor, "*shape"]:
    """Return x divided by its root mean square over the last dimension."""
    normalised: Tensor = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return normalised


def _rotary_logits(q: Tensor, k: Tensor, rotary: Rotary, positions: Tensor | None) -> Tensor:
    """Return qᵀ R(m − n) k for every pair, by rotating queries and keys to their own positions."""
    import torch

    length, d_head = q.shape[-2:]
    places = range(length) if positions is None else positions.tolist()
    rotations = np.stack([rotary.rotation(-float(place), d_head) / rotary.scaling for place in places])
    turns = torch.from_numpy(rotations)  # (T, d_head, d_head)
    rotated_q, rotated_k = (turns @ q[..., None])[..., 0], (turns @ k[..., None])[..., 0]
    logits: Tensor = rotated_q @ rotated_k.mT
    return logits

"""Other methods against entropy collapse, to see what LocAteR is worth: each a function on an existing model.

They work on this package's models and on `torch.nn` ones (`torch.nn.MultiheadAttention` anywhere in a module tree,
`torch.nn.TransformerEncoderLayer` with it). Two change the model once, before its optimiser is made; two act after
each step of the optimiser:

    normalise_queries_and_keys(model, length=256)       # or reparametrise_spectrally(model)
    clip = QKClip(model, threshold=20.0)                 # or decay_queries_and_keys(model, rate * decay) in its place
    ...
    optimizer.step()
    clip()

Sources: QK-normalisation, Henry et al. 2020 (arXiv 2010.04245); σReparam, Zhai et al. 2023 (arXiv 2303.06296);
QK-Clip, Kimi Team 2025 (arXiv 2507.20534).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qkrepro.errors import ArgumentError, check_choice, check_integer, check_number
from qkrepro.models.packing import split_heads
from qkrepro.models.transformer import Attention
from qkrepro.training.attention_inputs import AttentionInput, largest_logits, watch_inputs
from qkrepro.training.locater import attention_modules, find_qk_parameters

PEERS = ("none", "qk-norm", "sigma-reparam", "qk-clip", "qk-weight-decay")
WITH_STRENGTH = ("qk-clip", "qk-weight-decay")


def check_strength(peer: str, strength: float) -> None:
    """Raise ArgumentError unless a peer that has a strength is given one above 0, and the others 0."""
    if peer in WITH_STRENGTH:
        check_number("peer_strength", strength, above=0)
    elif strength != 0:
        raise ArgumentError(f"peer_strength must be 0 for peer {peer!r}, got {strength!r}")


def retrofit(model: nn.Module, peer: str, length: int) -> None:
    """Change a model as this peer does before training; nothing for the peers that act after each update."""
    check_choice("peer", peer, PEERS)
    if peer == "qk-norm":
        normalise_queries_and_keys(model, length)
    elif peer == "sigma-reparam":
        reparametrise_spectrally(model)


def after_update(model: nn.Module, peer: str, strength: float) -> Callable[[float], None]:
    """Return what this peer does after each step of the optimiser, a function of the learning rate of that step."""
    check_choice("peer", peer, PEERS)
    check_strength(peer, strength)
    if peer == "qk-clip":
        clip = QKClip(model, strength)
        return lambda rate: clip()
    if peer == "qk-weight-decay":
        return lambda rate: decay_queries_and_keys(model, rate * strength)
    return lambda rate: None


def normalise_queries_and_keys(model: nn.Module, length: int) -> None:
    """QK-normalisation: the logit of every head becomes g · q·k/(‖q‖ ‖k‖), in place of q·k/√d_head.

    g: one trained number a layer, the new parameter `qk_gain` of each attention module, log₂(length² − length) at the
    start; length: tokens of a sequence, >= 2. Biases count as part of q and k. What is measured of W_QK afterwards is
    that of w_qᵀ w_k, whose scale no longer matters, while ratios such as N do.
    Raises ArgumentError for a model without attention layers, one that is normalised already, and PyTorch's layers
    with bias_k or add_zero_attn. Source: Henry et al. 2020, arXiv 2010.04245.
    """
    check_integer("length", length, at_least=2)
    for module in attention_modules(model):
        if hasattr(module, "qk_gain"):
            raise ArgumentError("the model's queries and keys must be normalised only once")
        weight = module.query.weight if isinstance(module, Attention) else module.out_proj.weight
        gain = torch.full((), math.log2(length**2 - length), dtype=weight.dtype, device=weight.device)
        module.register_parameter("qk_gain", nn.Parameter(gain))
        if isinstance(module, Attention):
            module.query.register_forward_hook(_normaliser(module, scaled=True))
            module.key.register_forward_hook(_normaliser(module, scaled=False))
        else:
            if module.bias_k is not None or module.add_zero_attn:
                raise ArgumentError("attention must have neither bias_k nor add_zero_attn")
            module.__class__ = _NormalisedAttention
            module.register_forward_pre_hook(_slow_path)


def reparametrise_spectrally(model: nn.Module) -> None:
    """σReparam: every linear map W of the model becomes γ W/σ(W), σ the largest singular value, γ trained.

    For every `torch.nn.Linear` and the three blocks of a packed `in_proj_weight` (the separate ones too), each with its
    own γ, which starts at σ(W), so that the model stays what it was (as in the authors' public code for images). σ is
    uᵀ W v with singular vectors that are exact at the start and follow by one step of power iteration whenever the
    weight is used in training, without gradients; the gradient runs through W and not through u, v. `weight` then reads
    the product, so spectra, regularisers and checkpoints need nothing else; write to
    `parametrizations.weight.original`. Raises ArgumentError when there is nothing to reparametrise, or it was done.
    Source: Zhai et al. 2023, arXiv 2303.06296.
    """
    names = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    targets = [
        (module, name)
        for module in list(model.modules())
        for name in names
        if isinstance(module, nn.Linear | nn.MultiheadAttention) and getattr(module, name, None) is not None
    ]
    if not targets or any(parametrize.is_parametrized(module, name) for module, name in targets):
        raise ArgumentError("the model must have linear maps that are not reparametrised yet")
    for module, name in targets:
        gain = SpectralGain(getattr(module, name).detach(), blocks=3 if name == "in_proj_weight" else 1)
        parametrize.register_parametrization(module, name, gain)


class SpectralGain(nn.Module):
    """W to γ W/σ(W), block by block of rows: the parametrization of σReparam."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, blocks: int = 1) -> None:
        """weight: (rows, columns), `blocks` of equal rows one below the other, each with its own γ and σ."""
        super().__init__()
        u, sigma, vh = torch.linalg.svd(weight.view(blocks, -1, weight.shape[-1]), full_matrices=False)
        self.gain = nn.Parameter(sigma[:, :1, None].clone())  # γ, (blocks, 1, 1)
        self.register_buffer("u", u[:, :, :1].contiguous())  # (blocks, rows/blocks, 1)
        self.register_buffer("v", vh[:, :1].mT.contiguous())  # (blocks, columns, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """Return γ W/σ(W), (rows, columns); in training with gradients it also moves u and v by one step."""
        w = weight.view(len(self.gain), -1, weight.shape[-1])  # (blocks, rows/blocks, columns)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.u = F.normalize(w @ self.v, dim=1)
                self.v = F.normalize(w.mT @ self.u, dim=1)
        sigma = self.u.mT @ w @ self.v  # (blocks, 1, 1)
        return (self.gain * w / sigma).view_as(weight)


class QKClip:
    """QK-Clip: after each step of the optimiser, heads whose largest logit exceeded a threshold are scaled down.

    S_max of a head is its largest logit q·k/√d_head over the visible pairs of the passes in training mode since the
    last call; with γ = min(1, τ/S_max) the call scales w_q, b_q, w_k and b_k of the head by √γ, and so its logits by γ.
    S_max costs one more product of queries and keys a pass. PyTorch's layers must have biases or none, w_q and w_k of
    one width. Raises ArgumentError for a threshold that is not above 0 or a model without attention layers.
    Source: Kimi Team 2025, arXiv 2507.20534; scaling the biases, too, is ours.
    """

    def __init__(self, model: nn.Module, threshold: float) -> None:
        """Watch the model from now on; threshold: τ."""
        check_number("threshold", threshold, above=0)
        self.model, self.threshold = model, threshold
        self.largest: dict[int, Tensor] = {}  # layer to S_max of its heads, (heads,)
        self.handles = watch_inputs(model, self._see)

    @torch.no_grad()
    def __call__(self) -> None:
        """Scale the heads that need it, and start to watch anew."""
        for layer, largest in self.largest.items():
            root = (self.threshold / largest.clamp_min(self.threshold)).sqrt()  # √γ, (heads,)
            for part in _head_parts(self.model, layer):
                part.mul_(root.view(-1, *[1] * (part.ndim - 1)))
        self.largest = {}

    def _see(self, seen: AttentionInput) -> None:
        new = largest_logits(seen, *_head_parts(self.model, seen.layer))
        old = self.largest.get(seen.layer)
        self.largest[seen.layer] = new if old is None else torch.maximum(new, old)


@torch.no_grad()
def decay_queries_and_keys(model: nn.Module, amount: float) -> None:
    """Plain weight decay on w_q and w_k of every head alone: w ← (1 − amount) w, after a step of the optimiser.

    amount: learning rate times decay, in [0, 1]. Beside the optimiser's own decay of all parameters. Biases are left.
    """
    check_number("amount", amount, at_least=0)
    if amount > 1:
        raise ArgumentError(f"amount must be in [0, 1], got {amount!r}")
    for pair in find_qk_parameters(model):
        for weight in pair.weights():
            weight.mul_(1 - amount)


def _head_parts(model: nn.Module, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return views of a layer's w_q, w_k (heads, d_head, d_model), b_q, b_k (heads, d_head); zeros without biases."""
    module = attention_modules(model)[layer]
    w_q, w_k = (w.detach() for w in find_qk_parameters(module)[0].weights())
    heads = len(w_q)
    if isinstance(module, Attention):
        b_q, b_k = split_heads(module.query.bias, module.key.bias, "separate", heads, heads)
    elif module.in_proj_bias is None:
        b_q, b_k = w_q.new_zeros(2, *w_q.shape[:2])
    else:
        b_q, b_k = split_heads(module.in_proj_bias, module.in_proj_bias, "thirds", heads, heads)
    return w_q, w_k, b_q.detach(), b_k.detach()


def _normaliser(module: Attention, *, scaled: bool) -> Any:
    """Return a hook on a projection of ours that gives heads unit length, and queries (scaled) g √d_head of it."""

    def hook(_: nn.Module, args: object, output: Tensor) -> Tensor:
        heads = F.normalize(output.view(*output.shape[:-1], module.heads, -1), dim=-1)  # (batch, length, heads, d_head)
        if scaled:
            heads = heads * (module.get_parameter("qk_gain") * math.sqrt(heads.shape[-1]))
        return heads.flatten(-2)

    return hook


def _slow_path(module: nn.Module, args: object) -> None:
    """Do nothing: PyTorch's fused inference, which would pass the normalisation by, refuses hooks."""


class _NormalisedAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with normalised queries and keys; arguments and results are the same."""

    qk_gain: Tensor

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        single = query.ndim == 2
        inputs = [x[None] if single else x if self.batch_first else x.transpose(0, 1) for x in (query, key, value)]
        packed = self.in_proj_weight
        maps = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight) if packed is None else packed.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # (batch, heads, length, d_head)
            for x, w, b in zip(inputs, maps, biases, strict=True)
        )
        logits = self.qk_gain * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT  # (batch, heads, queries, keys)
        if attn_mask is not None:
            mask = _additive(attn_mask, logits)
            logits = logits + (mask.view(-1, self.num_heads, *mask.shape[1:]) if mask.ndim == 3 else mask)
        if key_padding_mask is not None:
            padding = key_padding_mask[None] if single else key_padding_mask  # (batch, keys)
            logits = logits + _additive(padding, logits)[:, None, None]
        weights = F.dropout(logits.softmax(-1), self.dropout, self.training)
        mixed = self.out_proj((weights @ v).transpose(1, 2).flatten(-2))  # (batch, queries, d_model)
        mixed = mixed[0] if single else mixed if self.batch_first else mixed.transpose(0, 1)
        if not need_weights:
            return mixed, None
        shown = weights.mean(1) if average_attn_weights else weights
        return mixed, shown[0] if single else shown


def _additive(mask: Tensor, logits: Tensor) -> Tensor:
    """Return a mask as a term of the logits: −∞ where a boolean one is True."""
    if mask.dtype != torch.bool:
        return mask.to(logits.dtype)
    return torch.zeros_like(mask, dtype=logits.dtype).masked_fill(mask, -torch.inf)

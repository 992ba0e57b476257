"""The query and key weights of a published checkpoint, head by head, without loading the model.

for layer, head, w_q, w_k in qk_weights("folder-of-a-model"):
    eigenvalues = qk_eigenvalues(w_q, w_k)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qkrepro.errors import ArgumentError
from qkrepro.models.heads import InputNorm, QKLayer, QKNorm
from qkrepro.models.packing import split_heads
from qkrepro.models.rotary import rotary_of_layer
from qkrepro.models.towers import Tower, open_towers

if TYPE_CHECKING:  # imported by those who ask for tensors or data frames: reading needs neither
    from torch import Tensor

    from qkrepro.models.heads import QKHead


def qk_weights(path: str | Path, layers: Iterable[int] | None = None) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield (layer, head, w_q, w_k) of a checkpoint, in order, reading one layer at a time.

    w_q, w_k: (d_head, d_model) float64, q = w_q x; the W of the book is w_qᵀ w_k. Under grouped queries heads that
    share a key head yield the same w_k. Models of two towers (CLIP) yield one after the other, text first.
    `layers` limits what is read. Raises CheckpointError for a model that cannot be read, ArgumentError for a layer
    that it does not have.
    """
    for head in qk_heads(path, layers):
        yield head.layer, head.head, head.w_q, head.w_k


def qk_heads(path: str | Path, layers: Iterable[int] | None = None) -> Iterator[QKHead]:
    """Yield each head of a checkpoint with biases, multiplier, rotary and normalisation parameters.

    Arguments and errors as in `qk_weights`.
    """
    for layer in qk_layers(path, layers):
        for index in range(layer.heads):
            yield layer.head(index)


def qk_layers(path: str | Path, layers: Iterable[int] | None = None) -> Iterator[QKLayer]:
    """Yield each layer of a checkpoint with all its heads, in NumPy arrays; arguments and errors as in `qk_weights`."""
    towers = open_towers(path)
    wanted = None if layers is None else list(layers)
    for tower in towers:
        for layer in chosen_layers(tower.sizes.layers, wanted):
            yield read_layer(tower, layer)


def chosen_layers(count: int, wanted: list[int] | None) -> list[int]:
    """Return the layers to read of `count`; ArgumentError when one of those wanted does not exist."""
    if wanted is None:
        return list(range(count))
    for layer in wanted:
        if not 0 <= layer < count:
            raise ArgumentError(f"layers must be 0 to {count - 1}, got {layer}")
    return wanted


def read_layer(tower: Tower, layer: int) -> QKLayer:
    """Read one layer of a tower, in the file's precision; CheckpointError for a tensor that is missing or misshapen."""
    sizes = tower.sizes
    w_q, w_k = _projections(tower, layer, "weight", (sizes.d_model,))
    b_q = b_k = None
    if _has(tower, tower.naming.query, "bias", layer):
        b_q, b_k = (bias.astype(np.float64) for bias in _projections(tower, layer, "bias", ()))
    if not (_finite(w_q) and _finite(w_k)):
        raise tower.checkpoint.error(f"layer {layer} has non-finite query or key weights")
    return QKLayer(
        layer=layer,
        w_q=w_q,
        w_k=w_k,
        b_q=b_q,
        b_k=b_k,
        multiplier=_multiplier(tower, layer),
        part=tower.part.name,
        softcap=_positive(tower, "attn_logit_softcapping") if tower.family.softcap else None,
        rotary=rotary_of_layer(tower.config, layer, sizes.d_head) if tower.family.rotary else None,
        qk_norm=_qk_norm(tower, layer),
        input_norm=_input_norm(tower, layer),
    )


def _finite(w: NDArray[Any]) -> bool:
    """Return whether all weights (heads, d_head, d_model) are finite; a NaN makes both extremes NaN."""
    return all(bool(np.isfinite(head.min()) and np.isfinite(head.max())) for head in w)


def _projections(tower: Tower, layer: int, kind: str, tail: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the query and key weights (or biases) of a layer, (heads, d_head, *tail) and (kv_heads, d_head, *tail)."""
    sizes, naming = tower.sizes, tower.naming
    q_rows, k_rows = sizes.heads * sizes.d_head, sizes.kv_heads * sizes.d_head
    transposed = naming.transposed and bool(tail)
    if naming.layout == "separate":
        query = _read(tower, naming.query, kind, layer, (q_rows, *tail))
        key = _read(tower, naming.key, kind, layer, (k_rows, *tail))
    else:
        shape = (*tail, 3 * q_rows) if transposed else (3 * q_rows, *tail)
        query = key = _read(tower, naming.query, kind, layer, shape)
    return split_heads(query, key, naming.layout, sizes.heads, sizes.kv_heads, transposed=transposed)


def _qk_norm(tower: Tower, layer: int) -> QKNorm | None:
    """Return the gains of query-key normalisation, float64, and its epsilon."""
    if tower.family.qk_norm is None:
        return None
    gain_q, gain_k = (
        _vector(tower, name, "weight", layer, tower.sizes.d_head) + tower.family.qk_gain_offset
        for name in tower.family.qk_norm
    )
    return QKNorm(gain_q, gain_k, _positive(tower, "rms_norm_eps") or 1e-6)


def _input_norm(tower: Tower, layer: int) -> InputNorm | None:
    """Return the gain and bias of the normalisation before the projections; None where there is none or no gain."""
    norm, width = tower.norm, tower.sizes.d_model
    name = norm.first if layer == 0 and "{previous}" in norm.name else norm.name
    for gain, bias in (("weight", "bias"), ("gamma", "beta")):
        if name is not None and _has(tower, name, gain, layer):
            shift = _vector(tower, name, bias, layer, width) if _has(tower, name, bias, layer) else None
            return InputNorm(_vector(tower, name, gain, layer, width) + norm.gain_offset, shift)
    return None


def _multiplier(tower: Tower, layer: int) -> float:
    """Return what the model multiplies qᵀk by: 1/√d_head unless its configuration says otherwise."""
    config, d_head = tower.config, tower.sizes.d_head
    if tower.family.multiplier == "query_pre_attn_scalar":
        return 1 / math.sqrt(_positive(tower, "query_pre_attn_scalar") or d_head)
    if tower.family.multiplier == "gpt2":
        multiplier = 1.0 if config.get("scale_attn_weights") is False else 1 / math.sqrt(d_head)
        return multiplier / (layer + 1) if config.get("scale_attn_by_inverse_layer_idx") else multiplier
    if tower.family.multiplier == "temperature":
        return 1 / (float(config.get("temperature", 1.0)) * math.sqrt(d_head))
    return 1 / math.sqrt(d_head)


def _positive(tower: Tower, key: str) -> float | None:
    """Return a number > 0 of config.json, None where it is left out or null; else raise CheckpointError."""
    value = tower.config.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise tower.checkpoint.error(f"config.json: {key} must be a number > 0, got {value!r:.40}")
    return float(value)


def _name(tower: Tower, template: str, kind: str, layer: int) -> str:
    return f"{tower.prefix}{template.format(layer=layer, previous=layer - 1)}.{kind}"


def _has(tower: Tower, template: str, kind: str, layer: int) -> bool:
    return _name(tower, template, kind, layer) in tower.names


def _vector(tower: Tower, template: str, kind: str, layer: int, size: int) -> NDArray[np.float64]:
    return _read(tower, template, kind, layer, (size,)).astype(np.float64)


def _read(tower: Tower, template: str, kind: str, layer: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a tensor as an array in the file's precision; CheckpointError unless it is there with this shape."""
    name = _name(tower, template, kind, layer)
    if name not in tower.names:
        raise tower.checkpoint.error(f"{name} is missing")
    stored = tower.checkpoint.tensors[tower.names[name]]
    if stored.shape != shape:
        raise tower.checkpoint.error(f"{name} has shape {stored.shape}; config.json asks for {shape}")
    return stored.read()

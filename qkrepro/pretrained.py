"""The query and key weights of a published checkpoint, head by head, without loading the model.

    for layer, head, w_q, w_k in qk_weights("folder-of-a-model"):
        eigenvalues = qk_eigenvalues(w_q, w_k)

Which names, packing and multiplier an architecture has is in `families`, where its tensors are in `towers`, how files
are read in `checkpoint_files`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qkrepro.attention_layers import InputNorm, QKLayer, QKNorm
from qkrepro.errors import ArgumentError, CheckpointError
from qkrepro.rotary import rotary_of_layer
from qkrepro.towers import Tower, open_towers

if TYPE_CHECKING:  # imported by those who ask for tensors or data frames: reading needs neither
    import pandas as pd
    from torch import Tensor

    from qkrepro.attention_heads import QKHead


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


def qk_table(
    path: str | Path,
    layers: Iterable[int] | None = None,
    *,
    distances: Sequence[float] = (0,),
    fold_norm: bool = False,
    moments_only: bool = False,
    text: str | Path | None = None,
    draws: int = 200,
    seed: int = 0,
    data: str | Path | None = None,
) -> pd.DataFrame:
    """The spectrum table of a checkpoint, one row a head and distance, as `qkrepro spectrum` gives it.

    text: a file of text; localization is then in the covariance of the increments of its tokens in the model, and of
    CLIP the text tower alone is given. data: as in `qkrepro.token_covariance.increment_covariances`. Other arguments,
    columns and errors as in `qkrepro.spectrum_table.spectrum_table` and `qk_weights`.
    """
    from qkrepro.spectrum_table import spectrum_table

    covariances = None
    if text is not None:
        from qkrepro.token_covariance import increment_covariances

        covariances = increment_covariances(path, Path(text), None if data is None else Path(data))
    read = qk_layers(path, layers)
    return spectrum_table(
        (each for each in read if covariances is None or (each.part, each.layer) in covariances),
        distances=distances,
        fold_norm=fold_norm,
        moments_only=moments_only,
        covariances=covariances,
        draws=draws,
        seed=seed,
    )


def chosen_layers(count: int, wanted: list[int] | None) -> list[int]:
    """The layers to read of `count`; ArgumentError when one of those wanted does not exist."""
    if wanted is None:
        return list(range(count))
    for layer in wanted:
        if not 0 <= layer < count:
            raise ArgumentError(f"layers holds {layer}; allowed: 0 to {count - 1}")
    return wanted


def read_layer(tower: Tower, layer: int) -> QKLayer:
    """Read one layer of a tower, in the file's precision; CheckpointError for a tensor that is missing or misshapen."""
    sizes = tower.sizes
    w_q, w_k = _projections(tower, layer, "weight", (sizes.d_model,))
    biased = _has(tower, tower.naming.query, "bias", layer)
    b_q, b_k = _projections(tower, layer, "bias", ()) if biased else (None, None)
    if not (_finite(w_q) and _finite(w_k)):
        raise CheckpointError(f"{tower.checkpoint.path}: layer {layer} has non-finite query or key weights")
    softcap = _positive(tower, "attn_logit_softcapping", None) if tower.family.softcap else None
    return QKLayer(
        layer=layer,
        w_q=w_q,
        w_k=w_k,
        b_q=None if b_q is None else b_q.astype(np.float64),
        b_k=None if b_k is None else b_k.astype(np.float64),
        multiplier=_multiplier(tower, layer),
        part=tower.part.name,
        softcap=softcap,
        rotary=rotary_of_layer(tower.config, layer, sizes.d_head) if tower.family.rotary else None,
        qk_norm=_qk_norm(tower, layer),
        input_norm=_input_norm(tower, layer),
    )


def _finite(w: NDArray[Any]) -> bool:
    """Whether all weights (heads, d_head, d_model) are finite; a NaN makes both extremes NaN."""
    return all(bool(np.isfinite(head.min()) and np.isfinite(head.max())) for head in w)


def _projections(tower: Tower, layer: int, kind: str, tail: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Query and key weights (or biases) of a layer, (heads, d_head, *tail) and (kv_heads, d_head, *tail)."""
    sizes, naming = tower.sizes, tower.naming
    q_rows, k_rows = sizes.heads * sizes.d_head, sizes.kv_heads * sizes.d_head
    if naming.layout == "separate":
        q = _read(tower, naming.query, kind, layer, (q_rows, *tail))
        k = _read(tower, naming.key, kind, layer, (k_rows, *tail))
        return q.reshape(sizes.heads, -1, *tail), k.reshape(sizes.kv_heads, -1, *tail)
    transposed = naming.transposed and bool(tail)
    packed = _read(tower, naming.query, kind, layer, (*tail, 3 * q_rows) if transposed else (3 * q_rows, *tail))
    packed = packed.T if transposed else packed  # (3 heads d_head, *tail)
    if naming.layout == "thirds":
        q, k = packed[:q_rows], packed[q_rows : 2 * q_rows]
        return q.reshape(sizes.heads, -1, *tail), k.reshape(sizes.heads, -1, *tail)
    by_head = packed.reshape(sizes.heads, 3, sizes.d_head, *tail)  # query, key, value, head by head
    return by_head[:, 0], by_head[:, 1]


def _qk_norm(tower: Tower, layer: int) -> QKNorm | None:
    """Gains of query-key normalisation, float64, and its epsilon."""
    if tower.family.qk_norm is None:
        return None
    gains = [
        _read(tower, name, "weight", layer, (tower.sizes.d_head,)).astype(np.float64) + tower.family.qk_gain_offset
        for name in tower.family.qk_norm
    ]
    return QKNorm(gains[0], gains[1], _positive(tower, "rms_norm_eps", 1e-6) or 0.0)


def _input_norm(tower: Tower, layer: int) -> InputNorm | None:
    """Gain and bias of the normalisation before the projections; None where the model has none or no gain."""
    norm = tower.norm
    name = norm.first if layer == 0 and "{previous}" in norm.name else norm.name
    if name is None:
        return None
    shape = (tower.sizes.d_model,)
    for gain, bias in (("weight", "bias"), ("gamma", "beta")):
        if _has(tower, name, gain, layer):
            shift = (
                _read(tower, name, bias, layer, shape).astype(np.float64) if _has(tower, name, bias, layer) else None
            )
            return InputNorm(_read(tower, name, gain, layer, shape).astype(np.float64) + norm.gain_offset, shift)
    return None


def _multiplier(tower: Tower, layer: int) -> float:
    """What the model multiplies qᵀk by: 1/√d_head unless its configuration says otherwise."""
    config, d_head = tower.config, tower.sizes.d_head
    if tower.family.multiplier == "query_pre_attn_scalar":
        return 1 / math.sqrt(_positive(tower, "query_pre_attn_scalar", None) or d_head)
    if tower.family.multiplier == "gpt2":
        multiplier = 1.0 if config.get("scale_attn_weights") is False else 1 / math.sqrt(d_head)
        return multiplier / (layer + 1) if config.get("scale_attn_by_inverse_layer_idx") else multiplier
    return 1 / math.sqrt(d_head)


def _positive(tower: Tower, key: str, default: float | None) -> float | None:
    """A number > 0 of config.json, or the default where it is left out or null; CheckpointError for anything else."""
    value = tower.config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise CheckpointError(f"{tower.checkpoint.path}: config.json: {key} is {value!r:.40}; allowed: a number > 0")
    return float(value)


def _name(tower: Tower, template: str, kind: str, layer: int) -> str:
    return f"{tower.prefix}{template.format(layer=layer, previous=layer - 1)}.{kind}"


def _has(tower: Tower, template: str, kind: str, layer: int) -> bool:
    return _name(tower, template, kind, layer) in tower.names


def _read(tower: Tower, template: str, kind: str, layer: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """A tensor as an array in the file's precision; CheckpointError unless it is there with this shape."""
    checkpoint, name = tower.checkpoint, _name(tower, template, kind, layer)
    if name not in tower.names:
        raise CheckpointError(f"{checkpoint.path}: {name} is missing")
    found = checkpoint.shape(tower.names[name])
    if found != shape:
        raise CheckpointError(f"{checkpoint.path}: {name} has shape {found}; config.json asks for {shape}")
    return checkpoint.array(tower.names[name])

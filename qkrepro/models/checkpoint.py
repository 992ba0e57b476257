"""The query and key weights of a published checkpoint, head by head, without loading the model.

    for layer, head, w_q, w_k in qk_weights("folder-of-a-model"):
        eigenvalues = qk_eigenvalues(w_q, w_k)

Which names, packing and multiplier an architecture has is in `qkrepro.models.families`, how files are read in
`qkrepro.models.weight_files`. A model is a folder, a file, or its name on the hub where the network and the `hub` extra
allow it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qkrepro.errors import ArgumentError, CheckpointError
from qkrepro.models.families import FAMILIES, SIZES, Family, Naming, Norm, Part
from qkrepro.models.heads import InputNorm, QKLayer, QKNorm
from qkrepro.models.packing import split_heads
from qkrepro.models.rotary import rotary_of_layer
from qkrepro.models.weight_files import Checkpoint, one_line, open_checkpoint

if TYPE_CHECKING:  # imported by those who ask for tensors or data frames: reading needs neither
    from torch import Tensor

    from qkrepro.models.heads import QKHead

WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
ADAPTER = re.compile(r"(?:^|\.)(?:lora_[AB]|lora_embedding|hada_w|oft_|prompt_encoder|base_model\.model)")
QUANTISED = re.compile(
    r"\.(?:qweight|qzeros|scales|weight_scale|weight_scale_inv|absmax|quant_state|SCB|weight_format)"
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SMALL = ["config.json", "*.safetensors.index.json", "*.bin.index.json", "tokenizer*", "vocab*", "merges.txt", "*.model"]


@dataclass(frozen=True)
class Sizes:
    """The sizes of one tower of a model, from its config.json."""

    d_model: int
    heads: int
    kv_heads: int
    d_head: int
    layers: int


@dataclass(frozen=True)
class Tower:
    """One tower of an opened model: where its tensors are, its sizes and its part of config.json."""

    checkpoint: Checkpoint
    names: Mapping[str, str]  # name without wrappers → name in the file
    family: Family
    naming: Naming
    norm: Norm
    part: Part
    prefix: str
    config: Mapping[str, Any]
    sizes: Sizes


def open_towers(path: str | Path) -> list[Tower]:
    """Open a checkpoint and find its attention layers; raises CheckpointError when that cannot be done."""
    checkpoint = open_checkpoint(local_model(path))
    _refuse_unreadable(checkpoint)
    names = unwrapped_names(checkpoint)
    family = _family(checkpoint, names)
    return [_tower(checkpoint, names, family, part) for part in family.parts]


def unwrapped_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the names in the file by the names without what training wrappers add (module., _orig_mod.)."""
    names: dict[str, str] = {}
    for name in checkpoint.names():
        plain = WRAPPERS.sub("", name)
        if plain in names:
            raise CheckpointError(f"{checkpoint.path}: {names[plain]} and {name} are the same tensor twice")
        names[plain] = name
    return names


def _refuse_unreadable(checkpoint: Checkpoint) -> None:
    """Refuse quantised weights and unmerged adapters, which have no W_QK that could be read from the file."""
    if checkpoint.config.get("quantization_config"):
        raise CheckpointError(f"{checkpoint.path}: quantised weights (quantization_config); dequantise the model first")
    for name in checkpoint.names():
        if ADAPTER.search(name):
            raise CheckpointError(f"{checkpoint.path}: an unmerged adapter ({name}); merge it into its model first")
        if QUANTISED.search(name):
            raise CheckpointError(f"{checkpoint.path}: quantised weights ({name}); dequantise the model first")


def _family(checkpoint: Checkpoint, names: Mapping[str, str]) -> Family:
    model_type = checkpoint.config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
    shown = ", ".join(list(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    stated = repr(model_type) if checkpoint.config else "no config.json beside the weights"
    raise CheckpointError(
        f"{checkpoint.path}: model_type must be one of {known}, got {stated}. Tensors found: {shown or 'none'}"
    )


def _tower(checkpoint: Checkpoint, names: Mapping[str, str], family: Family, part: Part) -> Tower:
    """Find the tensors of one tower by the family's names, whatever stands before them."""
    config = _part_config(checkpoint, family, part)
    for naming in family.namings:
        prefixes = _prefixes(names, naming.query)
        marked = [prefix for prefix in prefixes if part.marker and part.marker in prefix]
        prefixes = marked if marked or len(family.parts) > 1 else prefixes
        if len(prefixes) > 1:
            raise CheckpointError(
                f"{checkpoint.path}: there must be one stack of layers, got those under {', '.join(prefixes)}"
            )
        if prefixes:
            post = config.get("do_layer_norm_before") is False or config.get("norm") == "post"
            norm = family.post_norm if post and family.post_norm else naming.norm
            sizes = _sizes(checkpoint, config, family)
            beyond = f"{prefixes[0]}{naming.query.format(layer=sizes.layers)}.weight"
            if beyond in names:
                raise CheckpointError(f"{checkpoint.path}: config.json says {sizes.layers} layers; found {beyond}")
            last = f"{prefixes[0]}{naming.query.format(layer=sizes.layers - 1)}.weight"
            if last not in names:
                raise CheckpointError(f"{checkpoint.path}: config.json says {sizes.layers} layers; {last} is missing")
            return Tower(checkpoint, names, family, naming, norm, part, prefixes[0], config, sizes)
    listed = ", ".join(list(names)[:4])
    raise CheckpointError(
        f"{checkpoint.path}: no {part.name or family.name} query weights ({family.namings[0].query}.weight); "
        f"tensors found: {listed or 'none'}"
    )


def _prefixes(names: Iterable[str], query: str) -> list[str]:
    """Return what stands before the name of a query weight, over all layers, each once."""
    before, after = (re.escape(text) for text in f"{query}.weight".split("{layer}"))
    pattern = re.compile(rf"((?:.*\.)?){before}\d+{after}")
    matches = (pattern.fullmatch(name) for name in names)
    return sorted({match[1] for match in matches if match})


def _part_config(checkpoint: Checkpoint, family: Family, part: Part) -> dict[str, Any]:
    config = checkpoint.config
    if part.config_key is not None and isinstance(config.get(part.config_key), dict):
        config = config[part.config_key]
    kind = config.get("position_embedding_type")
    if kind not in (None, "absolute", "rope", "rotary"):
        raise CheckpointError(f"{checkpoint.path}: position_embedding_type must be 'absolute', got {kind!r}")
    return {**family.defaults, **part.defaults, **config}


def _sizes(checkpoint: Checkpoint, config: Mapping[str, Any], family: Family) -> Sizes:
    keys = {**SIZES, **family.sizes}

    def size(name: str, default: int | None = None) -> int:
        value = config.get(keys[name])
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"{checkpoint.path}: config.json: {keys[name]} must be an integer >= 1, got {value!r}"
            )
        return value

    d_model, heads = size("d_model"), size("heads")
    kv_heads = size("kv_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(f"{checkpoint.path}: config.json: {heads} heads do not share {kv_heads} key heads evenly")
    return Sizes(d_model, heads, kv_heads, size("d_head", d_model // heads), size("layers"))


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
    gains = [
        _read(tower, name, "weight", layer, (tower.sizes.d_head,)).astype(np.float64) + tower.family.qk_gain_offset
        for name in tower.family.qk_norm
    ]
    return QKNorm(gains[0], gains[1], _positive(tower, "rms_norm_eps", 1e-6) or 0.0)


def _input_norm(tower: Tower, layer: int) -> InputNorm | None:
    """Return the gain and bias of the normalisation before the projections; None where there is none or no gain."""
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
    """Return what the model multiplies qᵀk by: 1/√d_head unless its configuration says otherwise."""
    config, d_head = tower.config, tower.sizes.d_head
    if tower.family.multiplier == "query_pre_attn_scalar":
        return 1 / math.sqrt(_positive(tower, "query_pre_attn_scalar", None) or d_head)
    if tower.family.multiplier == "gpt2":
        multiplier = 1.0 if config.get("scale_attn_weights") is False else 1 / math.sqrt(d_head)
        return multiplier / (layer + 1) if config.get("scale_attn_by_inverse_layer_idx") else multiplier
    if tower.family.multiplier == "temperature":
        return 1 / (float(config.get("temperature", 1.0)) * math.sqrt(d_head))
    return 1 / math.sqrt(d_head)


def _positive(tower: Tower, key: str, default: float | None) -> float | None:
    """Return a number > 0 of config.json, the default where it is left out or null; else raise CheckpointError."""
    value = tower.config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise CheckpointError(f"{tower.checkpoint.path}: config.json: {key} must be a number > 0, got {value!r:.40}")
    return float(value)


def _name(tower: Tower, template: str, kind: str, layer: int) -> str:
    return f"{tower.prefix}{template.format(layer=layer, previous=layer - 1)}.{kind}"


def _has(tower: Tower, template: str, kind: str, layer: int) -> bool:
    return _name(tower, template, kind, layer) in tower.names


def _read(tower: Tower, template: str, kind: str, layer: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a tensor as an array in the file's precision; CheckpointError unless it is there with this shape."""
    checkpoint, name = tower.checkpoint, _name(tower, template, kind, layer)
    if name not in tower.names:
        raise CheckpointError(f"{checkpoint.path}: {name} is missing")
    stored = checkpoint.shape(tower.names[name])
    if stored != shape:
        raise CheckpointError(f"{checkpoint.path}: {name} has shape {stored}; config.json asks for {shape}")
    return checkpoint.array(tower.names[name])


def local_model(name: str | Path) -> Path:
    """Return the folder or file of a model: the path itself when it exists, else a download of the hub's `owner/model`.

    Prefers safetensors, and takes .bin files where there are none. Raises CheckpointError when nothing is found.
    """
    path = Path(name).expanduser()
    if path.exists() or not HUB_NAME.fullmatch(str(name)):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"model is {str(name)!r}; no such file or folder, and the hub needs: pip install 'qkrepro[hub]'"
        ) from error
    try:
        folder = Path(snapshot_download(str(name), allow_patterns=[*SMALL, "*.safetensors"], ignore_patterns=["*/*"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(str(name), allow_patterns=[*SMALL, "*.bin"], ignore_patterns=["*/*"])
    except Exception as error:  # network, authorisation, disk: the hub's errors share no base class of their own
        raise CheckpointError(
            f"model is {str(name)!r}; no such file or folder, and not to be had from the hub ({one_line(error)})"
        ) from error
    return folder

"""Find the attention layers in an opened checkpoint: its family, its sizes, and what its tensor names begin with."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkrepro.checkpoint_files import Checkpoint, open_checkpoint
from qkrepro.errors import CheckpointError
from qkrepro.families import FAMILIES, SIZES, Family, Naming, Norm, Part
from qkrepro.model_hub import local_model

WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
ADAPTER = re.compile(r"(?:^|\.)(?:lora_[AB]|lora_embedding|hada_w|oft_|prompt_encoder|base_model\.model)")
QUANTISED = re.compile(
    r"\.(?:qweight|qzeros|scales|weight_scale|weight_scale_inv|absmax|quant_state|SCB|weight_format)"
)


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
    """Tensor names without what training wrappers put before them (module., _orig_mod.), to the names in the file."""
    names: dict[str, str] = {}
    for name in checkpoint.names():
        plain = WRAPPERS.sub("", name)
        if plain in names:
            raise CheckpointError(f"{checkpoint.path}: {names[plain]} and {name} are the same tensor twice")
        names[plain] = name
    return names


def _refuse_unreadable(checkpoint: Checkpoint) -> None:
    """Quantised weights and unmerged adapters have no W_QK that could be read from the file."""
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
    found = ", ".join(list(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    said = f"model_type is {model_type!r}" if checkpoint.config else "there is no config.json beside the weights"
    raise CheckpointError(f"{checkpoint.path}: {said}; allowed: {known}. Tensors found: {found or 'none'}")


def _tower(checkpoint: Checkpoint, names: Mapping[str, str], family: Family, part: Part) -> Tower:
    """Find the tensors of one tower by the family's names, whatever stands before them."""
    config = _part_config(checkpoint, family, part)
    for naming in family.namings:
        prefixes = _prefixes(names, naming.query)
        marked = [prefix for prefix in prefixes if part.marker and part.marker in prefix]
        prefixes = marked if marked or len(family.parts) > 1 else prefixes
        if len(prefixes) > 1:
            raise CheckpointError(
                f"{checkpoint.path}: several stacks of layers, under {', '.join(prefixes)}; allowed: one"
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
    found = ", ".join(list(names)[:4])
    raise CheckpointError(
        f"{checkpoint.path}: no {part.name or family.name} query weights ({family.namings[0].query}.weight); "
        f"tensors found: {found or 'none'}"
    )


def _prefixes(names: Iterable[str], query: str) -> list[str]:
    """What stands before the name of a query weight, over all layers, each once."""
    before, after = (re.escape(text) for text in f"{query}.weight".split("{layer}"))
    pattern = re.compile(rf"((?:.*\.)?){before}\d+{after}")
    found = (pattern.fullmatch(name) for name in names)
    return sorted({match[1] for match in found if match})


def _part_config(checkpoint: Checkpoint, family: Family, part: Part) -> dict[str, Any]:
    config = checkpoint.config
    if part.config_key is not None and isinstance(config.get(part.config_key), dict):
        config = config[part.config_key]
    kind = config.get("position_embedding_type")
    if kind not in (None, "absolute", "rope", "rotary"):
        raise CheckpointError(f"{checkpoint.path}: position_embedding_type is {kind!r}; allowed: 'absolute'")
    return {**family.defaults, **part.defaults, **config}


def _sizes(checkpoint: Checkpoint, config: Mapping[str, Any], family: Family) -> Sizes:
    keys = {**SIZES, **family.sizes}

    def size(name: str, default: int | None = None) -> int:
        value = config.get(keys[name])
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"{checkpoint.path}: config.json: {keys[name]} is {value!r}; allowed: an integer >= 1"
            )
        return value

    d_model, heads = size("d_model"), size("heads")
    kv_heads = size("kv_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(f"{checkpoint.path}: config.json: {heads} heads do not share {kv_heads} key heads evenly")
    return Sizes(d_model, heads, kv_heads, size("d_head", d_model // heads), size("layers"))

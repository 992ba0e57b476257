"""The towers of an opened model: which of its tensors are the attention layers, and of which sizes they are.

A model is a folder, a file, or its name on the hub where the network and the `hub` extra allow it. Which names, packing
and multiplier an architecture has is in `qkrepro.models.families`, how files are read in `qkrepro.models.weight_files`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkrepro.errors import CheckpointError
from qkrepro.models.families import FAMILY_OF, SIZES, Family, Naming, Norm, Part
from qkrepro.models.weight_files import Checkpoint, one_line, open_checkpoint

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
    for name in checkpoint.tensors:
        plain = WRAPPERS.sub("", name)
        if plain in names:
            raise checkpoint.error(f"{names[plain]} and {name} are the same tensor twice")
        names[plain] = name
    return names


def _refuse_unreadable(checkpoint: Checkpoint) -> None:
    """Refuse quantised weights and unmerged adapters, which have no W_QK that could be read from the file."""
    if checkpoint.config.get("quantization_config"):
        raise checkpoint.error("quantised weights (quantization_config); dequantise the model first")
    for name in checkpoint.tensors:
        if ADAPTER.search(name):
            raise checkpoint.error(f"an unmerged adapter ({name}); merge it into its model first")
        if QUANTISED.search(name):
            raise checkpoint.error(f"quantised weights ({name}); dequantise the model first")


def _family(checkpoint: Checkpoint, names: Mapping[str, str]) -> Family:
    model_type = checkpoint.config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILY_OF:
        return FAMILY_OF[model_type]
    stated = repr(model_type) if checkpoint.config else "no config.json beside the weights"
    raise checkpoint.error(
        f"model_type must be one of {', '.join(FAMILY_OF)}, got {stated}. Tensors found: {_listed(names)}"
    )


def _listed(names: Mapping[str, str]) -> str:
    shown = ", ".join(list(names)[:4]) or "none"
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _tower(checkpoint: Checkpoint, names: Mapping[str, str], family: Family, part: Part) -> Tower:
    """Find the tensors of one tower by the family's names, whatever stands before them."""
    config = _part_config(checkpoint, family, part)
    for naming in family.namings:
        prefixes = _prefixes(names, naming.query)
        marked = [prefix for prefix in prefixes if part.marker and part.marker in prefix]
        prefixes = marked if marked or len(family.parts) > 1 else prefixes
        if len(prefixes) > 1:
            raise checkpoint.error(f"there must be one stack of layers, got those under {', '.join(prefixes)}")
        if prefixes:
            post = config.get("do_layer_norm_before") is False or config.get("norm") == "post"
            norm = family.post_norm if post and family.post_norm else naming.norm
            sizes = _sizes(checkpoint, config, family)
            last, beyond = (
                f"{prefixes[0]}{naming.query.format(layer=sizes.layers - 1 + more)}.weight" for more in (0, 1)
            )
            if last not in names or beyond in names:
                problem = f"found {beyond}" if beyond in names else f"{last} is missing"
                raise checkpoint.error(f"config.json says {sizes.layers} layers; {problem}")
            return Tower(checkpoint, names, family, naming, norm, part, prefixes[0], config, sizes)
    weights = f"{part.name or family.name} query weights ({family.namings[0].query}.weight)"
    raise checkpoint.error(f"no {weights}; tensors found: {_listed(names)}")


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
        raise checkpoint.error(f"position_embedding_type must be 'absolute', got {kind!r}")
    return {**family.defaults, **part.defaults, **config}


def _sizes(checkpoint: Checkpoint, config: Mapping[str, Any], family: Family) -> Sizes:
    keys = {**SIZES, **family.sizes}

    def size(name: str, default: int | None = None) -> int:
        value = config.get(keys[name])
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise checkpoint.error(f"config.json: {keys[name]} must be an integer >= 1, got {value!r}")
        return value

    d_model, heads = size("d_model"), size("heads")
    kv_heads = size("kv_heads", heads)
    if heads % kv_heads:
        raise checkpoint.error(f"config.json: {heads} heads do not share {kv_heads} key heads evenly")
    return Sizes(d_model, heads, kv_heads, size("d_head", d_model // heads), size("layers"))


def local_model(name: str | Path) -> Path:
    """Return the folder or file of a model: the path itself when it exists, else a download of the hub's `owner/model`.

    Prefers safetensors, and takes .bin files where there are none. Raises CheckpointError when nothing is found.
    """
    path = Path(name).expanduser()
    if path.exists() or not HUB_NAME.fullmatch(str(name)):
        return path
    missing = f"model is {str(name)!r}; no such file or folder, and"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(f"{missing} the hub needs: pip install 'qkrepro[hub]'") from error
    try:
        folder = Path(snapshot_download(str(name), allow_patterns=[*SMALL, "*.safetensors"], ignore_patterns=["*/*"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(str(name), allow_patterns=[*SMALL, "*.bin"], ignore_patterns=["*/*"])
    except Exception as error:  # network, authorisation, disk: the hub's errors share no base class of their own
        raise CheckpointError(f"{missing} not to be had from the hub ({one_line(error)})") from error
    return folder

"""Files of weights: read single tensors from safetensors and PyTorch files without loading the model.

The safetensors reader is our own so that a header is checked before it is believed and no page of the file stays
mapped: a tensor is read into memory of its own, and nothing else is. It comes as a NumPy array, or as a tensor where
one is asked for; PyTorch is imported then, and for its own files, which are opened with `weights_only=True` alone and
mapped, not loaded. Nothing here knows what an attention head is.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qkrepro.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 2**19  # numbers of bfloat16 at a time
MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors format
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # what weights may be
BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F4": 4},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "C64": 64, "F64": 64, "I64": 64, "U64": 64},
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # what a folder holds, by preference


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file: its dtype by the format's name, its shape and its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # first byte, counted from the start of the file
    end: int


class SafetensorsFile:
    """The tensors of one .safetensors file, each read from the disk when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Read and check the header; raises CheckpointError when the file is not a whole safetensors file."""
        self.path = path
        self.entries = read_header(path)

    def names(self) -> list[str]:
        """Return the names of the tensors, in the order of the header."""
        return list(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header."""
        return self.entries[name].shape

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor in the format's own words, as F32 or BF16."""
        return self.entries[name].dtype

    def read(self, name: str) -> Tensor:
        """Return the tensor in the file's own precision.

        Raises CheckpointError for anything but F64, F32, F16 and BF16.
        """
        import torch

        entry, data = self.entries[name], self._bytes(name)
        tensor = torch.empty(entry.shape, dtype=getattr(torch, FLOATS[entry.dtype]))
        if len(data):  # PyTorch views no bytes of an empty tensor
            tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(data))
        return tensor

    def array(self, name: str) -> NDArray[Any]:
        """Return the tensor as a NumPy array, in the file's own precision; bfloat16 becomes float32, exactly."""
        entry = self.entries[name]
        if entry.dtype != "BF16":
            data = self._bytes(name)
            return data.view(FLOATS[entry.dtype]).reshape(entry.shape)
        wide = np.empty((entry.end - entry.begin) // 2, np.uint32)  # each a float32: a bfloat16 and 16 zero bits
        with _open(self.path) as file:
            file.seek(entry.begin)
            for start in range(0, len(wide), PIECE):
                piece = wide[start : start + PIECE]
                bits = self._next(file, 2 * len(piece), name).view(np.uint16)
                np.left_shift(bits, np.uint32(16), out=piece)
        return wide.view(np.float32).reshape(entry.shape)

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a floating-point tensor."""
        entry = self.entries[name]
        if entry.dtype not in FLOATS:
            raise CheckpointError(f"{self.path}: {name} must be one of {', '.join(FLOATS)}, got {entry.dtype}")
        with _open(self.path) as file:
            file.seek(entry.begin)
            return self._next(file, entry.end - entry.begin, name)

    def _next(self, file: Any, count: int, name: str) -> NDArray[np.uint8]:
        """Return the next bytes of the file, all of them."""
        data = np.empty(count, np.uint8)
        if file.readinto(data.data) != count:
            raise CheckpointError(f"{self.path}: {name} is cut off; the file has changed while it was read")
        return data


class WeightFile(Protocol):
    """A file of named tensors: SafetensorsFile or TorchFile."""

    def names(self) -> list[str]: ...  # noqa: D102
    def shape(self, name: str) -> tuple[int, ...]: ...  # noqa: D102
    def dtype(self, name: str) -> str: ...  # noqa: D102
    def read(self, name: str) -> Tensor: ...  # noqa: D102
    def array(self, name: str) -> NDArray[Any]: ...  # noqa: D102


class Checkpoint:
    """All tensors of a model, over one file or several shards, and its config.json (empty when there is none)."""

    def __init__(self, path: Path, config: dict[str, Any], files: Mapping[str, WeightFile]) -> None:
        """`files` maps a tensor's name in the file to the file that holds it."""
        self.path, self.config, self._files = path, config, dict(files)

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._files[name].shape(name)

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor, as its file says it."""
        return self._files[name].dtype(name)

    def read(self, name: str) -> Tensor:
        """Return the tensor in the file's own precision."""
        return self._files[name].read(name)

    def array(self, name: str) -> NDArray[Any]:
        """Return the tensor as a NumPy array in the file's own precision, bfloat16 as float32."""
        return self._files[name].array(name)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder (config.json beside its weights, sharded or not) or one file of weights.

    Raises CheckpointError when there are no weights, several and no index, a shard is missing or damaged, or the
    index names a file outside the folder.
    """
    if not path.exists():
        raise CheckpointError(f"model is {str(path)!r}; no such file or folder")
    folder = path if path.is_dir() else path.parent
    config = _config(folder)
    weights = _weights_of_folder(folder) if path.is_dir() else path
    if weights.name.endswith(".json"):
        return Checkpoint(path, config, dict(_shards(weights)))
    file = _open_weights(weights)
    return Checkpoint(path, config, dict.fromkeys(file.names(), file))


def _config(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder, or the configuration of a run of `qkrepro train`; empty without either."""
    if (folder / "config.json").exists():
        return read_json(folder / "config.json")
    run = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    stated = run.get("configuration")
    return {**stated, "model_type": "qkrepro"} if isinstance(stated, dict) else {}


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the checked header of a safetensors file: every tensor lies inside the file, and they leave no gaps.

    Raises CheckpointError naming what is wrong: a header longer than the file or the format's limit, not a JSON
    object, a name twice, an unknown dtype, a shape that does not fit its bytes, overlaps, gaps, bytes left over.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            raise CheckpointError(f"{path}: {size} bytes; a safetensors file has at least 8")
        length = int.from_bytes(start, "little")
        if length > MAX_HEADER or 8 + length > size:
            raise CheckpointError(f"{path}: the header claims {length} bytes and the file has {size}; truncated?")
        raw = file.read(length)
    header = _parse_json(path, raw, "the header")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, fields, 8 + length) for name, fields in header.items()}
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise CheckpointError(f"{path}: {name} starts at byte {entry.begin} and the tensor before ends at {end}")
        end = entry.end
    if end != size:
        raise CheckpointError(f"{path}: the header describes {end} bytes and the file has {size}; truncated?")
    return entries


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file; raises CheckpointError when it cannot be read or is anything else."""
    with _open(path) as file:
        return _parse_json(path, file.read(MAX_HEADER), "the content")


def _parse_json(path: Path, raw: bytes, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            raise ValueError("a name appears twice")
        return content

    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {what} is not JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: {what} must be a JSON object, got a {type(content).__name__}")
    return content


def _entry(path: Path, name: str, fields: Any, base: int) -> TensorEntry:
    """Return one checked entry of a header whose data start at byte `base` of the file."""
    check_name(path, name)
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise CheckpointError(f"{path}: {name} has no dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{path}: {name} must have dtype one of {', '.join(sorted(BITS))}, got {dtype!r:.40}")
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise CheckpointError(f"{path}: {name} has shape {shape!r:.60} and data_offsets {offsets!r:.60}")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise CheckpointError(f"{path}: {name} has {end - begin} bytes for shape {shape!r:.60} of {dtype}")
    return TensorEntry(dtype, tuple(shape), base + begin, base + end)


def check_name(path: Path, name: str) -> None:
    """Raise CheckpointError unless a tensor's name can be printed on one line."""
    if not name.isprintable():
        raise CheckpointError(f"{path}: names of tensors must be printable, got {name!r:.80}")


def _counts(value: Any) -> bool:
    """Return whether a value is a list of integers >= 0 (64 bits at most)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _weights_of_folder(folder: Path) -> Path:
    """Return the file to open in a folder: an index of shards, one file of weights, or CheckpointError."""
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder}: an unmerged adapter (adapter_config.json); merge it into its model first")
    for name in WEIGHT_FILES:
        for path in (folder / f"{name}.index.json", folder / name):
            if path.exists():
                return path
        others = [path for path in sorted(folder.glob(f"*{Path(name).suffix}")) if path.name != "training_args.bin"]
        if len(others) > 1:
            listed = ", ".join(path.name for path in others[:5])
            raise CheckpointError(f"{folder}: {len(others)} files of weights and no index ({listed}); name one of them")
        if others:
            return others[0]
    raise CheckpointError(f"{folder}: no weights; a model has {', '.join(WEIGHT_FILES)}, or shards with an index")


def _open_weights(path: Path) -> WeightFile:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".bin", ".pt", ".pth"):
        return TorchFile(path)
    raise CheckpointError(f"{path}: must be a folder or end in .safetensors, .bin, .pt or .pth, got {path.suffix!r}")


def _shards(index: Path) -> Iterator[tuple[str, WeightFile]]:
    """Yield (tensor name, file) over the shards that an index names; each must lie in the index's own folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must be an object of tensor names and file names")
    files: dict[str, WeightFile] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or set(shard) & {"/", "\\", "\0"}:
            raise CheckpointError(f"{index}: {name} must be in a file beside the index, got {shard!r:.80}")
        if shard not in files:
            if not (index.parent / shard).is_file():
                raise CheckpointError(f"{index}: shard {shard} is missing")
            files[shard] = _open_weights(index.parent / shard)
        if name not in files[shard].names():
            raise CheckpointError(f"{index}: {name} is not in {shard}")
        yield name, files[shard]


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, 120 characters at most."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


class TorchFile:
    """The tensors of one file of torch.save, opened with weights_only=True and mapped rather than loaded."""

    def __init__(self, path: Path) -> None:
        """Open the file; raises CheckpointError when it is damaged or holds anything but tensors and plain values."""
        self.path = path
        self.tensors = dict(_tensors(_load_torch(path)))
        for name in self.tensors:
            check_name(path, name)
        if not self.tensors:
            raise CheckpointError(f"{path}: no tensors found; the file must hold a state dict as torch.save writes it")

    def names(self) -> list[str]:
        """Return the names of the tensors, in the order of the state dict."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor in PyTorch's words, as float32."""
        return str(self.tensors[name].dtype).removeprefix("torch.")

    def read(self, name: str) -> Tensor:
        """Return a copy of the tensor in the file's own precision; CheckpointError unless it is floating point."""
        if self.dtype(name) not in FLOATS.values():
            raise CheckpointError(f"{self.path}: {name} must be one of {', '.join(FLOATS)}, got {self.dtype(name)}")
        return self.tensors[name].detach().clone()

    def array(self, name: str) -> NDArray[Any]:
        """Return the tensor as a NumPy array, in the file's own precision; bfloat16 becomes float32, exactly."""
        tensor = self.read(name)
        return np.asarray(tensor.float() if self.dtype(name) == "bfloat16" else tensor)


def _load_torch(path: Path) -> Any:
    """Return what a file of torch.save holds; mapped when its format allows it."""
    import torch

    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, not tensors and plain values alone, or damaged") from error
    except Exception as error:  # a damaged pickle can raise any of a dozen kinds
        raise CheckpointError(f"{path}: not a file of torch.save, or damaged ({one_line(error)})") from error


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a state dict, also of one that a trainer has put under `state_dict` or `model`."""
    from torch import Tensor

    if isinstance(content, Mapping):
        for key in ("state_dict", "model_state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
        yield from ((str(name), value) for name, value in content.items() if isinstance(value, Tensor))

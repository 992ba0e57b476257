"""Files of weights: read single tensors from safetensors and PyTorch files without loading the model.

The safetensors library checks a file, and the bytes of a tensor are then read into memory of its own, so that no page
of the file stays mapped and bfloat16, which NumPy does not know, can be widened. PyTorch is imported for its own files
alone, which are opened with `weights_only=True` and mapped, not loaded. Nothing here knows what an attention head is.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from qkrepro.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 2**19  # numbers of bfloat16 at a time
LARGEST_JSON = 100_000_000  # bytes
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # what weights may be
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # what a folder holds, by preference


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its shape, and the function that reads it as a NumPy array.

    The array has the file's own precision; bfloat16 becomes float32, exactly. Raises CheckpointError for integers and
    for eight bits, and when the file has changed since it was opened.
    """

    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model by name, over one file or several shards, and its config.json (empty without one)."""

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]

    def error(self, problem: str) -> CheckpointError:
        """Return an error that names the checkpoint."""
        return CheckpointError(f"{self.path}: {problem}")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder (config.json beside its weights, sharded or not) or one file of weights.

    Raises CheckpointError when there are no weights, several and no index, a shard is missing or damaged, or the
    index names a file outside the folder.
    """
    if not path.exists():
        raise CheckpointError(f"model is {str(path)!r}; no such file or folder")
    folder = path if path.is_dir() else path.parent
    weights = _weights_of_folder(folder) if path.is_dir() else path
    opened = dict(_shards(weights)) if weights.name.endswith(".json") else _open_weights(weights)
    return Checkpoint(path, _config(folder), opened)


def _config(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder, or the configuration of a run of `qkrepro train`; empty without either."""
    if (folder / "config.json").exists():
        return read_json(folder / "config.json")
    run = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    stated = run.get("configuration")
    return {**stated, "model_type": "qkrepro"} if isinstance(stated, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file; raises CheckpointError when it cannot be read or is anything else."""
    with _open(path) as file:
        raw = file.read(LARGEST_JSON)
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the content is not JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: the content must be a JSON object, got a {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name appears twice")
    return content


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


def _open_weights(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name; CheckpointError for a name that cannot be printed on one line."""
    if path.suffix == ".safetensors":
        tensors = _safetensors(path)
    elif path.suffix in (".bin", ".pt", ".pth"):
        tensors = _torch_tensors(path)
    else:
        raise CheckpointError(
            f"{path}: must be a folder or end in .safetensors, .bin, .pt or .pth, got {path.suffix!r}"
        )
    for name in tensors:
        if not name.isprintable():
            raise CheckpointError(f"{path}: names of tensors must be printable, got {name!r:.80}")
    return tensors


def _shards(index: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Yield each tensor with its name over the shards that an index names; each must lie in the index's own folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must be an object of tensor names and file names")
    files: dict[str, dict[str, StoredTensor]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or set(shard) & {"/", "\\", "\0"}:
            raise CheckpointError(f"{index}: {name} must be in a file beside the index, got {shard!r:.80}")
        if shard not in files:
            if not (index.parent / shard).is_file():
                raise CheckpointError(f"{index}: shard {shard} is missing")
            files[shard] = _open_weights(index.parent / shard)
        if name not in files[shard]:
            raise CheckpointError(f"{index}: {name} is not in {shard}")
        yield name, files[shard][name]


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, 120 characters at most."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file that the library accepts, each read when it is asked for."""
    try:
        with safe_open(path, "numpy"):  # checks that the header is one and that its tensors fill the file
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: no whole safetensors file ({one_line(error)})") from error
    with _open(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(tuple(entry["shape"]), partial(_array, path, name, entry, 8 + length))
        for name, entry in header.items()
    }


def _array(path: Path, name: str, entry: Mapping[str, Any], base: int) -> NDArray[Any]:
    """Return a tensor of a safetensors file whose data start at byte `base`, by its entry in the header."""
    dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
    _check_float(path, name, dtype, FLOATS)
    with _open(path) as file:
        file.seek(base + begin)
        if dtype != "BF16":
            return _next(file, end - begin, name).view(FLOATS[dtype]).reshape(entry["shape"])
        wide = np.empty((end - begin) // 2, np.uint32)  # each a float32: a bfloat16 and 16 zero bits
        for start in range(0, len(wide), PIECE):
            piece = wide[start : start + PIECE]
            bits = _next(file, 2 * len(piece), name).view(np.uint16)
            np.left_shift(bits, np.uint32(16), out=piece)
    return wide.view(np.float32).reshape(entry["shape"])


def _next(file: Any, count: int, name: str) -> NDArray[np.uint8]:
    """Return the next bytes of a file, all of them."""
    data = np.empty(count, np.uint8)
    if file.readinto(data.data) != count:
        raise CheckpointError(f"{file.name}: {name} is cut off; the file has changed while it was read")
    return data


def _check_float(path: Path, name: str, dtype: str, allowed: Iterable[str]) -> None:
    if dtype not in allowed:
        raise CheckpointError(f"{path}: {name} must be one of {', '.join(FLOATS)}, got {dtype}")


def _torch_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file of torch.save, mapped.

    Raises CheckpointError when it is damaged, holds anything but tensors and plain values, or no tensors.
    """

    def array(name: str, tensor: Tensor) -> NDArray[Any]:
        dtype = str(tensor.dtype).removeprefix("torch.")
        _check_float(path, name, dtype, FLOATS.values())
        own = tensor.detach().clone()
        return np.asarray(own.float() if dtype == "bfloat16" else own)

    tensors = {name: StoredTensor(tuple(t.shape), partial(array, name, t)) for name, t in _tensors(_load_torch(path))}
    if not tensors:
        raise CheckpointError(f"{path}: no tensors found; the file must hold a state dict as torch.save writes it")
    return tensors


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

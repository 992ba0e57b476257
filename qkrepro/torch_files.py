"""Files of torch.save: single tensors of a state dict, opened with `weights_only=True` alone and mapped, not loaded."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkrepro.checkpoint_files import FLOATS, check_name, one_line
from qkrepro.errors import CheckpointError


class TorchFile:
    """The tensors of one file of torch.save, opened with weights_only=True and mapped rather than loaded."""

    def __init__(self, path: Path) -> None:
        """Open the file; raises CheckpointError when it is damaged or holds anything but tensors and plain values."""
        self.path = path
        self.tensors = dict(_tensors(_load_torch(path)))
        for name in self.tensors:
            check_name(path, name)
        if not self.tensors:
            raise CheckpointError(f"{path}: no tensors found; allowed: a state dict as torch.save writes it")

    def names(self) -> list[str]:
        """Names of the tensors, in the order of the state dict."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> str:
        """Dtype of a tensor in PyTorch's words, as float32."""
        return str(self.tensors[name].dtype).removeprefix("torch.")

    def read(self, name: str) -> Tensor:
        """A copy of the tensor in the file's own precision; CheckpointError unless it is floating point."""
        if self.dtype(name) not in FLOATS.values():
            raise CheckpointError(f"{self.path}: {name} is {self.dtype(name)}; allowed: {', '.join(FLOATS)}")
        return self.tensors[name].detach().clone()

    def array(self, name: str) -> NDArray[Any]:
        """As `read`, for NumPy: bfloat16 becomes float32."""
        tensor = self.read(name)
        return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def _load_torch(path: Path) -> Any:
    """What a file of torch.save holds; mapped when its format allows it."""
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
    """Tensors of a state dict, also of one that a trainer has put under `state_dict` or `model`."""
    if isinstance(content, Mapping):
        for key in ("state_dict", "model_state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
        yield from ((str(name), value) for name, value in content.items() if isinstance(value, Tensor))

"""The checkpoint of a run: one file, replaced atomically, that holds all that the rest of the run depends on."""

import io
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qkrepro.errors import RunError
from qkrepro.files import write_atomically

CHECKPOINT, BEST = "checkpoint.pt", "best.safetensors"


@dataclass
class Progress:
    """Where a run stands, apart from weights, optimiser and random numbers."""

    update: int = 0  # updates done
    rows: list[dict[str, Any]] = field(default_factory=list)  # of metrics.csv
    arrays: list[dict[str, Tensor]] = field(default_factory=list)  # of spectrum.npz, one entry per row
    best: int = 0  # index of the row with the least validation loss
    loss_sum: float = 0.0  # of the updates since the last row
    penalty_sum: float = 0.0
    covariances: list[Tensor] = field(default_factory=list)  # running Σ of each layer, where the run has one
    environment: dict[str, Any] = field(default_factory=dict)  # at the start of the run
    sessions: list[dict[str, Any]] = field(default_factory=list)  # one entry per start of the program: timing.json


def save_checkpoint(
    folder: Path, identity: str, progress: Progress, model: nn.Module, optimizer: Optimizer, device: str
) -> None:
    """Replace the checkpoint in `folder`. Raises RunError when it cannot be written; the old one then stays.

    identity: of the run. progress, model, optimizer: what is kept, beside the random numbers of the processor and,
    where it is "cuda", of the device.
    """
    content = {
        "identity": identity,
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if device == "cuda" else None,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(folder / CHECKPOINT, buffer.getvalue())


def load_checkpoint(folder: Path, identity: str, model: nn.Module, optimizer: Optimizer, device: str) -> Progress:
    """Restore model, optimizer and random numbers in place; a run without a checkpoint starts at update 0.

    folder, identity: of the run. device: "cpu" or "cuda". Raises RunError for a damaged file or one of another run.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return Progress()
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if content["identity"] != identity:
            raise RunError(f"{path} must belong to run {identity}, got {content['identity']}")
        progress = Progress(**content["progress"])
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["rng"].cpu())
        if device == "cuda":
            torch.cuda.set_rng_state(content["cuda_rng"].cpu())
    except RunError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} is damaged ({why}); delete it to start the run again") from error
    return progress

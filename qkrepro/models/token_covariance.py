"""Covariances of a model's own tokens, for measuring W_QK where the tokens are: `qkrepro spectrum --text`.

The model is run by `transformers`, ours by its own class, and the inputs of each query projection are caught on the
way: after the preceding normalisation, as the head reads them. Source: book, "Setting and notation" (Σ is the
covariance of the increments).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.std import TqdmWarning

from qkrepro.errors import ArgumentError, CheckpointError
from qkrepro.models.towers import Tower, local_model, open_towers
from qkrepro.models.weight_files import one_line

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float64

WITHOUT_TEXT = ("vit", "clip_vision_model")
LONGEST = 512  # tokens of a window


def covariance(tokens: Sequence[Tensor]) -> Float64[Tensor, "d d"]:
    """Return the covariance (d, d), float64, of all tokens of several windows (T, d) about their common mean."""
    pooled = torch.cat(list(tokens)).double()
    return torch.cov(pooled.mT, correction=0)


def increment_second_moment(tokens: Sequence[Tensor]) -> Float64[Tensor, "d d"]:
    """Return the mean of ε εᵀ, (d, d) float64, over the increments ε within windows (T, d): Σ of a walk, mean 0."""
    steps = torch.cat([window.double().diff(dim=0) for window in tokens])
    moment: Tensor = steps.mT @ steps / len(steps)
    return moment


def increment_covariances(model: str | Path, text: Path) -> dict[tuple[str, int], Tensor]:
    """Return (part, layer) to the covariance (d_model, d_model) of the increments of a text's tokens at that layer.

    model: a folder (or hub name) with its tokenizer, as `transformers` reads it, or a run of `qkrepro train`. Of CLIP
    the text tower alone has entries.
    Raises ArgumentError for a text that cannot be read or has fewer than two tokens, or a model that reads no text;
    CheckpointError when it cannot be run.
    """
    content = _read_text(text)
    tower = open_towers(model)[0]  # of CLIP the text tower
    kind = tower.checkpoint.config["model_type"]
    if kind in WITHOUT_TEXT:
        raise ArgumentError(
            f"text must be given for a model that reads text, got one of type {kind!r}, which reads images"
        )
    run: Callable[[Tensor], object]
    if kind == "qkrepro":
        from qkrepro.models.run_words import run_model, run_words, text_windows

        network: Any = run_model(tower)
        windows = text_windows(content, run_words(tower.checkpoint), network.config.max_length)
        run = network.hidden
    else:
        path = local_model(model)
        folder = path if path.is_dir() else path.parent
        network = running_model(folder)
        windows = _windows(folder, network, content)
        network = network.text_model if kind == "clip" else network
        run = lambda window: network(input_ids=window)  # noqa: E731
    seen = _inputs(network, run, windows, tower)
    return {(tower.part.name, layer): increment_second_moment(tokens) for layer, tokens in seen.items()}


def _read_text(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"text is {str(text)!r}; it cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ArgumentError(f"text must be a file of UTF-8 text, got {str(text)!r}") from error


def running_model(folder: Path, **options: Any) -> Any:
    """Return the model in a folder as `transformers` runs it, in float32 and without dropout; options go to it.

    Raises ArgumentError when `transformers` is not installed, CheckpointError when it cannot run the model.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # of a notebook without widgets, on the bar that is turned off
            from transformers import AutoModel
            from transformers.utils import logging
    except ImportError as error:
        raise ArgumentError("a text needs the package transformers: pip install transformers") from error
    quiet: Any = logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        return AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **options).eval()
    except Exception as error:  # of many kinds, for files that transformers cannot use
        raise CheckpointError(f"{folder}: transformers cannot run it ({one_line(error)})") from error


def _windows(folder: Path, network: Any, content: str) -> list[Tensor]:
    """Return the windows of token numbers, (1, T) each, that a text becomes for a model."""
    from transformers import AutoTokenizer

    longest = min(LONGEST, getattr(network.config.get_text_config(), "max_position_embeddings", LONGEST) - 2)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        pieces = tokenizer(content, truncation=True, max_length=longest, return_overflowing_tokens=True)["input_ids"]
    except Exception as error:  # of many kinds, as above
        raise CheckpointError(f"{folder}: transformers cannot run it ({one_line(error)})") from error
    windows = [torch.tensor([piece]) for piece in pieces if len(piece) > 1]
    if not windows:
        raise ArgumentError("text must hold at least two tokens, which have an increment, got fewer")
    return windows


def _inputs(
    network: nn.Module, run: Callable[[Tensor], object], windows: list[Tensor], tower: Tower
) -> dict[int, list[Tensor]]:
    """Return what the query projection of each layer reads, layer to one (T, d_model) per window."""
    before, after = (re.escape(piece) for piece in tower.naming.query.split("{layer}"))
    pattern = re.compile(rf"(?:.*\.)?{before}(\d+){after}")
    seen: dict[int, list[Tensor]] = {layer: [] for layer in range(tower.sizes.layers)}

    def catch(layer: int) -> Any:
        return lambda _, arguments: seen[layer].append(arguments[0].detach()[0])

    for name, module in network.named_modules():
        match = pattern.fullmatch(name)
        if match and (not tower.part.marker or "vision" not in name):
            module.register_forward_pre_hook(catch(int(match[1])))
    with torch.no_grad():
        for window in windows:
            run(window)
    if not all(len(tokens) == len(windows) for tokens in seen.values()):
        raise CheckpointError("the running model's layers are not named as in its file; text cannot be used with it")
    return seen

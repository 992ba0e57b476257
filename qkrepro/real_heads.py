"""What the heads of a trained model do on a text, beside what their spectra say: tables for the book.

Entropy follows W in the covariance of the tokens themselves, localization W in the covariance of their increments.
Source: book, "Setting and notation".
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qkrepro.head_products import Array, head_products, products_in_covariance, random_products
from qkrepro.intervals import spearman_interval
from qkrepro.minilm import LayerView, layer_views
from qkrepro.pretrained import qk_layers
from qkrepro.spectrum_null import localization_of, relative_variance
from qkrepro.token_covariance import covariance, increment_covariance


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


def spectra(folder: Path) -> pd.DataFrame:
    """Eigenvalues of every head over its ‖W‖_F, one row an eigenvalue: layer, head, real, imag."""
    frames = []
    for layer in qk_layers(folder):
        products = head_products(layer.w_q, layer.w_k)
        values = products.eigenvalues() / np.sqrt(products.frobenius_sq())[:, None]  # (heads, d_head)
        for head, row in enumerate(values):
            frame = pd.DataFrame({"real": row.real.tolist(), "imag": row.imag.tolist()}).sort_values(["real", "imag"])
            frames.append(frame.assign(layer=layer.layer, head=head))
    return pd.concat(frames, ignore_index=True)[["layer", "head", "real", "imag"]]


def random_spectra(d_head: int, d_model: int, draws: int, seed: int) -> pd.DataFrame:
    """Eigenvalues over ‖W‖_F of random heads of the same shape, one row an eigenvalue: draw, real, imag."""
    products = random_products(d_head, d_model, draws, seed)
    values = products.eigenvalues() / np.sqrt(products.frobenius_sq())[:, None]  # (draws, d_head)
    draw = np.repeat(np.arange(draws), d_head)
    return pd.DataFrame({"draw": draw, "real": values.real.ravel(), "imag": values.imag.ravel()})


def correlations(
    table: pd.DataFrame, target: str, quantities: Sequence[str], *, seed: int, resamples: int = 1000
) -> pd.DataFrame:
    """Spearman correlation of each quantity with the target over heads, with its bootstrap interval.

    Returns columns quantity, correlation, low, high. The interval resamples heads; heads of one model share a training
    and a text, so it says nothing of other models.
    """
    found = [spearman_interval(table[name], table[target], seed=seed, resamples=resamples) for name in quantities]
    rows = [{"quantity": name, **interval._asdict()} for name, interval in zip(quantities, found, strict=True)]
    return pd.DataFrame(rows).rename(columns={"estimate": "correlation"})

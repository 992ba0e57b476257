"""Masks of attention, and the tokens that attention with LayerNorm leaves where they are.

Tokens are rows, x (T, d); a mask is (T, T), True where query t (row) sees key i (column). Float64.
Source: book, "Masks and LayerNorm"; Wu, Ajorlou, Wang, Jegelka, Jadbabaie 2024 (arXiv 2405.18781); construction ours.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Generator, Tensor
from torch.nn.functional import layer_norm

from qkrepro.theory.attention import attention_logits, causal_mask, softmax_attention
from qkrepro.theory.depth import Spectrum, Stack
from qkrepro.theory.spectrum import random_rotation, random_spectrum_matrix

DISCONNECTED = "two halves"  # the control: no token reaches all


def masks(length: int, windows: Sequence[int], generator: Generator) -> dict[str, Bool[Tensor, "T T"]]:
    """Return masks (T, T) by name: complete, causal, causal windows, a ring, a random one, and one in two halves.

    windows: tokens that a query of a window mask sees, itself included. All but the last are quasi-strongly connected:
    from some token every other is reached.
    """
    eye, causal = torch.eye(length, dtype=torch.bool), causal_mask(length)
    place = torch.arange(length)
    near = {f"window {width}": causal & (place[:, None] - place < width) for width in windows}
    named = {"complete": torch.ones_like(causal), "causal": causal, **near, "ring": eye | eye.roll(-1, 1)}
    while "random" not in named:  # two keys a query beside itself, drawn until one token reaches all
        drawn = eye | (torch.rand(length, length, generator=generator).argsort(1) < 2)
        named |= {"random": drawn} if is_connected(drawn) else {}
    return named | {DISCONNECTED: (place[:, None] < length // 2) == (place < length // 2)}


def is_connected(mask: Tensor) -> bool:
    """Return whether information of some token reaches every token through the mask (T, T), layer after layer."""
    reach = mask.double()
    for _ in range(math.ceil(math.log2(len(mask)))):
        reach = ((reach @ reach) > 0).double()
    return bool((reach > 0).all(0).any())


def centred_norm(x: Tensor) -> Tensor:
    """Return ‖x − 1x̄ᵀ‖_F of tokens (..., T, d), (...)."""
    norm: Tensor = torch.linalg.matrix_norm(x - x.mean(-2, keepdim=True))
    return norm


def equilibrium(rank: int, stack: Stack, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return tokens x (T, d) of this rank and an orthogonal W_V (d, d) that attention with W_QK = cI, c > 0, fixes.

    The tokens are e₁, −e₁, e₂, −e₂, …, over and over, for orthogonal e_j of norm √d without a mean over coordinates,
    which is what LayerNorm leaves. To a query ±e_j the tokens of another pair have logit 0, hence equal weights, and
    cancel; of its own pair the token of its sign has more weight. So its output is a positive multiple of itself, and
    LayerNorm restores its size. W_V is the identity on the span of the tokens and a random rotation beside it.
    """
    drawn = torch.randn(stack.dim, stack.dim, generator=generator, dtype=torch.float64)
    drawn[:, 0] = 1
    basis = torch.linalg.qr(drawn).Q  # (d, d), orthonormal columns, the first of them constant
    pairs = basis[:, 1 : rank + 1].T * math.sqrt(stack.dim)  # (rank, d)
    signed = torch.stack([pairs, -pairs], 1).reshape(-1, stack.dim)  # (2 rank, d)
    tokens = signed[torch.arange(stack.length) % len(signed)]
    beside = torch.cat([basis[:, :1], basis[:, rank + 1 :]], 1)  # (d, d − rank)
    turned = beside @ random_rotation(beside.shape[1], generator=generator) @ beside.T
    return tokens, basis[:, 1 : rank + 1] @ basis[:, 1 : rank + 1].T + turned


def attention_and_layer_norm(x: Tensor, w: Tensor, value: Tensor, temperature: float, mask: Tensor) -> Tensor:
    """Return tokens x (T, d) after a layer, LayerNorm(A x W_V) with ε = 0.

    w: W_QK and value: W_V, (d, d). temperature: λ. mask: (T, T).
    """
    mixed = softmax_attention(attention_logits(x, w), temperature, mask=mask) @ x @ value
    return layer_norm(mixed, x.shape[-1:], eps=0.0)


def residuals(
    spectra: Mapping[str, Spectrum], stack: Stack, windows: Sequence[int], *, seeds: Iterable[int]
) -> pd.DataFrame:
    """Send tokens through masked attention without LayerNorm, values orthogonal, and measure what is left of them.

    spectra: of W_QK, by name. stack: sizes, tokens and temperature. windows: of `masks`. Weights are drawn anew in
    every layer from each of the seeds; masks and spectra of one seed share them. Returns columns mask, spectrum, seed,
    layer, residual: ‖x − 1x̄ᵀ‖_F over that of the input, one row per layer.
    """
    rows = []
    for seed in seeds:
        generator = Generator().manual_seed(seed)
        tokens, drawn = stack.draw_input(generator), masks(stack.length, windows, generator)
        size: dict[str, Any] = {"generator": generator, "batch": (stack.layers,)}
        units = random_spectrum_matrix(stack.dim, 0.0, 1.0, **size) / math.sqrt(stack.dim)  # (layers, d, d)
        values = random_rotation(stack.dim, **size)  # (layers, d, d)
        visible = torch.stack(list(drawn.values()))  # (masks, T, T)
        for name, spectrum in spectra.items():
            x = tokens.expand(len(visible), -1, -1)  # (masks, T, d)
            mean = spectrum.trace / stack.dim * torch.eye(stack.dim, dtype=torch.float64)
            start = centred_norm(tokens)
            for layer, (unit, value) in enumerate(zip(units, values, strict=True), 1):
                logits = attention_logits(x, mean + spectrum.spread * unit)
                x = softmax_attention(logits, stack.temperature, mask=visible) @ x @ value
                left = (centred_norm(x) / start).tolist()
                rows += [(mask, name, seed, layer, rest) for mask, rest in zip(drawn, left, strict=True)]
    return pd.DataFrame(rows, columns=["mask", "spectrum", "seed", "layer", "residual"])

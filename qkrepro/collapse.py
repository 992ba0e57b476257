"""Rank and entropy collapse over depth: stacks of attention layers whose W_QK has a chosen eigenspectrum.

The measures of tokens are in `qkrepro.rank_measures`, the bounds on entropy in `qkrepro.entropy_bound`; both are
offered here too. Everything is float64: residuals fall to 1e-10 within a few dozen layers, entropies further.
Source: book, "Rank collapse" and "Both at once"; claim of arXiv 2402.02098 (abstract), experiment ours.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd
import torch
from torch import Generator, Tensor

from qkrepro.attention import attention_entropy, attention_logits, causal_mask, softmax_attention
from qkrepro.entropy_bound import causal_entropy_bounds, entropy_lower_bound, extremal_logits, log_entropy_lower_bound
from qkrepro.errors import ArgumentError, check_choice, check_integer, check_number
from qkrepro.rank_measures import (
    l1_linf_norm,
    mean_cosine_similarity,
    rank_residual,
    smallest_l1_linf_residual,
    stable_rank,
)
from qkrepro.spectrum import random_spectrum_matrix
from qkrepro.tokens import ar1_tokens, independent_tokens, random_walk

__all__ = [
    "Spectrum",
    "Stack",
    "causal_entropy_bounds",
    "depth_experiment",
    "draw_tokens",
    "entropy_lower_bound",
    "extremal_logits",
    "l1_linf_norm",
    "layer_entropy",
    "log_entropy_lower_bound",
    "mean_cosine_similarity",
    "rank_residual",
    "smallest_l1_linf_residual",
    "stable_rank",
]

TokenLaw = Literal["random walk", "independent", "AR(1)"]
TOKEN_LAWS: tuple[TokenLaw, ...] = ("random walk", "independent", "AR(1)")
LAYER_NORM_EPS = 1e-5  # PyTorch's default


class Spectrum(NamedTuple):
    """Eigenvalues of a symmetric d × d W_QK: mean `trace`/d and variance `spread`²/d.

    On tokens of norm √d the logits of alike tokens are about `trace`, and `spread` is their scatter about it.
    """

    trace: float  # ξ = tr W = d · mean
    spread: float  # √(d σ²), the Frobenius norm of W − (ξ/d) I


@dataclass(frozen=True)
class Stack:
    """A stack of single-head attention layers, x ← LayerNorm([x +] A x W_V), and the tokens it is given.

    W_QK and W_V are drawn anew in every layer; weights are shared between the spectra of one seed (paired draws).
    """

    layers: int = 8
    length: int = 64  # T
    dim: int = 64  # d
    tokens: TokenLaw = "random walk"
    residual: bool = False  # add the layer's input to its output
    layer_norm: bool = True  # after every layer (without gain and bias); the input is normalised whatever this says
    normalise_input: bool = True  # False gives raw tokens
    values: Literal["random", "identity"] = "random"  # W_V: independent N(0, 1/d) entries, or the identity
    temperature: float = 1.0  # λ
    causal: bool = True
    coefficient: float = 0.95  # φ of the AR(1) tokens; the other laws have none

    def __post_init__(self) -> None:
        """Raise ArgumentError for a value out of range."""
        for name, least in (("layers", 1), ("length", 2), ("dim", 2)):
            check_integer(name, getattr(self, name), at_least=least)
        check_choice("tokens", self.tokens, TOKEN_LAWS)
        check_choice("values", self.values, ("random", "identity"))
        check_number("temperature", self.temperature, above=0)

    @property
    def entropy_scale(self) -> float:
        """Entropy of uniform attention, in nats: log T, and log(0.75 T) over the last half of causal queries."""
        return math.log(0.75 * self.length) if self.causal else math.log(self.length)


def depth_experiment(
    spectra: Sequence[Spectrum], stack: Stack, *, seeds: Iterable[int], every_layer: bool = True
) -> pd.DataFrame:
    """Send tokens through stacks whose W_QK has each of these spectra, and measure both collapses at every layer.

    Tokens, eigenvectors, the sample of eigenvalues and W_V depend on the seed and the layer alone, so differences
    between spectra are paired by seed, and a seed's rows do not depend on which other seeds or spectra are run.
    every_layer: False measures tokens before the first and after the last layer only, and entropy in the first.

    Returns one row a (seed, spectrum, layer), tidy: tokens, mean_scaled (ξ/λ), dispersion (√(d σ²)/λ), seed, layer
    (0 is the input), residual (Frobenius), residual_ratio (to the input's own), input_residual, cosine_similarity,
    stable_rank, entropy (nats; attention of this layer, mean over queries, the last half of them when causal) and
    entropy_ratio (to that of uniform attention); both NaN where no attention was measured.
    Raises ArgumentError for no spectra, no seeds or a negative spread.
    Source: theory, "Rank collapse" and "Both at once" (claims: paper; experiment: ours).
    """
    seed_list = list(seeds)
    if not spectra or not seed_list:
        raise ArgumentError(f"spectra has {len(spectra)} entries and seeds {len(seed_list)}; allowed: one or more")
    for spectrum in spectra:
        check_number("trace", spectrum.trace)
        check_number("spread", spectrum.spread, at_least=0)
    table = pd.concat([_one_seed(spectra, stack, seed, every_layer) for seed in seed_list], ignore_index=True)
    keys = ["mean_scaled", "dispersion", "seed"]
    table["input_residual"] = table.groupby(keys)["residual"].transform("first")
    table["residual_ratio"] = table["residual"] / table["input_residual"]
    table["entropy_ratio"] = table["entropy"] / stack.entropy_scale
    table.insert(0, "tokens", stack.tokens)
    return table


def draw_tokens(stack: Stack, generator: Generator) -> Tensor:
    """One sequence of the stack's token law, (T, d) float64, through LayerNorm when the stack normalises its input."""
    if stack.tokens == "random walk":
        x = random_walk(stack.length, stack.dim, batch=1, generator=generator)[0]
    elif stack.tokens == "independent":
        x = independent_tokens(stack.length, stack.dim, batch=1, generator=generator)[0]
    else:
        x = ar1_tokens(stack.length, stack.dim, coefficient=stack.coefficient, batch=1, generator=generator)[0]
    return _layer_norm(x) if stack.normalise_input else x


def layer_entropy(attention: Tensor, *, causal: bool = True) -> Tensor:
    """Mean entropy of the queries, over the last half of them when causal (early ones see few tokens); nats.

    attention: (..., T, T). Returns float64, (...).
    """
    rows = attention[..., attention.shape[-2] // 2 :, :] if causal else attention
    return attention_entropy(rows).mean(-1)


def _one_seed(spectra: Sequence[Spectrum], stack: Stack, seed: int, every_layer: bool) -> pd.DataFrame:
    generator = Generator().manual_seed(seed)
    x = draw_tokens(stack, generator).expand(len(spectra), -1, -1)  # (S, T, d), S spectra side by side
    traces, spreads = torch.tensor(spectra, dtype=torch.float64).T[..., None, None]  # (S, 1, 1) each
    mask = causal_mask(stack.length) if stack.causal else None
    eye = torch.eye(stack.dim, dtype=torch.float64)
    rows = [_measure(x, spectra, stack, seed, 0, None)]
    for layer in range(1, stack.layers + 1):
        unit = random_spectrum_matrix(stack.dim, 0.0, 1.0, generator=generator)  # (d, d), mean 0 and variance 1
        w = traces / stack.dim * eye + spreads / math.sqrt(stack.dim) * unit  # (S, d, d)
        attention = softmax_attention(attention_logits(x, w), stack.temperature, mask=mask)  # (S, T, T)
        mixed = attention @ x @ _value_matrix(stack, generator)  # (S, T, d)
        x = x + mixed if stack.residual else mixed
        x = _layer_norm(x) if stack.layer_norm else x
        if every_layer or layer in (1, stack.layers):
            entropy = layer_entropy(attention, causal=stack.causal) if every_layer or layer == 1 else None
            rows.append(_measure(x, spectra, stack, seed, layer, entropy))
    return pd.concat(rows, ignore_index=True)


def _measure(
    x: Tensor, spectra: Sequence[Spectrum], stack: Stack, seed: int, layer: int, entropy: Tensor | None
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "mean_scaled": [spectrum.trace / stack.temperature for spectrum in spectra],
            "dispersion": [spectrum.spread / stack.temperature for spectrum in spectra],
            "seed": seed,
            "layer": layer,
            "residual": rank_residual(x).numpy(),
            "cosine_similarity": mean_cosine_similarity(x).numpy(),
            "stable_rank": stable_rank(x).numpy(),
            "entropy": math.nan if entropy is None else entropy.numpy(),
        }
    )


def _value_matrix(stack: Stack, generator: Generator) -> Tensor:
    if stack.values == "identity":
        return torch.eye(stack.dim, dtype=torch.float64)
    return torch.randn(stack.dim, stack.dim, generator=generator, dtype=torch.float64) / math.sqrt(stack.dim)


def _layer_norm(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)

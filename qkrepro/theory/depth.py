"""Rank and entropy collapse over depth: stacks of attention layers whose W_QK has a chosen eigenspectrum.

The measures of tokens are in `qkrepro.theory.rank`, the bounds on entropy in `qkrepro.theory.entropy`. Everything is
float64: residuals fall to 1e-10 within a few dozen layers, entropies further.
Source: book, "Rank collapse" and "Both at once"; claim of arXiv 2402.02098 (abstract), experiment ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd
import torch
from torch import Generator, Tensor

from qkrepro.errors import ArgumentError, check_choice, check_integer, check_number
from qkrepro.theory.attention import attention_entropy, attention_logits, causal_mask, softmax_attention
from qkrepro.theory.rank import mean_cosine_similarity, rank_residual, stable_rank
from qkrepro.theory.spectrum import random_spectrum_matrix
from qkrepro.theory.tokens import TOKEN_LAWS, TokenLaw, draw_tokens

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Float64

MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "residual": rank_residual,
    "residual_l1_linf": lambda x: rank_residual(x, "l1-linf"),
    "cosine_similarity": mean_cosine_similarity,
    "stable_rank": stable_rank,
}
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
    symmetric: bool = True  # False adds a strictly triangular part: the same eigenvalues, W_QK no longer symmetric
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
        """Return the entropy of uniform attention, in nats: log T, and log(0.75 T) over the last half when causal."""
        return math.log(0.75 * self.length) if self.causal else math.log(self.length)

    def draw_input(self, generator: Generator) -> Float64[Tensor, "T d"]:
        """Draw one sequence of the stack's token law, float64, through LayerNorm when the input is normalised."""
        x = draw_tokens(self.tokens, self.length, self.dim, coefficient=self.coefficient, generator=generator)
        return _layer_norm(x) if self.normalise_input else x


def depth_experiment(
    spectra: Sequence[Spectrum],
    stack: Stack,
    *,
    seeds: Iterable[int],
    measure_at: Iterable[int] | None = None,
    measures: Collection[str] = tuple(MEASURES),
) -> pd.DataFrame:
    """Send tokens through stacks whose W_QK has each of these spectra, and measure both collapses over depth.

    Tokens, eigenvectors, the sample of eigenvalues and W_V depend on the seed and the layer alone, so differences
    between spectra are paired by seed, and a seed's rows do not depend on which other seeds or spectra are run.

    Parameters
    ----------
    spectra, stack
        Of W_QK, at least one, and what they are stacked in.
    seeds
        At least one.
    measure_at
        Layers to measure, 0 (the input) always among them; None for all.
    measures
        Which of MEASURES to take of the tokens, beside the residual.

    Returns
    -------
    DataFrame
        One row per (seed, spectrum, layer), tidy: tokens, mean_scaled (ξ/λ), dispersion (√(d σ²)/λ), seed, layer,
        residual (Frobenius), residual_ratio (to the input's own), input_residual, residual_l1_linf (at the mean
        token), cosine_similarity, stable_rank, entropy (nats; attention of this layer, mean over queries, the last
        half of them when causal) and entropy_ratio (to that of uniform attention); both are NaN for the input.

    Raises
    ------
    ArgumentError
        No spectra, no seeds, a negative spread or a layer that the stack does not have.

    Source: theory, "Rank collapse" and "Both at once" (claims: paper; experiment: ours).
    """
    seed_list = list(seeds)
    if not spectra or not seed_list:
        raise ArgumentError(f"spectra and seeds must not be empty, got {len(spectra)} and {len(seed_list)} entries")
    for spectrum in spectra:
        check_number("trace", spectrum.trace)
        check_number("spread", spectrum.spread, at_least=0)
    layers = set(range(stack.layers + 1) if measure_at is None else measure_at)
    if not layers <= set(range(stack.layers + 1)):
        raise ArgumentError(f"measure_at must be layers from 0 to {stack.layers}, got {sorted(layers)}")
    for measure in measures:
        check_choice("measures", measure, MEASURES)
    chosen = ["residual", *(name for name in MEASURES if name in measures and name != "residual")]
    table = pd.concat([_one_seed(spectra, stack, seed, layers, chosen) for seed in seed_list], ignore_index=True)
    keys = ["mean_scaled", "dispersion", "seed"]
    table["input_residual"] = table.groupby(keys)["residual"].transform("first")
    table["residual_ratio"] = table["residual"] / table["input_residual"]
    table["entropy_ratio"] = table["entropy"] / stack.entropy_scale
    table.insert(0, "tokens", stack.tokens)
    return table


def layer_entropy(attention: Float[Tensor, "*batch T T"], *, causal: bool = True) -> Float64[Tensor, "*batch"]:
    """Return the mean entropy of the queries, over the last half of them when causal (early ones see few tokens); nats.

    attention: (..., T, T). Returns float64, (...).
    """
    rows = attention[..., attention.shape[-2] // 2 :, :] if causal else attention
    return attention_entropy(rows).mean(-1)


def first_attention(spectra: Sequence[Spectrum], stack: Stack, *, seed: int) -> Float64[Tensor, "spectra T T"]:
    """Return the attention of the first layer of `depth_experiment`, (S, T, T), for looking at."""
    x, units, _ = _draws(replace(_weights_alone(stack), layers=1), seed)
    return _attention(x.expand(len(spectra), -1, -1), spectra, stack, units[0])


def _weights_alone(stack: Stack) -> Stack:
    """Return the stack with the options on which its draws do not depend at their defaults."""
    return replace(stack, residual=False, layer_norm=True, temperature=1.0, causal=True)


@lru_cache(maxsize=40)  # 1.5 MB each for 24 layers of width 64; architectures that differ in nothing else share them
def _draws(stack: Stack, seed: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the input (T, d) and, layer by layer, the unit matrix and W_V, (d, d) each, for reading alone."""
    generator = Generator().manual_seed(seed)
    x, units, values = stack.draw_input(generator), [], []
    for _ in range(stack.layers):
        units.append(random_spectrum_matrix(stack.dim, 0.0, 1.0, symmetric=stack.symmetric, generator=generator))
        values.append(_value_matrix(stack, generator))
    return x, units, values


def _one_seed(
    spectra: Sequence[Spectrum], stack: Stack, seed: int, layers: Collection[int], measures: Sequence[str]
) -> pd.DataFrame:
    tokens, units, values = _draws(_weights_alone(stack), seed)
    x = tokens.expand(len(spectra), -1, -1)  # (S, T, d), S spectra side by side
    rows = [{"layer": 0, "entropy": math.nan, **_measured(tokens[None], measures)}]
    for layer, (unit, w_v) in enumerate(zip(units, values, strict=True), start=1):
        attention = _attention(x, spectra, stack, unit)  # (S, T, T)
        mixed = attention @ x @ w_v  # (S, T, d)
        x = x + mixed if stack.residual else mixed
        x = _layer_norm(x) if stack.layer_norm else x
        if layer in layers:
            entropy = layer_entropy(attention, causal=stack.causal)
            rows.append({"layer": layer, "entropy": entropy.numpy(), **_measured(x, measures)})
    keys = {
        "mean_scaled": [spectrum.trace / stack.temperature for spectrum in spectra],
        "dispersion": [spectrum.spread / stack.temperature for spectrum in spectra],
        "seed": seed,
    }
    return pd.concat([pd.DataFrame(keys | row) for row in rows], ignore_index=True)


def _measured(x: Tensor, measures: Sequence[str]) -> dict[str, Any]:
    """Return the measures of tokens (S, T, d); those of one sequence (the input) as numbers, for all spectra alike."""
    values = {name: MEASURES[name](x) for name in measures}
    return {name: value.item() if len(value) == 1 else value.numpy() for name, value in values.items()}


def _attention(x: Tensor, spectra: Sequence[Spectrum], stack: Stack, unit: Tensor) -> Tensor:
    """Return the attention (S, T, T) of tokens (S, T, d); one draw of eigenvectors and eigenvalues serves all."""
    traces, spreads = torch.tensor(spectra, dtype=torch.float64).T[..., None, None]  # (S, 1, 1) each
    eye = torch.eye(stack.dim, dtype=torch.float64)
    w = traces / stack.dim * eye + spreads / math.sqrt(stack.dim) * unit  # (S, d, d)
    mask = causal_mask(stack.length) if stack.causal else None
    return softmax_attention(attention_logits(x, w), stack.temperature, mask=mask)


def _value_matrix(stack: Stack, generator: Generator) -> Tensor:
    if stack.values == "identity":
        return torch.eye(stack.dim, dtype=torch.float64)
    return torch.randn(stack.dim, stack.dim, generator=generator, dtype=torch.float64) / math.sqrt(stack.dim)


def _layer_norm(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)

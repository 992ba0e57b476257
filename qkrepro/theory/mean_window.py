"""The window of the scaled mean in which both collapses are held off: as predicted, and as drawn stacks have it.

The prediction is the limit of many dimensions (`theory.depth_limit`), without a fitted number. W = (ξ/d) I unless a
dispersion is named; attention is causal, LayerNorm follows every layer, there is no residual connection.
Source: book, "How large must the mean be?" (ours).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from qkrepro.errors import ArgumentError, check_choice
from qkrepro.theory.attention import causal_mask, softmax_attention
from qkrepro.theory.depth import layer_entropy
from qkrepro.theory.depth_limit import ar1_cosines, cosine_residual, depth_limit, walk_cosines
from qkrepro.theory.rank import rank_residual
from qkrepro.theory.spectrum import random_spectrum_matrix
from qkrepro.theory.tokens import draw_tokens

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float64

SIMILARITY = 0.3  # ϱ of the tokens at equal angles
LAWS = ("independent", "equal angles", "random walk")
WINDOW = ["tokens", "length", "layers"]


def input_cosines(law: str, length: int) -> Float64[Tensor, "T T"]:
    """Return the cosines of a law of LAWS in many dimensions, float64 (T, T). Raises ArgumentError for another law."""
    check_choice("law", law, LAWS)
    if law == "random walk":
        return walk_cosines(length)
    independent = ar1_cosines(length, 0.0)
    return independent if law == "independent" else independent * (1 - SIMILARITY) + SIMILARITY


def normalised_tokens(law: str, length: int, dim: int, generator: Generator) -> Float64[Tensor, "T d"]:
    """Draw one sequence of a law of LAWS, through LayerNorm; float64, (T, d). Raises ArgumentError for another law.

    length, dim: T tokens of d numbers.
    """
    check_choice("law", law, LAWS)
    tokens = draw_tokens("random walk" if law == "random walk" else "independent", length, dim, generator=generator)
    if law == "equal angles":
        common = torch.randn(dim, generator=generator, dtype=torch.float64)
        tokens = math.sqrt(1 - SIMILARITY) * tokens + math.sqrt(SIMILARITY) * common
    return _layer_norm(tokens)


def similarity(law: str, length: int) -> float:
    """Return ϱ, the mean cosine between two different tokens of a law; raises ArgumentError for another law."""
    total = float(input_cosines(law, length).sum())
    return (total - length) / (length * (length - 1))


def predicted_curves(
    lengths: Sequence[int], means: Sequence[float], depths: Sequence[int], *, laws: Sequence[str] = LAWS
) -> pd.DataFrame:
    """Return both ratios over the mean from the limit of many dimensions, one row a law, length, mean and depth.

    lengths: T. means: ξ/λ. depths: layers after which to look, from 1. laws: of LAWS.
    Columns tokens, length, layers, mean_scaled, residual_ratio (after that many layers, to the input's own) and
    entropy_ratio (the least of these layers, last half of the queries, to that of uniform attention).
    """
    tables = []
    for law in laws:
        for length in lengths:
            start = input_cosines(law, length)
            limits = [depth_limit(start, mean, max(depths)) for mean in means]
            kept = torch.stack([cosine_residual(limit.cosines[1:]) for limit in limits], -1) / cosine_residual(start)
            entropy = torch.stack([_late_entropy(limit.attention) for limit in limits], -1)  # (layers, S)
            tables.append(_curves({"tokens": law, "length": length}, means, depths, kept, entropy))
    return pd.concat(tables, ignore_index=True)


def measured_curves(
    lengths: Sequence[int],
    means: Sequence[float],
    depths: Sequence[int],
    *,
    dim: int,
    seeds: Iterable[int],
    laws: Sequence[str] = LAWS,
    dispersion: float = 0.0,
) -> pd.DataFrame:
    """Return `predicted_curves` measured, with columns dim and seed: drawn tokens and value matrices of width d.

    Parameters
    ----------
    lengths, means, depths, laws
        As for `predicted_curves`. Every mean sees the same tokens and value matrices of its seed.
    dim, seeds
        Width d of the stacks, and the seeds that they are drawn with.
    dispersion
        √(dσ²)/λ of a symmetric W with a drawn spectrum, anew in every layer; 0 for W = (ξ/d) I.

    """
    scaled = torch.tensor(list(means), dtype=torch.float64)[:, None, None]  # (S, 1, 1)
    tables = []
    for seed in seeds:
        for law in laws:
            for length in lengths:
                generator, spectra = Generator().manual_seed(seed), Generator().manual_seed(seed + 10**6)
                tokens = normalised_tokens(law, length, dim, generator)  # (T, d)
                x, kept, entropy = tokens.expand(len(means), -1, -1), [], []
                for _ in range(max(depths)):
                    logits = scaled * (x @ x.mT) / dim  # (S, T, T)
                    if dispersion:
                        unit = random_spectrum_matrix(dim, 0.0, 1.0, generator=spectra)  # (d, d), symmetric
                        logits = logits + dispersion / math.sqrt(dim) * (x @ unit @ x.mT)
                    attention = softmax_attention(logits, mask=causal_mask(length))  # (S, T, T)
                    values = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / math.sqrt(dim)
                    x = _layer_norm(attention @ x @ values)  # (S, T, d)
                    kept.append(rank_residual(x))
                    entropy.append(_late_entropy(attention))
                head = {"tokens": law, "length": length, "dim": dim, "seed": seed}
                ratios = torch.stack(kept) / rank_residual(tokens)
                tables.append(_curves(head, means, depths, ratios, torch.stack(entropy)))
    return pd.concat(tables, ignore_index=True)


def window_ends(curves: pd.DataFrame, share: float = 0.5) -> pd.DataFrame:
    """Return where the two ratios cross a share, by interpolation in the logarithm of the mean; one row a window.

    curves: of `predicted_curves` or `measured_curves`. Columns tokens, length, layers (and seed), lower (the mean above
    which at least that share of the residual is left) and upper (below which that of the entropy is): 0 or infinity
    when the end lies outside the means of the table. Raises ArgumentError for a mean that is not positive.
    """
    keys = [*WINDOW, *curves.columns.intersection(["seed"])]
    rows = []
    for group, window in curves.sort_values("mean_scaled", kind="stable").groupby(keys, sort=False):
        means, residual, entropy = window[["mean_scaled", "residual_ratio", "entropy_ratio"]].to_numpy().T
        ends = (_crossing(means, residual - share, rising=True), _crossing(means, entropy - share, rising=False))
        rows.append([*group, *ends])
    return pd.DataFrame(rows, columns=[*keys, "lower", "upper"])


def _crossing(means: np.ndarray, values: np.ndarray, *, rising: bool) -> float:
    """Return the mean above which the values stay at 0 or more (rising), or from which they first lie below.

    Between two means by interpolation in their logarithm; 0 or infinity for a crossing outside the means.
    """
    if means[0] <= 0:
        raise ArgumentError(f"means must be positive, got {means[0]}")
    below = np.flatnonzero(values < 0)
    if not len(below):
        return 0.0 if rising else math.inf
    left = int(below[-1] if rising else below[0] - 1)
    if left in (-1, len(means) - 1):
        return math.inf if rising else 0.0
    share = -values[left] / (values[left + 1] - values[left])
    return float(np.exp(np.log(means[left]) + share * np.log(means[left + 1] / means[left])))


def _curves(
    head: Mapping[str, Any], means: Sequence[float], depths: Sequence[int], kept: Tensor, entropy: Tensor
) -> pd.DataFrame:
    """Return a row per mean and depth of the ratios (layers, S); of the entropy the least so far."""
    places = [depth - 1 for depth in depths]
    ratios = {"residual_ratio": kept, "entropy_ratio": entropy.cummin(0).values}
    columns = {name: values[places].T.flatten().numpy() for name, values in ratios.items()}
    index = {"mean_scaled": np.repeat(list(means), len(depths)), "layers": [*depths] * len(means)}
    return pd.DataFrame({**head, **index, **columns})


def _late_entropy(attention: Tensor) -> Tensor:
    """Return the mean entropy of the last half of the causal queries over that of uniform attention; (..., T, T)."""
    return layer_entropy(attention) / math.log(0.75 * attention.shape[-1])


def _layer_norm(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=0.0)

"""The true softmax on drawn tokens: its closed forms beside simulation, one table.

Source: book, "The true softmax" (ours).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Generator, Tensor

from qkrepro.errors import check_choice
from qkrepro.theory.attention import attention_entropy, softmax_attention
from qkrepro.theory.entropy import geometric_entropy, high_temperature_deficit, normalised_walk_deficit
from qkrepro.theory.spectrum import matrix_moments
from qkrepro.theory.tokens import TokenLaw, draw_tokens

BATCH = 2**18  # numbers drawn at once, 2 MB: what a processor keeps near
LAWS: dict[str, TokenLaw] = {
    "raw walk": "random walk",
    "normalised walk": "random walk",
    "AR(1)": "AR(1)",
    "independent": "independent",
}


def scaled_tokens(law: str, length: int, dim: int, *, coefficient: float, batch: int, generator: Generator) -> Tensor:
    """Draw tokens of a law of LAWS, float64, (batch, length, dim): variance 1 a coordinate but for the raw walk.

    "normalised walk" applies LayerNorm without gain and bias; coefficient is that of "AR(1)".
    """
    check_choice("law", law, LAWS)
    tokens = draw_tokens(LAWS[law], length, dim, coefficient=coefficient, batch=batch, generator=generator)
    return torch.nn.functional.layer_norm(tokens, (dim,), eps=0.0) if law == "normalised walk" else tokens


def last_logits(tokens: Tensor, m: Tensor) -> Tensor:
    """Return x_Tᵀ M x_i of the last token as query: tokens (batch, T, d), m (d, d) -> (batch, T)."""
    logits: Tensor = torch.einsum("bid,bd->bi", tokens, tokens[:, -1] @ m.double())
    return logits


def closed_form_table(
    matrices: Mapping[str, Tensor],
    means: Sequence[float],
    signed_means: Sequence[float],
    *,
    temperature: float,
    lengths: tuple[int, int, int],
    dims: tuple[int, int],
    draws: tuple[int, int, int],
    generator: Generator,
) -> pd.DataFrame:
    """Return three closed forms of the true softmax beside simulation, one row a case, in this order.

    "high temperature": entropy deficit of raw walks for each of the matrices (d, d), in units of (T² − 1)/(24 λ²).
    "geometric": entropy of raw walks with M = (ξ/d) I, ξ/λ of `means`. "normalised walk": log T − H for that M, ξ/λ of
    `signed_means`. lengths: T of each form; dims: d of the last two; draws: sequences of each; temperature: λ of the
    first, the others have 1. All cases of a form see the same walks.
    Columns form, case, predicted, simulated, standard_error; nats but for the first form.
    """
    size = len(next(iter(matrices.values())))
    scale = (lengths[0] ** 2 - 1) / (24 * temperature**2)
    uniform = [math.log(length) for length in lengths]  # entropy in nats
    rows: list[tuple[str, str, float, Tensor]] = []
    hot = {case: _logits_of(m / temperature) for case, m in matrices.items()}
    for case, entropy in _entropies("raw walk", hot, lengths[0], size, draws[0], generator).items():
        predicted = float(high_temperature_deficit(matrix_moments(matrices[case]), lengths[0], temperature)) / scale
        rows.append(("high temperature", case, predicted, (uniform[0] - entropy) / scale))
    equal = {mean: _similarity(mean) for mean in means}
    for mean, entropy in _entropies("raw walk", equal, lengths[1], dims[0], draws[1], generator).items():
        rows.append(("geometric", f"ξ/λ = {_plain(mean)}", float(geometric_entropy(mean, lengths[1])), entropy))
    equal = {mean: _similarity(mean) for mean in signed_means}
    for mean, entropy in _entropies("normalised walk", equal, lengths[2], dims[1], draws[2], generator).items():
        predicted = float(normalised_walk_deficit(mean))
        rows.append(("normalised walk", f"ξ/λ = {_plain(mean)}", predicted, uniform[2] - entropy))
    table = pd.DataFrame([row[:3] for row in rows], columns=["form", "case", "predicted"])
    samples = [row[3] for row in rows]  # (draws,) each
    errors = [float(values.std() / len(values) ** 0.5) for values in samples]
    return table.assign(simulated=[float(values.mean()) for values in samples], standard_error=errors)


def _entropies(
    law: str, cases: Mapping[Any, Callable[[Tensor], Tensor]], length: int, dim: int, draws: int, generator: Generator
) -> dict[Any, Tensor]:
    """Return the entropy of the last query, (draws,), nats, by case: tokens (batch, T, d) to logits (batch, T)."""
    batch, parts = max(1, BATCH // (length * dim)), {case: [torch.empty(0, dtype=torch.float64)] for case in cases}
    for start in range(0, draws, batch):
        size = min(batch, draws - start)
        tokens = scaled_tokens(law, length, dim, coefficient=0.0, batch=size, generator=generator)
        for case, logits in cases.items():
            parts[case].append(attention_entropy(softmax_attention(logits(tokens))))
    return {case: torch.cat(entropies) for case, entropies in parts.items()}


def _logits_of(m: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tokens: last_logits(tokens, m)


def _similarity(mean: float) -> Callable[[Tensor], Tensor]:
    """Return logits of M = (ξ/d) I at ξ/λ = `mean`, without forming it."""
    return lambda tokens: mean / tokens.shape[-1] * (tokens @ tokens[:, -1, :, None])[..., 0]


def _plain(mean: float) -> str:
    return f"{mean:g}".replace("-", "−")

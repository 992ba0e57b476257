"""What a run measures: the loss on a split, attention, query-key spectra, signal propagation, similarity of tokens.

Everything is measured without dropout on sequences that stay the same for the whole run; all but the loss in float64
from the logits on. Source: book, "Theory in trained models", "Theory: signal propagation".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qkrepro.errors import CorpusError
from qkrepro.models.head_products import as_array, products_in_covariance
from qkrepro.models.transformer import LanguageModel, LayerTrace, QKWeights
from qkrepro.theory.attention import attention_entropy, causal_mask, saturation, softmax_gradient_mass
from qkrepro.theory.propagation import signal_propagation_limit
from qkrepro.theory.rank import mean_cosine_similarity, rank_residual
from qkrepro.theory.spectrum import qk_eigenvalues, qk_moments
from qkrepro.theory.tokens import increment_covariance
from qkrepro.training.concentration import concentration
from qkrepro.training.vocabulary_loss import vocabulary_nll

CHOICE_SEED = 20240202  # of the validation blocks that are looked at: the same for all runs on a corpus


class Block(NamedTuple):
    """Sequences of tokens and, for each token, the one that follows it: int64, (sequences, length) both."""

    inputs: Tensor
    targets: Tensor


class Measured(NamedTuple):
    """One evaluation: numbers for a row of metrics.csv and arrays for spectrum.npz."""

    numbers: dict[str, float]
    arrays: dict[str, np.ndarray[Any, Any]]


def cut(stream: Tensor, length: int, tokens: int | None = None) -> list[Block]:
    """Cut a split, (tokens,), into consecutive blocks of `length`; a token is predicted from its own block alone.

    tokens=None: all of it, the shorter rest being a Block of its own. A number: about so many tokens, in blocks drawn
    with one seed for all runs. Raises CorpusError when not even one block fits.
    """
    whole = (len(stream) - 1) // length
    if whole < 1:
        raise CorpusError(f"a split must have more tokens than a sequence of {length}, got {len(stream)}")
    inputs = stream[: whole * length].view(whole, length)
    targets = stream[1 : whole * length + 1].view(whole, length)
    if tokens is not None:
        generator = torch.Generator().manual_seed(CHOICE_SEED)
        rows = torch.randperm(whole, generator=generator)[: max(1, tokens // length)].sort().values
        return [Block(inputs[rows], targets[rows])]
    rest = Block(stream[None, whole * length : -1], stream[None, whole * length + 1 :])
    return [Block(inputs, targets)] + [rest] * (rest.inputs.numel() > 0)


@torch.no_grad()
def mean_loss(model: LanguageModel, blocks: list[Block], batch: int, precision: str = "float32") -> float:
    """Return the mean cross-entropy over all targets of the blocks, nats per token, without dropout.

    batch: sequences that go through the model at a time. precision: of the products with the vocabulary.
    """
    total, table = 0.0, model.embedding.weight  # (words, d_model)
    with _without_dropout(model):
        for block in blocks:
            pairs = zip(torch.split(block.inputs, batch), torch.split(block.targets, batch), strict=True)
            for inputs, targets in pairs:
                hidden = model.hidden(inputs.to(table.device))  # (sequences, length, d_model)
                total += float(vocabulary_nll(hidden, table, targets.to(table.device), precision=precision))
    return total / sum(block.targets.numel() for block in blocks)


@torch.no_grad()
def measure(model: LanguageModel, tokens: Tensor) -> Measured:
    """Measure every head of the model on the sequences `tokens`, (sequences, T), T >= 2.

    Numbers are means over layers and heads; with more than one head also one column each, `name_layer_head`. The arrays
    have shape (layers, heads, ...): eigenvalues complex128 (..., d_head); float32 profiles of the last query by
    location (..., T): share of sequences where the key is not saturated, A_i(1 − A_i), A_i, and the share that the
    theory predicts from the weights and the covariance of the increments of the layer's input tokens.
    """
    with _without_dropout(model):
        traces = model.trace(tokens.to(model.embedding.weight.device))
    weights = model.qk_weights()
    temperature = model.config.temperature
    heads = [_measure_head(traces[head.layer], head, temperature) for head in weights]
    numbers = {name: float(np.mean([head.numbers[name] for head in heads])) for name in heads[0].numbers}
    for name, x in (("input_", traces[0].inputs), ("", traces[-1].outputs)):
        numbers |= {f"{name}residual": _mean(rank_residual(x)), f"{name}cosine": _mean(mean_cosine_similarity(x))}
    if len(heads) > 1:
        for head, measured in zip(weights, heads, strict=True):
            numbers |= {f"{name}_{head.layer}_{head.head}": value for name, value in measured.numbers.items()}
    stacked = {name: np.stack([head.arrays[name] for head in heads]) for name in heads[0].arrays}
    shape = (len(traces), len(heads) // len(traces))
    return Measured(numbers, {name: array.reshape(*shape, *array.shape[1:]) for name, array in stacked.items()})


@contextmanager
def _without_dropout(model: LanguageModel) -> Iterator[None]:
    """Keep a model in evaluation mode for a while, then put it back into the mode in which it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _measure_head(trace: LayerTrace, head: QKWeights, temperature: float) -> Measured:
    logits = trace.logits[:, head.head].double()  # (sequences, T, T), already divided by temperature · √d_head
    weights = trace.attention[:, head.head].double()
    mask = causal_mask(logits.shape[-1]).to(logits.device)
    open_keys = (saturation(logits, mask=mask) == 0).double()
    entropy, mass = attention_entropy(weights), softmax_gradient_mass(weights)
    moments = qk_moments(head.w_q, head.w_k)
    predicted, walk = _predict(head, trace.inputs, temperature)
    numbers = {
        "valid_entropy": _mean(entropy),
        "valid_entropy_last": _mean(entropy[:, -1]),
        "nonsaturated": float(open_keys.sum() / (mask.sum() * len(logits))),
        "nonsaturated_last": _mean(open_keys[:, -1]),
        "nonsaturated_predicted": _mean(predicted),
        "gradient_mass": _mean(mass.total),
        "gradient_mass_last": _mean(mass.total[:, -1]),
        "trace": float(moments.trace),
        "trace_square": float(moments.trace_sq),
        "frobenius": float(moments.frobenius_sq.sqrt()),
        "spectral_norm": float(moments.spectral_norm),
        "eigen_mean": float(moments.eigen_mean),
        "eigen_variance": float(moments.eigen_variance),
        "concentration": float(concentration(float(moments.trace), float(moments.frobenius_sq.sqrt()))),
    }
    profiles = {
        "nonsaturated": open_keys[:, -1].mean(0),
        "gradient": mass.site[:, -1].mean(0),
        "attention": weights[:, -1].mean(0),
        "predicted": predicted,
    }
    arrays = {f"{name}_profile": profile.float().cpu().numpy() for name, profile in profiles.items()}
    return Measured(numbers | walk, arrays | {"eigenvalues": qk_eigenvalues(head.w_q, head.w_k).cpu().numpy()})


def _predict(head: QKWeights, x: Tensor, temperature: float) -> tuple[Tensor, dict[str, float]]:
    """Return the open share of each key of the last query in the Gaussian form at finite T, and its moments.

    x: (sequences, T, d_model). The bias b of the queries adds x_iᵀ w_kᵀ b to the logit, a walk with the variance
    α ‖Σ^{1/2} w_kᵀ b‖², where the matrix term has αT ‖M‖_F²: it enters as ‖M‖_F² + ‖Σ^{1/2} w_kᵀ b‖²/T.
    """
    length, d_head = x.shape[1], len(head.w_q)
    products = products_in_covariance(head.w_q[None], head.w_k[None], increment_covariance(x.double()))
    trace, trace_square = float(products.trace()[0]), float(products.trace_sq()[0])
    bias = as_array(head.b_q)
    frobenius_square = float(products.frobenius_sq()[0])
    bias_square = max(0.0, float(bias @ products.gram_k[0] @ bias))
    theta = torch.arange(1, length + 1, dtype=torch.float64) / length
    spread = frobenius_square + bias_square / length
    rho = signal_propagation_limit(theta, trace, trace_square, spread, temperature * d_head**0.5, length)
    walk = {"trace": trace, "trace_square": trace_square, "frobenius": frobenius_square**0.5, "bias": bias_square**0.5}
    walk |= {"concentration": float(concentration(trace, frobenius_square**0.5))}
    return rho, {f"walk_{name}": value for name, value in walk.items()}


def _mean(values: Tensor) -> float:
    return float(values.double().mean())

"""The language model of the experiment: fairseq's `transformer_lm` defaults at the reported sizes, in plain PyTorch.

Reported: one decoder layer, one head, Post-LN, all widths 128. The rest are the public defaults of fairseq 0.12.2:
ReLU, sinusoidal positions, embeddings scaled by √d and tied with the output, dropout on embeddings, attention output
and feed-forward output, biases on all projections, logits divided by √d_head. With equal weights a layer equals
`torch.nn.TransformerEncoderLayer` under a causal mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkrepro.errors import ArgumentError, ShapeError, check_choice, check_integer, check_number

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a language model; the defaults are the reported ones.

    vocabulary: words; d_model, d_ff: widths; layers, heads: counts (d_model an even multiple of heads); dropout:
    probability in [0, 1); norm: "post" (after each residual sum) or "pre" (before each block, and once more at the
    end); max_length: tokens of the longest sequence; temperature: of the softmax, > 0, by which the logits are divided
    beside √d_head. Raises ArgumentError for anything else.
    """

    vocabulary: int
    d_model: int = 128
    d_ff: int = 128
    layers: int = 1
    heads: int = 1
    dropout: float = 0.1
    norm: str = "post"
    max_length: int = 512
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("vocabulary", "d_model", "d_ff", "layers", "heads", "max_length"):
            check_integer(name, getattr(self, name), at_least=1)
        check_number("dropout", self.dropout, at_least=0, below=1)
        check_number("temperature", self.temperature, above=0)
        check_choice("norm", self.norm, ("post", "pre"))
        if self.d_model % self.heads or self.d_model % 2:
            raise ArgumentError(f"d_model must be an even multiple of heads = {self.heads}, got {self.d_model}")


class QKWeights(NamedTuple):
    """Query and key weights of one head, views into the model: q = w_q x + b_q, W_QK = w_qᵀ w_k (book, the setting)."""

    layer: int
    head: int
    w_q: Tensor  # (d_head, d_model)
    w_k: Tensor  # (d_head, d_model)
    b_q: Tensor  # (d_head,)
    b_k: Tensor  # (d_head,)


class LayerTrace(NamedTuple):
    """What one layer saw and did, for the measurements of a run."""

    inputs: Tensor  # (batch, length, d_model), the tokens that the query and key projections see
    logits: Tensor  # (batch, heads, length, length), (query, key), divided by temperature · √d_head, not masked
    attention: Tensor  # (batch, heads, length, length), causal softmax of the logits; every row sums to 1
    outputs: Tensor  # (batch, length, d_model), the tokens that leave the layer


class Attention(nn.Module):
    """Causal multi-head self-attention with separate projections."""

    def __init__(self, d_model: int, heads: int, temperature: float = 1.0) -> None:
        """Make four d_model × d_model projections with biases."""
        super().__init__()
        self.heads = heads
        self.divisor = temperature * math.sqrt(d_model // heads)  # of the logits
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Float[Tensor, "batch length d_model"]) -> Float[Tensor, "batch length d_model"]:
        """Return the mixtures of the tokens, (batch, length, d_model) both."""
        q, k, v = (self._split(project(x)) for project in (self.query, self.key, self.value))
        # (batch, heads, length, d_head), then (batch, length, d_model)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / self.divisor)
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.out(mixed)  # type: ignore[no-any-return]

    def logits(self, x: Float[Tensor, "batch length d_model"]) -> Float[Tensor, "batch heads length length"]:
        """Return the unmasked logits (batch, heads, length, length), query by key, divided by temperature · √d_head."""
        q, k = self._split(self.query(x)), self._split(self.key(x))
        return q @ k.mT / self.divisor

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (batch, heads, length, d_head)


class Layer(nn.Module):
    """One decoder layer: attention, then feed-forward, each with dropout, residual sum and LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        """Take sizes, dropout and the place of the LayerNorm from the configuration."""
        super().__init__()
        self.pre = config.norm == "pre"
        self.attention = Attention(config.d_model, config.heads, config.temperature)
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, config.d_model)
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.feedforward_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "batch length d_model"]) -> Float[Tensor, "batch length d_model"]:
        """Return the tokens after the layer, (batch, length, d_model) both."""
        if self.pre:
            x = x + self.dropout(self.attention(self.attention_norm(x)))
            return x + self.dropout(self._feedforward(self.feedforward_norm(x)))  # type: ignore[no-any-return]
        x = self.attention_norm(x + self.dropout(self.attention(x)))
        return self.feedforward_norm(x + self.dropout(self._feedforward(x)))  # type: ignore[no-any-return]

    def trace(self, x: Float[Tensor, "batch length d_model"]) -> LayerTrace:
        """Return the layer's tokens, logits and attention."""
        inputs = self.attention_norm(x) if self.pre else x
        logits = self.attention.logits(inputs)
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        attention = logits.masked_fill(future, -torch.inf).softmax(-1)
        return LayerTrace(inputs, logits, attention, self(x))

    def _feedforward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """Next-token model with tied embeddings; `hidden` and `embedding.weight` go to `vocabulary_loss` for training.

    generator: source of the initial weights (None: PyTorch's global one). Embeddings N(0, 1/d_model); projections
    Xavier uniform (query, key and value with gain 1/√2); zero biases. Dropout draws from PyTorch's global generator.
    Source: fairseq 0.12.2 `transformer_lm`.
    """

    positions: Tensor

    def __init__(
        self, config: ModelConfig, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Build and initialise; weights are drawn and kept in `dtype`, float32 or float64."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("positions", sinusoids(config.max_length, config.d_model), persistent=False)
        self.to(dtype)
        self._initialise(generator)

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
        """Return the logits over the vocabulary, (batch, length, vocabulary), of int64 tokens (batch, length)."""
        return F.linear(self.hidden(tokens), self.embedding.weight)

    def hidden(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length d_model"]:
        """Return the tokens that meet the output embedding, (batch, length, d_model).

        tokens: token numbers, (batch, length), int64.
        Raises ShapeError when tokens are not (batch, length) with 1 <= length <= max_length.
        """
        x = self._embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.final_norm(x)  # type: ignore[no-any-return]

    def trace(self, tokens: Int[Tensor, "batch length"]) -> list[LayerTrace]:
        """Return one LayerTrace per layer, for tokens (batch, length): attention, logits, input and output tokens.

        Memory grows as batch × heads × length²; call it under `torch.no_grad()` and `eval()` to measure.
        """
        traces: list[LayerTrace] = []
        x = self._embed(tokens)
        for layer in self._layers():
            traces.append(layer.trace(x))
            x = traces[-1].outputs
        return traces

    def qk_weights(self) -> list[QKWeights]:
        """Return the query and key weights and biases of every head, as views that gradients and writes reach."""
        weights: list[QKWeights] = []
        for number, layer in enumerate(self._layers()):
            q, k = layer.attention.query, layer.attention.key
            per_head = [torch.chunk(p, self.config.heads) for p in (q.weight, k.weight, q.bias, k.bias)]
            weights += [QKWeights(number, head, *parts) for head, parts in enumerate(zip(*per_head, strict=True))]
        return weights

    def _layers(self) -> Iterator[Layer]:
        for layer in self.layers:
            assert isinstance(layer, Layer)
            yield layer

    def _embed(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.config.max_length:
            allowed = f"(batch, length) with 1 <= length <= max_length = {self.config.max_length}"
            raise ShapeError(f"tokens must have shape {allowed}, got {tuple(tokens.shape)}")
        scaled = self.embedding(tokens) * math.sqrt(self.config.d_model)  # (batch, length, d_model)
        return self.dropout(scaled + self.positions[: tokens.shape[1]])  # type: ignore[no-any-return]

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        self.embedding.weight.normal_(0, self.config.d_model**-0.5, generator=generator)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                gain = math.sqrt(0.5) if name.endswith(("query", "key", "value")) else 1.0
                nn.init.xavier_uniform_(module.weight, gain, generator=generator)
                module.bias.zero_()


def sinusoids(length: int, d_model: int) -> Float[Tensor, "length d_model"]:
    """Return the sinusoidal positions, (length, d_model): sines, then cosines, of frequencies from 1 to 1/10000.

    Source: Vaswani et al. 2017, arXiv 1706.03762, in fairseq's arrangement.
    """
    half = d_model // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10_000) / max(half - 1, 1)))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies  # (length, d_model / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()

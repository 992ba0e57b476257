"""Σ of the theory while a model trains: a running mean of the covariance of the increments of each layer's tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qkrepro.errors import ArgumentError, check_number
from qkrepro.theory.tokens import increment_covariance
from qkrepro.training.attention_inputs import AttentionInput, watch_inputs

DECAY = 0.99  # a batch's weight falls to 1/e after 100 updates


class IncrementCovariances:
    """Σ of every attention layer of a model, updated by each forward pass in training mode, without gradients.

    The first pass sets Σ to the covariance of its increments x_{t+1} − x_t within sequences, about their mean; every
    later pass gives Σ ← decay · Σ + (1 − decay) · covariance. The tokens are those that the query projection reads in
    training, dropout of the embeddings included. `values` belongs into the checkpoint of a run: assigning what was
    saved continues it exactly.
    Raises ArgumentError for a model without attention layers, a decay outside [0, 1), and values before the first pass.
    Source: book, "Setting and notation" (Σ is the covariance of the increments).
    """

    def __init__(self, model: nn.Module, decay: float = DECAY) -> None:
        """Watch the model from now on."""
        check_number("decay", decay, at_least=0, below=1)
        self.decay = decay
        self._values: dict[int, Tensor] = {}
        self.handles = watch_inputs(model, self._update)

    @property
    def values(self) -> list[Tensor]:
        """Σ of each layer, (d_model, d_model), in the order of `find_qk_parameters`; empty before the first pass."""
        return [self._values[layer] for layer in sorted(self._values)]

    @values.setter
    def values(self, saved: Sequence[Tensor]) -> None:
        self._values = dict(enumerate(saved))

    def __call__(self) -> list[Tensor]:
        """Return Σ of each layer, as `values`. Raises ArgumentError before every layer was run in training mode."""
        if len(self._values) < len(self.handles):
            raise ArgumentError("Σ is known only after a forward pass of the model in training mode")
        return self.values

    @torch.no_grad()
    def _update(self, seen: AttentionInput) -> None:
        new = increment_covariance(seen.tokens)
        old = self._values.get(seen.layer)
        self._values[seen.layer] = new if old is None else torch.lerp(new, old, self.decay)

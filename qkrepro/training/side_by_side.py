"""Small attention heads of several runs, trained side by side: one dimension more, in which Adam acts on each alone.

Source: book, the part "Neighbours"; every chapter there that trains pairs its runs by seed this way.
"""

from collections.abc import Callable, Iterable

import pandas as pd
import torch
from torch import Generator, Tensor, nn

from qkrepro.theory.spectrum import qk_moments


def matrices(runs: int, rows: int, columns: int, generator: Generator) -> nn.Parameter:
    """Draw a matrix per run with a generator, entries N(0, 1/columns), float64, (runs, rows, columns)."""
    return nn.Parameter(torch.randn(runs, rows, columns, generator=generator, dtype=torch.float64) / columns**0.5)


def through(vectors: Tensor, weights: Tensor) -> Tensor:
    """Return W x of vectors (runs, batch, T, d) with a matrix a run, (runs, rows, d): (runs, batch, T, rows)."""
    products = vectors.flatten(1, 2) @ weights.mT  # one product a run; one a sequence takes several times as long
    return products.reshape(*vectors.shape[:-1], -1)


class Heads(nn.Module):
    """One attention head for each run; w_q, w_k: (runs, d_head, d_model), as `matrices` draws them."""

    def __init__(self, runs: int, d_model: int, d_head: int, generator: Generator) -> None:
        """Draw query and key weights."""
        super().__init__()
        self.w_q = matrices(runs, d_head, d_model, generator)
        self.w_k = matrices(runs, d_head, d_model, generator)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the logits over √d_head, (runs, batch, Q, T); queries: (runs, batch, Q, d), keys: (..., T, d)."""
        q, k = queries @ self.w_q.mT[:, None], keys @ self.w_k.mT[:, None]  # (runs, batch, ..., d_head)
        logits: Tensor = q @ k.mT / self.w_q.shape[-2] ** 0.5
        return logits

    def spectrum(self) -> pd.DataFrame:
        """Return run, trace, norm (‖W‖_F) and effective_number (N_W = (tr W)²/‖W‖_F², 1/d_model by chance) of W_QK."""
        moments = qk_moments(self.w_q.detach(), self.w_k.detach())
        columns = {"trace": moments.trace, "norm": moments.frobenius_sq.sqrt()}
        columns["effective_number"] = moments.trace.square() / moments.frobenius_sq
        return pd.DataFrame({"run": range(len(self.w_q))} | {name: values.numpy() for name, values in columns.items()})


def minimise(parameters: Iterable[Tensor], loss: Callable[[], Tensor], *, steps: int, rate: float) -> None:
    """Take `steps` of Adam at this rate on a loss that is a sum over runs, which share none of the parameters."""
    optimiser = torch.optim.Adam(parameters, lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimiser.step()

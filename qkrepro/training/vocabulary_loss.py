"""Cross-entropy over a whole vocabulary without ever holding all its logits.

Tokens go through in chunks. A chunk's logits, its probabilities and its share of both gradients are computed while it
is in the processor's cache, so nothing is stored for the backward pass but the gradients themselves, and nothing is
recomputed. With p the probabilities of a chunk (tokens, vocabulary), h its hidden tokens, E the embedding, y targets:

    nll = −log p_y        ∂/∂h = p E − E_y        ∂/∂E = pᵀ h − Σ (h added to row y)

precision="bf16" computes the three matrix products in bfloat16, five times faster where the processor has AMX; softmax
is computed in float32, both gradients add up in float32, and the target's share (E_y, h) never leaves float32.
"""

import math
from typing import Any

import torch
from torch import Tensor

from qkrepro.errors import ArgumentError, ShapeError, check_choice, check_integer

PRECISIONS = ("float32", "bf16", "float64")  # float32 and float64: products in the dtype of the embedding


def vocabulary_loss(
    hidden: Tensor, embedding: Tensor, targets: Tensor, *, precision: str = "float32", chunk: int | None = None
) -> Tensor:
    """Return the mean cross-entropy in nats per token of the logits `hidden @ embeddingᵀ` against `targets`.

    hidden: (..., d_model), floating; embedding: (vocabulary, d_model), float32 or float64; targets: (...), int64 words.
    precision: "float32" or "float64" (products in the dtype of the embedding), or "bf16" (see above); chunk: tokens at
    a time (None: by the device). Differentiable once, in hidden and embedding; the gradients are made in the forward
    pass.
    Raises ShapeError and ArgumentError when shapes, dtypes or targets do not fit.
    """
    _check(hidden, embedding, targets, precision)
    flat = hidden.reshape(-1, hidden.shape[-1]).to(embedding.dtype)  # (tokens, d_model)
    if not torch.is_grad_enabled():
        return vocabulary_nll(hidden, embedding, targets, precision=precision, chunk=chunk) / flat.shape[0]
    loss: Tensor = _VocabularyLoss.apply(flat, embedding, targets.reshape(-1), precision, _chunk(flat, chunk))  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def vocabulary_nll(
    hidden: Tensor, embedding: Tensor, targets: Tensor, *, precision: str = "float32", chunk: int | None = None
) -> Tensor:
    """Return the summed negative log-likelihood of all targets, nats, without gradients, in the embedding's dtype.

    hidden, embedding, targets, precision, chunk: as for `vocabulary_loss`. exp(sum / tokens) is the perplexity.
    """
    _check(hidden, embedding, targets, precision)
    flat, words = hidden.reshape(-1, hidden.shape[-1]).to(embedding.dtype), targets.reshape(-1)
    size = _chunk(flat, chunk)
    total = torch.zeros((), dtype=torch.float64, device=flat.device)
    with torch.autocast(flat.device.type, enabled=False):
        inputs, table = (_products_dtype(x, precision) for x in (flat, embedding))
        columns = table.mT.contiguous()  # (d_model, vocabulary)
        buffer = table.new_empty(min(size, flat.shape[0]), table.shape[0])  # (chunk, vocabulary)
        for h, y in zip(torch.split(inputs, size), torch.split(words, size), strict=True):
            logits = buffer[: h.shape[0]]
            torch.mm(h, columns, out=logits)
            total += _log_softmax_nll(logits, y).sum(dtype=torch.float64)
    return total.to(flat.dtype)


class _VocabularyLoss(torch.autograd.Function):
    """The loss, with both gradients computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, embedding: Tensor, targets: Tensor, precision: str, chunk: int) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            nll, grad_hidden, grad_embedding = _loss_and_gradients(hidden, embedding, targets, precision, chunk)
        ctx.save_for_backward(grad_hidden, grad_embedding)
        return nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        if torch.is_grad_enabled():  # the saved gradients know nothing of their own derivatives
            raise ArgumentError("create_graph must be False, since vocabulary_loss is differentiable once, got True")
        grad_hidden, grad_embedding = ctx.saved_tensors
        if grad.device.type == "cpu" and grad.item() == 1:  # two passes over memory saved in an ordinary backward()
            return grad_hidden, grad_embedding, None, None, None
        return grad_hidden * grad, grad_embedding * grad, None, None, None


def _loss_and_gradients(
    hidden: Tensor, embedding: Tensor, targets: Tensor, precision: str, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean nll, its gradient in hidden (tokens, d_model) and in embedding (vocabulary, d_model)."""
    share = 1 / hidden.shape[0]  # of a token in the mean
    table, inputs, shares = (_products_dtype(x, precision) for x in (embedding, hidden, hidden * share))
    columns = table.mT.contiguous()  # (d_model, vocabulary): the layout in which the products are fastest
    buffer = table.new_empty(min(chunk, hidden.shape[0]), table.shape[0])  # (chunk, vocabulary)
    grad_hidden, grad_embedding, addend = torch.empty_like(hidden), torch.zeros_like(embedding), torch.empty_like(table)
    nll = torch.empty_like(hidden[:, 0])
    for start in range(0, hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        p = buffer[: inputs[part].shape[0]]  # logits, then probabilities
        torch.mm(inputs[part], columns, out=p)
        nll[part] = _log_softmax_nll(p, targets[part])
        if precision != "bf16":
            p.exp_()
        grad_hidden[part] = p @ table
        if precision == "bf16":
            grad_embedding += torch.mm(p.mT, shares[part], out=addend)
        else:
            grad_embedding.addmm_(p.mT, shares[part])
    grad_hidden.sub_(embedding[targets]).mul_(share)
    grad_embedding.index_add_(0, targets, hidden, alpha=-share)
    return nll.mean(), grad_hidden, grad_embedding


def _log_softmax_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the targets' nll (chunk,) of logits (chunk, vocabulary), which it overwrites: by log p, in bfloat16 by p.

    A p in bfloat16 is exact to one part in 500, to either side alike; a log p of 10 would not be. At most 87 nats then.
    """
    if logits.dtype == torch.bfloat16:
        torch.softmax(logits, 1, out=logits)  # float32 inside
        return -logits.gather(1, targets[:, None])[:, 0].float().clamp_min(torch.finfo(torch.float32).tiny).log()
    torch.log_softmax(logits, 1, out=logits)
    return -logits.gather(1, targets[:, None])[:, 0]


def _products_dtype(x: Tensor, precision: str) -> Tensor:
    return x.bfloat16() if precision == "bf16" else x


def _chunk(hidden: Tensor, chunk: int | None) -> int:
    """Return the tokens of a chunk: as given, or equal parts of at most 512 on a processor, 4,096 on an accelerator."""
    if chunk is not None:
        check_integer("chunk", chunk, at_least=1)
        return chunk
    tokens, most = hidden.shape[0], 512 if hidden.device.type == "cpu" else 4096
    return math.ceil(tokens / math.ceil(tokens / most))


def _check(hidden: Tensor, embedding: Tensor, targets: Tensor, precision: str) -> None:
    check_choice("precision", precision, PRECISIONS)
    if embedding.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != embedding.shape[1]:
        shapes = f"{tuple(hidden.shape)} and {tuple(embedding.shape)}"
        raise ShapeError(f"hidden and embedding must have shapes (..., d_model), (vocabulary, d_model), got {shapes}")
    if hidden.shape[:-1] != targets.shape or targets.numel() == 0:
        raise ShapeError(f"targets must have shape {tuple(hidden.shape[:-1])}, not empty, got {tuple(targets.shape)}")
    if targets.dtype != torch.int64 or embedding.dtype not in (torch.float32, torch.float64):
        dtypes = f"{embedding.dtype} and {targets.dtype}"
        raise ArgumentError(f"embedding must be float32 or float64 and targets int64, got {dtypes}")
    if not hidden.is_floating_point():
        raise ArgumentError(f"hidden must have a floating dtype, got {hidden.dtype}")
    if targets.device.type == "cpu":  # on an accelerator the kernels check, without waiting for it
        least, most = targets.aminmax()
        if least < 0 or most >= embedding.shape[0]:
            raise ArgumentError(f"targets must be 0 to {embedding.shape[0] - 1}, got {int(least)} to {int(most)}")

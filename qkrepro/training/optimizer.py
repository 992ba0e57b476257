"""The optimiser of the experiment: Adam with decoupled weight decay; two schedules with linear warm-up.

A training loop in full:

    optimizer = make_optimizer(model, peak)
    for update in range(1, updates + 1):
        set_learning_rate(optimizer, learning_rate(update, peak=peak, warmup=warmup))
        loss = vocabulary_loss(model.hidden(tokens), model.embedding.weight, targets, precision="bf16")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
"""

import torch
from torch import nn

from qkrepro.errors import ArgumentError, check_choice, check_integer, check_number

SCHEDULES = ("inverse-square-root", "linear")


def make_optimizer(model: nn.Module, lr: float, *, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """Return AdamW over all parameters; one fused kernel per parameter takes half the time of a loop over operations.

    lr: peak learning rate; weight_decay is decoupled: each update multiplies the weights by 1 - lr · weight_decay.
    Raises ArgumentError for a negative rate or decay. Source: fairseq's `adam` with its WikiText settings.
    """
    check_number("lr", lr, at_least=0)
    check_number("weight_decay", weight_decay, at_least=0)
    weights = model.parameters()
    return torch.optim.AdamW(weights, lr, betas=(0.9, 0.98), eps=1e-8, weight_decay=weight_decay, fused=True)


def learning_rate(
    update: int, *, peak: float, warmup: int, schedule: str = "inverse-square-root", last: int | None = None
) -> float:
    """Return the rate of update number `update` (from 1): linearly from 0 to the peak at update = warmup, then down.

    schedule: "inverse-square-root", peak · √(warmup/update) from there on, whatever the length of the run (fairseq's
    `inverse_sqrt`, with warm-up from 0); "linear", peak · (last + 1 − update)/(last + 1 − warmup), which would be 0 at
    the update after the last one (fairseq's `polynomial_decay`, so that the last update still moves the weights).
    warmup: updates >= 1. last: number of the last update, needed by "linear" alone.
    Raises ArgumentError for other numbers, "linear" without `last`, and a warm-up or an update beyond `last`.
    """
    check_choice("schedule", schedule, SCHEDULES)
    check_integer("update", update, at_least=1)
    check_integer("warmup", warmup, at_least=1)
    if schedule == "inverse-square-root":
        return float(peak * min(update / warmup, (warmup / update) ** 0.5))
    check_integer("last", last, at_least=1)
    assert last is not None
    if max(update, warmup) > last:
        raise ArgumentError(f"update and warmup must be at most last = {last}, got {update} and {warmup}")
    return float(peak * min(update / warmup, (last + 1 - update) / (last + 1 - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate

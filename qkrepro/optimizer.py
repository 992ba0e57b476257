"""The optimiser of the experiment: Adam with decoupled weight decay, inverse square-root schedule with linear warm-up.

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

from qkrepro.errors import check_integer, check_number


def make_optimizer(
    model: nn.Module, lr: float, *, betas: tuple[float, float] = (0.9, 0.98), weight_decay: float = 0.01
) -> torch.optim.AdamW:
    """AdamW over all parameters, as one fused kernel a parameter (about twice as fast as the loop over operations).

    lr: peak learning rate; weight_decay is decoupled: each update multiplies the weights by 1 - lr · weight_decay.
    Raises ArgumentError for a negative rate or decay. Source: fairseq's `adam` with its WikiText settings.
    """
    check_number("lr", lr, at_least=0)
    check_number("weight_decay", weight_decay, at_least=0)
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, eps=1e-8, weight_decay=weight_decay, fused=True)


def learning_rate(update: int, *, peak: float, warmup: int) -> float:
    """Rate of update number `update` (from 1): peak · min(update/warmup, √(warmup/update)).

    warmup: updates >= 1 of linear rise from 0; the peak is reached at update = warmup.
    Source: fairseq's `inverse_sqrt`, with warm-up from 0.
    """
    check_integer("update", update, at_least=1)
    check_integer("warmup", warmup, at_least=1)
    return float(peak * min(update / warmup, (warmup / update) ** 0.5))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate

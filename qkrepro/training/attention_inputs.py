"""The tokens that the attention layers of a running model read, caught on their way in.

For ours and for `torch.nn.MultiheadAttention` anywhere in a module tree, in the order of `find_qk_parameters`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qkrepro.errors import ArgumentError
from qkrepro.models.transformer import Attention
from qkrepro.training.locater import attention_modules


class AttentionInput(NamedTuple):
    """What a layer reads in one forward pass, without gradients."""

    layer: int  # its number, in the order of `find_qk_parameters`
    tokens: Tensor  # (batch, length, d_model)
    visible: Tensor | None  # (length, length), query by key, True where a key is seen; None where all are


def watch_inputs(model: nn.Module, act: Callable[[AttentionInput], None]) -> list[torch.utils.hooks.RemovableHandle]:
    """Call `act` whenever an attention layer of the model runs in training mode; the handles end it.

    Evaluation is not watched, so that measuring a model changes nothing. Of masks, a layer of ours has its causal one
    and one of PyTorch's the `attn_mask` (length, length) that it is given; padding is looked at like other tokens.
    Raises ArgumentError when the model has no attention layer or, once it runs, for attention between two sequences.
    """

    def hook_of(number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module.training:
                act(_seen(number, module, args, kwargs))

        return hook

    modules = attention_modules(model)
    return [module.register_forward_pre_hook(hook_of(n), with_kwargs=True) for n, module in enumerate(modules)]


@torch.no_grad()
def largest_logits(seen: AttentionInput, w_q: Tensor, w_k: Tensor, b_q: Tensor, b_k: Tensor) -> Tensor:
    """Return S_max of every head, (heads,): the largest (w_q x + b_q)·(w_k y + b_k)/√d_head over all visible pairs.

    seen: the tokens and which pairs are visible. w_q, w_k: (heads, d_head, d_model); b_q, b_k: (heads, d_head).
    """
    q = seen.tokens[:, None] @ w_q.mT + b_q[:, None]  # (batch, heads, length, d_head)
    k = seen.tokens[:, None] @ w_k.mT + b_k[:, None]
    logits = q @ k.mT / math.sqrt(q.shape[-1])  # (batch, heads, length, length)
    if seen.visible is not None:
        logits = logits.masked_fill(~seen.visible, -torch.inf)
    return logits.amax((0, 2, 3))


def _seen(number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AttentionInput:
    if isinstance(module, Attention):
        tokens = args[0].detach()
        length = tokens.shape[1]
        return AttentionInput(number, tokens, torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril())
    assert isinstance(module, nn.MultiheadAttention)
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    given = dict(zip(names, args, strict=False)) | kwargs
    if given["key"] is not given["query"]:
        raise ArgumentError("attention must be self-attention, got keys of another sequence than the queries")
    tokens = given["query"].detach()
    tokens = tokens[None] if tokens.ndim == 2 else tokens if module.batch_first else tokens.transpose(0, 1)
    mask = given.get("attn_mask")
    if mask is None or mask.ndim != 2:
        return AttentionInput(number, tokens, None)
    return AttentionInput(number, tokens, ~mask if mask.dtype == torch.bool else mask > -torch.inf)

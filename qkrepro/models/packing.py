"""Heads in the query and key weights of a layer, in whichever way a model packs them; arrays and tensors alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # reading a checkpoint needs no tensors
    from jaxtyping import Float
    from torch import Tensor

    from qkrepro.models.families import Layout


def split_heads(
    query: Any, key: Any, layout: Layout, heads: int, kv_heads: int, *, transposed: bool = False
) -> tuple[Any, Any]:
    """Return views of the query and key heads in stored weights or biases.

    Parameters
    ----------
    query, key
        What is stored, (rows, d_model) or (rows,); the same array twice when both are packed into one.
    layout
        "separate": one array each. "thirds": queries, then keys, then values. "interleaved": the same head by head.
    heads, kv_heads
        Number of query heads and of key heads; equal unless the layout is "separate".
    transposed
        Whether weights are stored as (d_model, rows).

    Returns
    -------
    tuple
        (heads, d_head, ...) and (kv_heads, d_head, ...).
    """
    if transposed:
        query, key = query.mT, key.mT
    tail = query.shape[1:]
    if layout == "interleaved":
        packed = query.reshape(heads, 3, -1, *tail)
        return packed[:, 0], packed[:, 1]
    if layout == "thirds":
        rows = len(query) // 3
        query, key = query[:rows], key[rows : 2 * rows]
    return query.reshape(heads, -1, *tail), key.reshape(kv_heads, -1, *tail)


@dataclass(frozen=True)
class QKParameters:
    """The parameters that hold the query and key weights of a layer, as the model stores them (one when packed)."""

    query: Tensor
    key: Tensor
    heads: int
    kv_heads: int
    layout: Layout = "separate"
    transposed: bool = False

    def split(
        self, query: Tensor, key: Tensor
    ) -> tuple[Float[Tensor, "heads d_head d_model"], Float[Tensor, "heads d_key key_width"]]:
        """Return w_q and w_k, (heads, d_head, d_model), of tensors laid out like the parameters: weights or gradients.

        They are views, except that a key head shared by several query heads is repeated. Sizes are the caller's to
        check: keys may have another width.
        """
        w_q, w_k = split_heads(query, key, self.layout, self.heads, self.kv_heads, transposed=self.transposed)
        return w_q, w_k.repeat_interleave(self.heads // self.kv_heads, dim=0) if self.grouped else w_k

    def weights(self) -> tuple[Float[Tensor, "heads d_head d_model"], Float[Tensor, "heads d_key key_width"]]:
        """Return w_q and w_k, (heads, d_head, d_model)."""
        return self.split(self.query, self.key)

    @property
    def grouped(self) -> bool:
        """Return whether query heads share key heads."""
        return self.heads != self.kv_heads

"""Attention over packed rows: every text attends to itself alone. One function per way to compute it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from engine.packing import PackedBatch


class Attention(Protocol):
    """Bidirectional attention inside each text of a batch, scaled by 1 / sqrt(head_dim).

    Rows that are not attended are neither keys nor values, but they are queries: just what a mask of 0 does in the
    reference. So no mask is needed at all.
    """

    def __call__(self, qkv: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """
        Args:
            qkv: [total_tokens, 3, num_heads, head_dim]: query, key and value of each row.

        Returns:
            [total_tokens, num_heads * head_dim].
        """
        ...


def attend_per_text(qkv: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """One `scaled_dot_product_attention` per text: no row is padded, and torch has a fused kernel for it on CPUs."""
    total, _, num_heads, head_dim = qkv.shape
    context = qkv.new_empty(total, num_heads, head_dim)
    for start, length, keys in zip(batch.cu_seqlens, batch.lengths, batch.attended, strict=False):
        text = qkv[start : start + length].permute(1, 2, 0, 3).unsqueeze(1)  # [3, 1, num_heads, length, head_dim]
        q, k, v = text[0], text[1, :, :, :keys], text[2, :, :, :keys]
        rows = functional.scaled_dot_product_attention(q, k, v)  # [1, num_heads, length, head_dim]
        context[start : start + length] = rows[0].transpose(0, 1)
    return context.flatten(1)


def attend_varlen(qkv: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """All texts in one launch of torch's variable-length attention (CUDA, float16 or bfloat16)."""
    from torch.nn.attention.varlen import varlen_attn

    where = batch.on_device
    assert where is not None
    q, k, v = qkv.unbind(1)
    if where.keys is not None:
        k, v = k[where.keys], v[where.keys]
    context = varlen_attn(q, k, v, where.cu_seqlens, where.cu_keys, where.max_length, where.max_keys)
    assert isinstance(context, torch.Tensor)  # the other return type is for callers who ask for more
    return context.flatten(1)

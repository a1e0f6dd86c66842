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
            qkv: [total_tokens, 3, num_heads, head_dim]: query, key and value of each row. On a CPU there may be more
                rows, of no text: theirs are zeros.

        Returns:
            [total_tokens, num_heads * head_dim].
        """
        ...


class WindowAttention(Protocol):
    """As `Attention`, but a row attends to rows at most `reach` positions away, before and after. Rows that find nobody
    get zeros, as in the reference."""

    def __call__(self, qkv: torch.Tensor, batch: PackedBatch, reach: int, /) -> torch.Tensor: ...


def attend_per_text(qkv: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """One `scaled_dot_product_attention` per text: no row is padded, and torch has a fused kernel for it on CPUs."""
    total, _, num_heads, head_dim = qkv.shape
    context = qkv.new_zeros(total, num_heads, head_dim)
    for start, length, keys in zip(batch.cu_seqlens, batch.lengths, batch.attended, strict=False):
        text = qkv[start : start + length].permute(1, 2, 0, 3).unsqueeze(1)  # [3, 1, num_heads, length, head_dim]
        q, k, v = text[0], text[1, :, :, :keys], text[2, :, :, :keys]
        rows = functional.scaled_dot_product_attention(q, k, v)  # [1, num_heads, length, head_dim]
        context[start : start + length] = rows[0].transpose(0, 1)
    return context.flatten(1)


WINDOW_BLOCK = 256  # rows whose keys are looked for together


def attend_in_window(qkv: torch.Tensor, batch: PackedBatch, reach: int) -> torch.Tensor:
    """As `WindowAttention`, text by text."""
    total, _, num_heads, head_dim = qkv.shape
    context = qkv.new_zeros(total, num_heads, head_dim)
    for start, length, keys in zip(batch.cu_seqlens, batch.lengths, batch.attended, strict=False):
        for first in range(0, length, WINDOW_BLOCK):
            last = min(length, first + WINDOW_BLOCK)
            low, high = max(0, first - reach), min(keys, last + reach)
            rows = slice(start + first, start + last)
            if low >= high:
                context[rows] = 0
                continue
            q = qkv[rows, 0].transpose(0, 1)[None]  # [1, num_heads, last - first, head_dim]
            k, v = qkv[start + low : start + high, 1:].permute(1, 2, 0, 3).unsqueeze(1)
            mask = _window_mask(first, last, low, high, reach, qkv.device)
            found = functional.scaled_dot_product_attention(q, k, v, mask)[0].transpose(0, 1)
            context[rows] = torch.where(mask.any(1)[:, None, None], found, 0)
    return context.flatten(1)


def _window_mask(first: int, last: int, low: int, high: int, reach: int, device: torch.device) -> torch.Tensor:
    """[last - first, high - low] bool: who is near whom."""
    rows = torch.arange(first, last, device=device)[:, None]
    return (rows - torch.arange(low, high, device=device)).abs() <= reach


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

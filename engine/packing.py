"""Texts of a batch, one after the other without padding: as they come from the queue, and as tensors."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from engine.encode_queue import QueuedText
from ipc.messages import Role


@dataclass(frozen=True, slots=True)
class PackedTexts:
    """The token ids of a batch. Roles may be mixed."""

    roles: Sequence[Role]  # [n]
    token_ids: array[int]  # [total_tokens] int32
    lengths: Sequence[int]  # [n], expansion rows included
    expansion: Sequence[int]  # [n]: how many of the last ids of each text are expansion rows

    @classmethod
    def of(cls, texts: Sequence[QueuedText]) -> PackedTexts:
        """The batch that holds these texts, in their order."""
        token_ids = array("i")
        for text in texts:
            token_ids.frombytes(text.token_ids.cast("B"))
        return cls(
            roles=[text.role for text in texts],
            token_ids=token_ids,
            lengths=[len(text.token_ids) for text in texts],
            expansion=[text.expansion for text in texts],
        )


def split(texts: PackedTexts) -> Iterator[PackedTexts]:
    """Each text of a batch as a batch of its own."""
    start = 0
    for role, length, expansion in zip(texts.roles, texts.lengths, texts.expansion, strict=True):
        yield PackedTexts([role], texts.token_ids[start : start + length], [length], [expansion])
        start += length


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch as the encoder's layers see it. Text i has rows cu_seqlens[i] to cu_seqlens[i + 1]."""

    token_ids: torch.Tensor  # [total_tokens] int64
    position_ids: torch.Tensor  # [total_tokens] int64, from 0 in every text; expansion rows count on
    lengths: Sequence[int]  # [n]
    cu_seqlens: Sequence[int]  # [n + 1], first 0, last total_tokens
    attended: Sequence[int]  # [n]: leading rows that others attend to; the rest (expansion rows) only attends


def pack(texts: PackedTexts, attends_expansion: Sequence[bool]) -> PackedBatch:
    """Tensors of a batch.

    Args:
        attends_expansion: [n]: whether a text's expansion rows are attended to.

    Raises:
        ValueError: the fields do not fit each other; the message names the field.
    """
    num_texts = len(texts.lengths)
    if not num_texts:
        raise ValueError("lengths: expected at least one text")
    for name, values in (("roles", texts.roles), ("expansion", texts.expansion)):
        if len(values) != num_texts:
            raise ValueError(f"{name}: {len(values)} values for {num_texts} lengths")
    if sum(texts.lengths) != len(texts.token_ids):
        raise ValueError(f"token_ids: {len(texts.token_ids)}, but lengths come to {sum(texts.lengths)}")
    token_ids = torch.frombuffer(texts.token_ids, dtype=torch.int32).long()
    cu_seqlens = [0]
    for length in texts.lengths:
        cu_seqlens.append(cu_seqlens[-1] + length)
    starts = torch.tensor(cu_seqlens[:-1]).repeat_interleave(torch.tensor(texts.lengths))  # [total_tokens]
    attended = [
        length if attends else length - extra
        for length, extra, attends in zip(texts.lengths, texts.expansion, attends_expansion, strict=True)
    ]
    return PackedBatch(token_ids, torch.arange(len(token_ids)) - starts, list(texts.lengths), cu_seqlens, attended)

"""Texts of a batch, one after the other without padding: as they come from the queue, and as tensors."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

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
class DeviceLengths:
    """What attention over all texts at once needs, on the device."""

    cu_seqlens: torch.Tensor  # [n + 1] int32
    cu_keys: torch.Tensor  # [n + 1] int32, of attended rows alone
    keys: torch.Tensor | None  # [total attended] int64: which rows they are; None: all of them
    max_length: int
    max_keys: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch as the encoder's layers see it. Text i has rows cu_seqlens[i] to cu_seqlens[i + 1]."""

    token_ids: torch.Tensor  # [total_tokens] int64; a batch that is filled up has more rows, which nobody reads
    position_ids: torch.Tensor  # [total_tokens] int64, from 0 in every text; expansion rows count on; filled up alike
    lengths: Sequence[int]  # [n]
    cu_seqlens: Sequence[int]  # [n + 1], first 0, last total_tokens
    attended: Sequence[int]  # [n]: leading rows that others attend to; the rest (expansion rows) only attends
    on_device: DeviceLengths | None = None  # where attention runs in one launch for all texts: CUDA


def pack(texts: PackedTexts, attends_expansion: Sequence[bool], device: torch.device | None = None) -> PackedBatch:
    """Tensors of a batch, on the CPU unless a device is named.

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
    # numpy: unlike torch it does not hand Python's lock over between two steps of some microseconds
    token_ids = torch.from_numpy(np.frombuffer(texts.token_ids, np.int32).astype(np.int64))
    sizes = np.array(texts.lengths)
    ends = np.cumsum(sizes)
    cu_seqlens = [0, *ends.tolist()]
    starts = torch.from_numpy(np.repeat(ends - sizes, sizes))  # [total_tokens]
    attended = [
        length if attends else length - extra
        for length, extra, attends in zip(texts.lengths, texts.expansion, attends_expansion, strict=True)
    ]
    position_ids = torch.arange(len(token_ids)) - starts
    if device is None or device.type == "cpu":
        return PackedBatch(token_ids, position_ids, list(texts.lengths), cu_seqlens, attended)
    both = torch.stack([token_ids, position_ids]).pin_memory().to(device, non_blocking=True)
    lengths = _lengths_on(device, position_ids, starts, cu_seqlens, attended)
    return PackedBatch(both[0], both[1], list(texts.lengths), cu_seqlens, attended, lengths)


STEPS = 16  # of a filled-up batch's size, in each doubling; rows that are computed for nobody are 2 % on average
SMALLEST_STEP = 8


def filled_size(tokens: int) -> int:
    """The number of rows that a batch of so many tokens is filled up to on a CPU."""
    step = max(SMALLEST_STEP, (1 << (tokens - 1).bit_length()) // (2 * STEPS))
    return -(-tokens // step) * step


def fill_up(batch: PackedBatch) -> PackedBatch:
    """The batch with rows of zeros after its last text, for a CPU: few sizes in place of any.

    oneDNN compiles a matrix product for each number of rows it meets, in some milliseconds, and torch keeps the last
    thousand: 0.4 MB each, so that an encoder grew by 900 MB in its first twenty minutes.
    """
    total = batch.cu_seqlens[-1]
    missing = filled_size(total) - total
    if not missing:
        return batch
    token_ids, position_ids = (functional.pad(rows, (0, missing)) for rows in (batch.token_ids, batch.position_ids))
    return replace(batch, token_ids=token_ids, position_ids=position_ids)


def _lengths_on(
    device: torch.device,
    position_ids: torch.Tensor,
    starts: torch.Tensor,
    cu_seqlens: Sequence[int],
    attended: Sequence[int],
) -> DeviceLengths:
    lengths = torch.tensor(cu_seqlens).diff()
    keys_of = torch.tensor(attended)
    cu_keys = torch.cat([torch.zeros(1, dtype=torch.int64), keys_of.cumsum(0)])
    ends = torch.stack([torch.tensor(cu_seqlens), cu_keys]).int().pin_memory().to(device, non_blocking=True)
    keys = None
    if int(cu_keys[-1]) < cu_seqlens[-1]:
        is_key = position_ids < keys_of.repeat_interleave(lengths)
        keys = is_key.nonzero()[:, 0].pin_memory().to(device, non_blocking=True)
    return DeviceLengths(ends[0], ends[1], keys, int(lengths.max()), int(keys_of.max()))

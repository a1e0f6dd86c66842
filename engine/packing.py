"""Texts of a batch, one after the other without padding: as they come from the queue, and as tensors."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from engine.encode_queue import QueuedText
from engine.pinned import on_device
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
    numbers = pack_numbers(texts, attends_expansion)
    rows = np.stack([numbers.token_ids, numbers.position_ids])
    if device is None or device.type == "cpu":
        token_ids, position_ids, lengths = *torch.from_numpy(rows), None
    else:
        token_ids, position_ids, lengths = *on_device(rows, device), _lengths_on(device, numbers)
    cu_seqlens, attended = numbers.cu_seqlens.tolist(), numbers.attended.tolist()
    return PackedBatch(token_ids, position_ids, list(texts.lengths), cu_seqlens, attended, lengths)


Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class PackedNumbers:
    """What `PackedBatch` says, in numpy."""

    token_ids: Numbers  # [total_tokens]
    position_ids: Numbers  # [total_tokens]
    lengths: Numbers  # [n]
    cu_seqlens: Numbers  # [n + 1]
    attended: Numbers  # [n]

    @property
    def cu_keys(self) -> Numbers:
        """[n + 1], as `DeviceLengths` has it."""
        return _from_zero(self.attended)

    @property
    def keys(self) -> Numbers | None:
        """[total attended]: which rows are attended to; None: all of them."""
        if self.attended is self.lengths:
            return None
        return np.flatnonzero(self.position_ids < np.repeat(self.attended, self.lengths))


def pack_numbers(texts: PackedTexts, attends_expansion: Sequence[bool]) -> PackedNumbers:
    """As `pack`. In numpy: unlike torch it does not hand Python's lock over between two steps of some microseconds.

    Raises:
        ValueError: as `pack`.
    """
    num_texts = len(texts.lengths)
    if not num_texts:
        raise ValueError("lengths: expected at least one text")
    for name, values in (("roles", texts.roles), ("expansion", texts.expansion)):
        if len(values) != num_texts:
            raise ValueError(f"{name}: {len(values)} values for {num_texts} lengths")
    lengths = np.array(texts.lengths, np.int64)
    cu_seqlens = _from_zero(lengths)
    if cu_seqlens[-1] != len(texts.token_ids):
        raise ValueError(f"token_ids: {len(texts.token_ids)}, but lengths come to {cu_seqlens[-1]}")
    unattended = np.where(np.array(attends_expansion, np.bool_), 0, np.array(texts.expansion, np.int64))
    return PackedNumbers(
        token_ids=np.frombuffer(texts.token_ids, np.int32).astype(np.int64),
        position_ids=np.arange(len(texts.token_ids)) - np.repeat(cu_seqlens[:-1], lengths),
        lengths=lengths,
        cu_seqlens=cu_seqlens,
        attended=lengths - unattended if unattended.any() else lengths,
    )


def _from_zero(sizes: Numbers) -> Numbers:
    """[n + 1]: where each part begins, and where the last one ends."""
    ends = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    return ends


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


def _lengths_on(device: torch.device, numbers: PackedNumbers) -> DeviceLengths:
    keys = numbers.keys
    ends = on_device(np.stack([numbers.cu_seqlens, numbers.cu_keys]).astype(np.int32), device)
    return DeviceLengths(
        ends[0],
        ends[1],
        on_device(keys, device) if keys is not None else None,
        int(numbers.lengths.max()),
        int(numbers.attended.max()),
    )

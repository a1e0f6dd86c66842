"""Full batches through encoder and store before anybody asks, as they go while serving: two on their way at a time.
And blocks of memory as the results of smaller batches are.

What a CUDA device's allocator takes for that it keeps, and the memory plan counts it. Afterwards nothing grows (P5).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial

import torch

from engine.encode_queue import QueuedText
from engine.encoder_thread import EncoderThread
from ipc.messages import Role
from scorer_worker.arena import Arena
from scorer_worker.hosted_encoder import write_into
from scorer_worker.store import NewEntry, whole_grains

BATCHES = 6  # of each length
LENGTHS = (8, 32, 100, 256, 8192)  # tokens of a text; cut to the longest that the model takes
SMALL_BLOCK = 2**20  # bytes: torch's allocator keeps segments of their own for blocks of at most so many, by stream
SMALL_BLOCKS = 16


def rehearse(
    thread: EncoderThread,
    arena: Arena,
    num_rows: Callable[[Role, memoryview], int],
    max_batch_tokens: int,
    longest: int,
) -> None:
    """Run it. The store is as empty afterwards as before.

    Args:
        num_rows: (role, token ids) -> how many rows will be scored.
        longest: tokens that a text may have.
    """
    for length in dict.fromkeys(min(length, longest, max_batch_tokens) for length in LENGTHS):
        _rehearse(thread, arena, _texts(length, max_batch_tokens // length), num_rows)
    take_small = partial(_take_small_blocks, arena.rows.device)
    thread.call(take_small)  # on the encoder's stream
    take_small()


def _take_small_blocks(device: torch.device) -> None:
    """Full batches have large results. Those of smaller ones are small blocks, more of them than were needed so far."""
    held = [torch.empty(SMALL_BLOCK, dtype=torch.uint8, device=device) for _ in range(SMALL_BLOCKS)]
    del held


def _texts(length: int, count: int) -> Sequence[QueuedText]:
    ids = memoryview(array("i", bytes(4 * length)))
    return [QueuedText(number.to_bytes(16, "little"), "document", ids, 0) for number in range(count)]


def _rehearse(
    thread: EncoderThread, arena: Arena, texts: Sequence[QueuedText], num_rows: Callable[[Role, memoryview], int]
) -> None:
    """The same batch again and again, into entries that leave then; nowhere where the store has no room for it."""
    new = [NewEntry(text.key, num_rows(text.role, text.token_ids), 0, keep=False) for text in texts]
    fits = sum(whole_grains(text.rows) for text in new) <= arena.directory.max_job_rows // 2
    entries = (arena.directory.admit([], new) if fits else None) or []
    write = partial(write_into, arena, {entry.key: entry for entry in entries})
    left = BATCHES
    while left or not thread.is_idle:
        while left and thread.has_room:
            thread.submit(texts, write)
            left -= 1
        thread.wait()
        thread.take()
    for entry in entries:
        arena.directory.fill(entry)
    arena.directory.unpin(entries)

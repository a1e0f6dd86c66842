"""Full batches through encoder and store before anybody asks, as they go while serving: two on their way at a time.

What a CUDA device's allocator takes for that it keeps, and the memory plan counts it. Afterwards nothing grows (P5).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from engine.encode_queue import QueuedText
from engine.encoder_thread import EncodedBatch, EncoderThread
from scorer_worker.arena import Arena
from scorer_worker.store import NewEntry

BATCHES = 6  # of each length
LENGTHS = (8, 32, 100, 256, 8192)  # tokens of a text; cut to the longest that the model takes


def rehearse(thread: EncoderThread, arena: Arena, max_batch_tokens: int, longest: int) -> None:
    """Run it. The store is as empty afterwards as before.

    Args:
        longest: tokens that a text may have.
    """
    for length in dict.fromkeys(min(length, longest, max_batch_tokens) for length in LENGTHS):
        texts = _texts(length, max_batch_tokens // length)
        left = BATCHES
        while left or not thread.is_idle:
            while left and thread.has_room:
                thread.submit(texts)
                left -= 1
            thread.wait()
            batch = thread.take()
            if batch is not None:
                _write(arena, batch)


def _texts(length: int, count: int) -> Sequence[QueuedText]:
    ids = memoryview(array("i", bytes(4 * length)))
    return [QueuedText(number.to_bytes(16, "little"), "document", ids, 0) for number in range(count)]


def _write(arena: Arena, batch: EncodedBatch) -> None:
    """Into entries that leave again; nothing where the store has no room for a whole batch."""
    if sum(batch.rows) > arena.directory.max_job_rows // 2:
        return
    new = [NewEntry(text.key, rows, 0, keep=False) for text, rows in zip(batch.texts, batch.rows, strict=True)]
    entries = arena.directory.admit([], new)
    if entries is not None:
        arena.write_batch(entries, batch.embeddings)
        arena.directory.unpin(entries)

"""What was encoded last: for requests that missed a text at the same time as others, and ask for it a little later.

Between the encoding of a text and its arrival in the store whoever asks the store still misses it. While the text waits
or runs, such a request joins it (`engine.encode_queue`, Q1); afterwards it finds it here. This is no cache: it holds
some seconds of work, and the store remembers for good.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

RECENT_BYTES = 16 * 2**20  # some seconds of a CPU's work
TEXT_BYTES = 256  # that a text takes besides: one may have no rows


class RecentEmbeddings:
    """The texts of the last batches, whole batches at a time, in at most `max_bytes`. Belongs to one thread."""

    def __init__(self, max_bytes: int = RECENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._batches: deque[tuple[int, Sequence[bytes], int]] = deque()  # number, keys, bytes
        self._next_number = 0
        self._bytes = 0
        self._found: dict[bytes, tuple[int, torch.Tensor]] = {}  # with the number of its last batch

    def add(self, keys: Sequence[bytes], embeddings: Sequence[torch.Tensor]) -> None:
        """A batch: of each key its text's [rows, dim], not copied."""
        number = self._next_number
        self._next_number += 1
        size = sum(rows.nbytes + TEXT_BYTES for rows in embeddings)
        self._batches.append((number, keys, size))
        self._bytes += size
        self._found.update((key, (number, rows)) for key, rows in zip(keys, embeddings, strict=True))
        while self._bytes > self._max_bytes:
            self._forget_oldest()

    def find(self, key: bytes) -> torch.Tensor | None:
        """[rows, dim], if the text is one of these."""
        found = self._found.get(key)
        return found[1] if found is not None else None

    def _forget_oldest(self) -> None:
        number, keys, size = self._batches.popleft()
        self._bytes -= size
        for key in keys:
            if self._found[key][0] == number:
                del self._found[key]

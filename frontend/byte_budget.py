"""How many bytes of what requests supply may be on their way from an API server at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """A counted budget; who does not fit waits in order. A demand above the whole budget gets it alone, and one for
    nothing does not wait: who only asks the store is not held up by those who bring much."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Have `size` bytes of the budget inside the block."""
        size = min(size, self._total)
        if not size:
            yield
            return
        if self._waiting or self._used + size > self._total:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((turn, size))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    self._wake()
                else:  # it had been our turn already
                    self._give_back(size)
                raise
        else:
            self._used += size
        try:
            yield
        finally:
            self._give_back(size)

    def _give_back(self, size: int) -> None:
        self._used -= size
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            turn, size = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
                continue
            if self._used + size > self._total:
                return
            self._waiting.popleft()
            self._used += size
            turn.set_result(None)

"""Threads for short pieces of work, in turn: who has a few waits for one piece of somebody else's, not for all of them.

F1  Not more pieces run, or wait in the executor, than there are threads. The others wait here: clients take turns, and
    within a client its requests do. A piece keeps its place in its request's row.
F2  A piece that was given up while it ran still has its thread until it ends; one that waited has none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

Row = deque["asyncio.Future[None]"]


class FairThreads:
    """For one event loop.

    Args:
        count: of threads, at least one.
    """

    def __init__(self, count: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=count, thread_name_prefix=name)
        self._free = count
        self._waiting: dict[bytes, dict[object, Row]] = {}  # by client and request, next ones first

    async def run(self, client: bytes, request: object, work: Callable[[], T]) -> T:
        """What `work` returns, or raises, in a thread.

        Args:
            client: whose turn it takes.
            request: which of the client's; compared by `==`, and hashed.
        """
        await self._turn(client, request)
        try:
            done = asyncio.wrap_future(self._executor.submit(work))
        except BaseException:  # no thread can be started, or this is closed
            self._wake_next()
            raise
        done.add_done_callback(self._give_back)
        try:
            await asyncio.wait([done])  # unlike `await done`, it does not end what runs when this is cancelled (F2)
            return done.result()
        finally:
            del done  # an exception in it has this frame: no cycle is to be left behind

    def close(self) -> None:
        """What runs ends, nothing else begins: who waits is cancelled."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for turn in [turn for requests in self._waiting.values() for row in requests.values() for turn in row]:
            turn.cancel()

    async def _turn(self, client: bytes, request: object) -> None:
        """Until there is a thread for this piece, and it is its turn."""
        if self._free:  # then nobody waits
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, {}).setdefault(request, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(client, request, turn)
            else:  # it had been our turn already
                self._wake_next()
            raise

    def _leave(self, client: bytes, request: object, turn: asyncio.Future[None]) -> None:
        """A piece waits no longer: nobody loses a place by it."""
        requests = self._waiting.get(client, {})
        row = requests.get(request)
        if row is None or turn not in row:
            return  # it was passed over meanwhile
        row.remove(turn)
        if not row:
            del requests[request]
        if not requests:
            del self._waiting[client]

    def _give_back(self, done: asyncio.Future[T]) -> None:
        if not done.cancelled():
            done.exception()  # F2: nobody may be there to ask for it
        self._wake_next()

    def _wake_next(self) -> None:
        """A thread is free."""
        while self._waiting:
            turn = self._next_turn()
            if not turn.cancelled():  # else whoever waited has yet to hear of it
                turn.set_result(None)
                return
        self._free += 1

    def _next_turn(self) -> asyncio.Future[None]:
        """Taken from the row whose turn it is; its client and its request go to the back."""
        client = next(iter(self._waiting))
        requests = self._waiting.pop(client)
        request = next(iter(requests))
        row = requests.pop(request)
        turn = row.popleft()
        if row:
            requests[request] = row
        if requests:
            self._waiting[client] = requests
        return turn

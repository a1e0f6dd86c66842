"""Whose turn it is among the requests of one client. Pure.

    T1  A turn goes to the request with the fewest texts left, the older one of equals. So requests are finished one
        after the other, the small ones first. If all of them advanced together all would be finished together, late:
        and then the encoder would wait for those that follow.
    T2  Every fourth turn goes to the oldest request: it is finished however many small ones keep coming.

Source: shortest remaining processing time first (Schrage 1968), with a share for whom it would starve.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from ipc.running import RequestName

OLDEST_EVERY = 4  # turns


class RequestTurns:
    """The requests of a client that have texts left.

    Args:
        texts_left: how many a request has; may change between calls.
    """

    def __init__(self, texts_left: Callable[[RequestName], int]) -> None:
        self._texts_left = texts_left
        self._numbers: dict[RequestName, int] = {}  # oldest first
        self._fewest: list[tuple[int, int, RequestName]] = []  # heap: texts left when last looked at, number, request
        self._next_number = 0
        self._turn = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[RequestName]:
        return iter(self._numbers)

    def add(self, request: RequestName) -> None:
        """A request that is not among them."""
        self._numbers[request] = self._next_number
        heapq.heappush(self._fewest, (self._texts_left(request), self._next_number, request))
        self._next_number += 1

    def remove(self, request: RequestName) -> None:
        """One that is among them."""
        del self._numbers[request]

    def current(self) -> RequestName:
        """Whose turn it is; there must be one."""
        if self._turn % OLDEST_EVERY == OLDEST_EVERY - 1:
            return next(iter(self._numbers))
        while True:
            known, number, request = self._fewest[0]
            if self._numbers.get(request) != number:
                heapq.heappop(self._fewest)
                continue
            left = self._texts_left(request)
            if left == known:
                return request
            heapq.heapreplace(self._fewest, (left, number, request))

    def end_turn(self) -> None:
        """The next turn is another's, perhaps."""
        self._turn += 1

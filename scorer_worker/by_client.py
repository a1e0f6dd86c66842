"""What waits for the worker's time or for room: clients take turns, and a client's own come in order. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from ipc.running import RequestName

T = TypeVar("T")


class ByClient(Generic[T]):
    """Items by the name of their request; see the file's docstring."""

    def __init__(self) -> None:
        self._turns: OrderedDict[bytes, OrderedDict[RequestName, T]] = OrderedDict()  # by client, next one first
        self._clients: dict[RequestName, bytes] = {}  # whose turn each request takes

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[T]:
        """In no particular order; it must not change meanwhile."""
        return (item for own in self._turns.values() for item in own.values())

    def add(self, client: bytes, name: RequestName, item: T) -> None:
        """
        Args:
            client: whose turn it takes.
            name: one that is not among them.
        """
        self._turns.setdefault(client, OrderedDict())[name] = item
        self._clients[name] = client

    def first(self) -> T:
        """The first item of the client whose turn it is, which stays; there must be one."""
        return next(iter(next(iter(self._turns.values())).values()))

    def remove(self, name: RequestName) -> bool:
        """It waits no longer. Its client goes to the back if this was `first`. False: it is not among them."""
        client = self._clients.pop(name, None)
        if client is None:
            return False
        own = self._turns[client]
        was_its_turn = next(iter(self._turns)) == client and next(iter(own)) == name
        del own[name]
        if not own:
            del self._turns[client]
        elif was_its_turn:
            self._turns.move_to_end(client)
        return True

    def of_identity(self, identity: bytes) -> list[RequestName]:
        """The requests that came over this connection."""
        return [name for name in self._clients if name[0] == identity]

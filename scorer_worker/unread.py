"""Requests that have come and are not read yet: clients take turns, and the requests of one are read in order. Pure."""

from __future__ import annotations

from collections import OrderedDict

from ipc.running import RequestName
from ipc.service import Request


class Unread:
    """See the file's docstring."""

    def __init__(self) -> None:
        self._turns: OrderedDict[bytes, OrderedDict[RequestName, Request]] = OrderedDict()  # by client, next one first
        self._clients: dict[RequestName, bytes] = {}  # whose turn each request takes

    def __len__(self) -> int:
        return len(self._clients)

    def add(self, client: bytes, request: Request) -> None:
        """
        Args:
            client: whose turn it takes.
        """
        self._turns.setdefault(client, OrderedDict())[request.name] = request
        self._clients[request.name] = client

    def pop_next(self) -> Request:
        """The first request of the client whose turn it is, who goes to the back; there must be one."""
        client, requests = next(iter(self._turns.items()))
        request = next(iter(requests.values()))
        self._turns.move_to_end(client)
        self.remove(request.name)
        return request

    def remove(self, name: RequestName) -> bool:
        """Nobody waits for this request any more. False: it is not among them."""
        client = self._clients.pop(name, None)
        if client is None:
            return False
        del self._turns[client][name]
        if not self._turns[client]:
            del self._turns[client]
        return True

    def of_identity(self, identity: bytes) -> list[RequestName]:
        """The requests that came over this connection."""
        return [name for name in self._clients if name[0] == identity]

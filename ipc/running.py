"""Which requests are running right now, in a file that survives the process: so that no request kills twice.

A service writes the ids of a batch before it runs it and clears them after, and so with a request that it reads. If it
dies in between, its successor reads them as suspects: a suspect that is sent again runs alone in its batch; one that
was running in two services that died is answered WORKER_CRASHED (the query of death, promise P6). The file is a memory
map: a write costs a copy of some bytes and reaches the page cache even if the process is killed.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Collection, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from ipc.messages import IDENTITY_BYTES

MAX_RUNNING = 4096  # requests in one batch; more are not recorded
MAX_DEATHS = 2

_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct(f"<{IDENTITY_BYTES}sQB")
_FILE_BYTES = _COUNT.size + MAX_RUNNING * _ENTRY.size

RequestName = tuple[bytes, int]  # (identity of the client, request id)


class RunningFile:
    """The requests of the running batch, and the suspects that the predecessor left."""

    def __init__(self, path: Path) -> None:
        self._suspects = _read(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _FILE_BYTES)
            self._map = mmap.mmap(descriptor, _FILE_BYTES)
        finally:
            os.close(descriptor)
        self.clear()

    def deaths(self, request: RequestName) -> int:
        """How many services died while this request was running in them."""
        return self._suspects.get(request, 0)

    def blame(self, request: RequestName, deaths: int) -> None:
        """This request is what another one has become, and that one was running in so many services that died."""
        if deaths > self.deaths(request):
            self._suspects[request] = deaths

    @property
    def suspects(self) -> Set[RequestName]:
        """Requests that were running in a service that died, and have not ended."""
        return self._suspects.keys()

    @property
    def has_suspects(self) -> bool:
        return bool(self._suspects)

    def forgive(self, request: RequestName) -> None:
        """The request has ended: it was not the one, or it has been told."""
        self._suspects.pop(request, None)

    def write(self, running: Collection[RequestName]) -> None:
        """These requests run now. Their count is written last, so that a reader never sees half an entry."""
        offset = _COUNT.size
        recorded = list(running)[:MAX_RUNNING]
        for identity, request_id in recorded:
            _ENTRY.pack_into(self._map, offset, identity, request_id, self.deaths((identity, request_id)))
            offset += _ENTRY.size
        _COUNT.pack_into(self._map, 0, len(recorded))

    @contextmanager
    def also(self, request: RequestName) -> Iterator[None]:
        """This request too, beside those that run, while the block runs.

        It stays there if the block raises: that ends the service.
        """
        (count,) = _COUNT.unpack_from(self._map)
        if count < MAX_RUNNING:
            _ENTRY.pack_into(self._map, _COUNT.size + count * _ENTRY.size, *request, self.deaths(request))
            _COUNT.pack_into(self._map, 0, count + 1)
        yield
        _COUNT.pack_into(self._map, 0, count)

    def clear(self) -> None:
        """Nothing runs."""
        _COUNT.pack_into(self._map, 0, 0)

    def close(self) -> None:
        self._map.close()


def _read(path: Path) -> dict[RequestName, int]:
    """The suspects: what was running when the predecessor died, each with one more death."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    if len(content) != _FILE_BYTES:
        return {}
    (count,) = _COUNT.unpack_from(content)
    entries = (_ENTRY.unpack_from(content, _COUNT.size + i * _ENTRY.size) for i in range(min(count, MAX_RUNNING)))
    return {(identity, request_id): deaths + 1 for identity, request_id, deaths in entries}

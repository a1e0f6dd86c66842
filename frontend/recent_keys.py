"""The keys of texts that were lately asked for here: what is probably in the store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class RecentKeys:
    """A set that forgets what was longest not used. Wrong in either direction costs time, never an answer.

    Args:
        limit: keys; one takes some 150 bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Iterable[bytes]) -> None:
        """These have just been used."""
        for key in keys:
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._limit:
            self._keys.popitem(last=False)

    def clear(self) -> None:
        """The store is empty again, or another."""
        self._keys.clear()

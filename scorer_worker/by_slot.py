"""What loops over a thousand entries of a store need of each, in arrays. Pure bookkeeping.

An entry has a slot, a small number (`Recency`), for as long as it is in the store. To pin a thousand entries one after
the other, and to unpin them, took most of what a Score of cached documents costs the worker's control thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scorer_worker.recency import SOME, Ints


class BySlot:
    """Arrays with an element for each slot; those of free slots mean nothing."""

    def __init__(self) -> None:
        self.pins: Ints = np.zeros(SOME, np.int64)  # by how many it is held
        self.places: Ints = np.zeros(SOME, np.int64)  # `Entry.place`
        self.prompt_tokens: np.ndarray[Any, np.dtype[np.int32]] = np.zeros(SOME, np.int32)
        self.stays: np.ndarray[Any, np.dtype[np.bool_]] = np.zeros(SOME, np.bool_)  # when nobody holds it any more

    def add(self, slot: int) -> None:
        """The slot is a new entry's, which is pinned once. `note` comes before all else that is done with it."""
        if slot >= len(self.pins):
            self._grow()
        self.pins[slot] = 1

    def note(self, slots: Ints, places: bytes, prompt_tokens: Sequence[int]) -> None:
        """What these new entries are. None of them stays before it is filled.

        Args:
            places: `Entry.place` of each, one after the other.
        """
        self.places[slots] = np.frombuffer(places, np.int64)
        self.prompt_tokens[slots] = prompt_tokens
        self.stays[slots] = False

    def pin(self, slots: Ints) -> Ints:
        """Pin these, each once.

        Returns:
            Those of them that nobody held.
        """
        before: Ints = self.pins[slots]
        self.pins[slots] = before + 1
        were_free: Ints = slots[before == 0]
        return were_free

    def unpin(self, slots: Ints) -> Ints:
        """Unpin these, each once.

        Returns:
            Those of them that nobody holds any more.
        """
        after: Ints = self.pins[slots] - 1
        self.pins[slots] = after
        are_free: Ints = slots[after == 0]
        return are_free

    def _grow(self) -> None:
        for name in ("pins", "places", "prompt_tokens", "stays"):
            numbers = getattr(self, name)
            setattr(self, name, np.concatenate([numbers, np.zeros_like(numbers)]))

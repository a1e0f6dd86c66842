"""Long work on the event loop, cut into turns: a request with ten thousand documents lets those with ten go between.

What one request costs the loop is mostly Python over its documents, a few microseconds each. Another thread would be no
help: it holds Python's lock as long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")

TURN_SECONDS = 0.001
STRIDE = 64  # items between two looks at the clock
LARGE = 1024  # items of what is not worth cutting below


async def in_turns(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """The items in runs of STRIDE; between two of them, every TURN_SECONDS, the event loop does what else there is."""
    if len(items) <= LARGE:
        yield items
        return
    end = time.perf_counter() + TURN_SECONDS
    for start in range(0, len(items), STRIDE):
        yield items[start : start + STRIDE]
        if time.perf_counter() > end:
            await asyncio.sleep(0)
            end = time.perf_counter() + TURN_SECONDS


async def end_turn(num_items: int) -> None:
    """Between two steps of a request with so many items."""
    if num_items > LARGE:
        await asyncio.sleep(0)

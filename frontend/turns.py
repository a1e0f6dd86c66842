"""Long work on the event loop, cut into turns: a request with ten thousand documents lets those with ten go between.

What one request costs the loop is mostly Python over its documents, a few microseconds each. Another thread would be no
help: it holds Python's lock as long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

import msgspec

T = TypeVar("T")

TURN_SECONDS = 0.00025
STRIDE = 32  # items between two looks at the clock
QUIET_SECONDS = 50e-6  # a round of the event loop that takes less has done little
QUIET_ROUNDS = 8  # after so many of these in a row nobody is on his way: a round of nothing takes 1 us
OTHERS_SECONDS = 0.003  # that others have between two turns, at most: a twelfth of a busy loop is for long work
LARGE = 256  # items: what has no more is not worth cutting
MANY = 1024  # items: to do one quick thing with all of fewer is not worth a turn; what is sorted at once

_encoder = msgspec.json.Encoder()
_loop_and_gate: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None


class Turns:
    """Long work that is done in steps, of which each takes much less than TURN_SECONDS."""

    def __init__(self) -> None:
        self._end = 0.0

    async def before_step(self) -> None:
        """At first, and whenever a turn is over, the event loop does what else there is."""
        if time.perf_counter() > self._end:
            await _let_others_go()  # at first too: parts of one request come together
            self._end = time.perf_counter() + TURN_SECONDS


async def in_turns(items: Sequence[T], of: int = 0) -> AsyncIterator[Sequence[T]]:
    """The items in runs of STRIDE, each of them a step of `Turns`.

    Args:
        of: how many the request has, if these are a part of them: it is cut if either is more than LARGE.
    """
    if not len(items):
        return
    if max(len(items), of) <= LARGE:
        yield items
        return
    turns = Turns()
    for start in range(0, len(items), STRIDE):
        await turns.before_step()
        yield items[start : start + STRIDE]


async def write_list(make: Callable[[T], msgspec.Struct], items: Sequence[T]) -> msgspec.Raw:
    """What is made of each item, as a list in JSON, for an answer that is encoded around it.

    Both are done in turns: making, encoding and freeing ten thousand results at once kept the event loop for 10 ms.
    """
    parts = [_encoder.encode([make(item) for item in some])[1:-1] async for some in in_turns(items)]
    return msgspec.Raw(b"[" + b",".join(parts) + b"]")


async def end_turn(num_items: int) -> None:
    """Between two things that are done with all items of a request that has so many."""
    if num_items > MANY:
        await _let_others_go()


async def best_first(scores: Sequence[float]) -> list[int]:
    """The places of the scores, the highest first, equal ones in the order of the input. In turns, of which the longest
    merges parts that are sorted already: of 10,000 scores 0.3 to 0.5 ms, where sorting all at once takes 1.2 to 1.7
    (by hand, two cores).
    """
    order: list[int] = []
    turns = Turns()
    for start in range(0, len(scores), MANY):
        if start:
            await turns.before_step()
        order += sorted(range(len(scores))[start : start + MANY], key=scores.__getitem__, reverse=True)
    if len(scores) <= MANY:
        return order
    await turns.before_step()
    return sorted(order, key=scores.__getitem__, reverse=True)


async def _let_others_go() -> None:
    """Until the event loop has nothing else to do, within bounds: a small request takes ten steps or so on its way,
    some of 5 us and some of 300, and would wait for a turn of somebody's large one before each.

    Of several that wait here, parts of one request or several large ones, each has a turn before the next one looks, in
    the order in which they came: ten parts that went on in the same round held everybody up for ten turns.
    """
    async with _gate():
        quiet, before = 0, time.perf_counter()
        end = before + OTHERS_SECONDS
        while quiet < QUIET_ROUNDS and before < end:
            await asyncio.sleep(0)
            after = time.perf_counter()
            quiet = quiet + 1 if after - before < QUIET_SECONDS else 0
            before = after


def _gate() -> asyncio.Lock:
    """The running event loop's, of which a process has one at a time."""
    global _loop_and_gate
    loop = asyncio.get_running_loop()
    if _loop_and_gate is None or _loop_and_gate[0] is not loop:
        _loop_and_gate = loop, asyncio.Lock()
    return _loop_and_gate[1]

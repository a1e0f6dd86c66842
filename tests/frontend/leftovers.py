"""Whether something that failed leaves its failure behind, with all that the frames of its traceback hold."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable


def is_gone_without_the_collector(kind: type[BaseException], work: Callable[[], Awaitable[object]]) -> bool:
    """Whether the failure of `work`, of this kind, is gone as soon as nobody names it.

    Raises:
        AssertionError: it does not fail so.
    """

    async def run() -> weakref.ref[BaseException] | None:
        try:
            await work()
        except kind as failure:
            return weakref.ref(failure)
        return None

    gc.disable()
    try:
        left = asyncio.run(run())
        assert left is not None, f"no {kind.__name__}"
        return left() is None
    finally:
        gc.enable()

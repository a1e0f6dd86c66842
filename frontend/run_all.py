"""Several coroutines side by side, of which none is left running when one has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TypeVar

T = TypeVar("T")


async def run_all(work: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """What they return, in their order; the first failure cancels the others and is raised as it is."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        await _cancel(tasks)
        raise
    finally:
        del tasks  # they hold the failure, and its traceback this frame: nothing of the request would go by itself


async def _cancel(tasks: Sequence[asyncio.Task[T]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

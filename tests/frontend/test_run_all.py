"""Several coroutines side by side."""

from __future__ import annotations

import asyncio

import pytest

from frontend.run_all import run_all
from tests.frontend.leftovers import is_gone_without_the_collector


class Failure(Exception):
    """Of one of them."""


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def fail() -> int:
    await asyncio.sleep(0)
    raise Failure


@pytest.mark.parametrize("count", [0, 1, 5])
def test_results_come_in_order(count: int) -> None:
    async def run() -> list[int]:
        return await run_all([double(number) for number in range(count)])

    assert asyncio.run(run()) == [2 * number for number in range(count)]


def test_first_failure_ends_the_others() -> None:
    ended: list[str] = []

    async def wait_for_ever() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waiting")
        return 0

    async def run() -> None:
        with pytest.raises(Failure):
            await run_all([wait_for_ever(), fail(), wait_for_ever()])
        assert ended == ["waiting", "waiting"]

    asyncio.run(run())


def test_failure_is_gone_without_the_collector() -> None:
    """It would keep what the frames of its traceback hold: a request of many megabytes."""
    assert is_gone_without_the_collector(Failure, lambda: run_all([fail(), double(1)]))

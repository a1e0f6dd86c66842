"""A counted budget of bytes: in order, never above its total, and nothing is left of it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from frontend.byte_budget import ByteBudget

TOTAL = 10


def test_who_wants_nothing_does_not_wait_behind_those_who_do() -> None:
    async def run() -> list[str]:
        budget, order = ByteBudget(TOTAL), []
        has_all, may_end = asyncio.Event(), asyncio.Event()

        async def hold(name: str, size: int) -> None:
            async with budget.hold(size):
                order.append(name)
                if name == "first":
                    has_all.set()
                    await may_end.wait()

        first = asyncio.create_task(hold("first", TOTAL))
        await has_all.wait()
        second = asyncio.create_task(hold("second", 1))
        await asyncio.sleep(0)
        await hold("nothing", 0)
        may_end.set()
        await asyncio.gather(first, second)
        return order

    assert asyncio.run(run()) == ["first", "nothing", "second"]


@given(sizes=st.lists(st.integers(0, 2 * TOTAL), max_size=12), cancelled=st.sets(st.integers(0, 11)))
def test_the_total_is_kept_and_all_of_it_comes_back(sizes: list[int], cancelled: set[int]) -> None:
    async def run() -> None:
        budget, held = ByteBudget(TOTAL), 0

        async def hold(size: int) -> None:
            nonlocal held
            async with budget.hold(size):
                held += min(size, TOTAL)
                assert held <= TOTAL
                try:
                    await asyncio.sleep(0)
                finally:
                    held -= min(size, TOTAL)

        tasks = [asyncio.create_task(hold(size)) for size in sizes]
        await asyncio.sleep(0)
        for number, task in enumerate(tasks):
            if number in cancelled:
                task.cancel()  # some hold, some wait, some have ended
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5), budget.hold(TOTAL):
            assert held == 0

    asyncio.run(run())

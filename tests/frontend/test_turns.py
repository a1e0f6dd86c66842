"""Long work lets other requests go between, and misses nothing."""

from __future__ import annotations

import asyncio

import pytest

from frontend import turns


@pytest.mark.parametrize("count", [0, 1, turns.LARGE, turns.LARGE + 1, 3 * turns.LARGE + 7])
def test_every_item_comes_once_and_in_order(count: int) -> None:
    async def collect() -> list[int]:
        return [item async for some in turns.in_turns(range(count)) for item in some]

    assert asyncio.run(collect()) == list(range(count))


def test_others_have_the_event_loop_between_the_turns_of_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    seen: list[str] = []

    async def long_work() -> None:
        async for some in turns.in_turns(range(2 * turns.LARGE)):
            seen.append("long")
            assert len(some) == turns.STRIDE
        await turns.end_turn(2 * turns.LARGE)
        seen.append("end")

    async def short_work() -> None:
        for _ in range(3):
            seen.append("short")
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(long_work(), short_work())

    asyncio.run(both())
    assert seen[:6] == ["long", "short"] * 3
    assert seen[-1] == "end"


def test_small_work_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)

    async def runs() -> list[int]:
        return [len(some) async for some in turns.in_turns(range(turns.LARGE))]

    assert asyncio.run(runs()) == [turns.LARGE]

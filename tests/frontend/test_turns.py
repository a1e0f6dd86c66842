"""Long work lets other requests go between, and misses nothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest

from frontend import turns
from frontend.schemas import ScoreAnswer, ScoredPair, ScoreUsage


@pytest.mark.parametrize("count", [0, 1, turns.LARGE, turns.LARGE + 1, 3 * turns.LARGE + 7])
def test_every_item_comes_once_and_in_order(count: int) -> None:
    async def collect() -> list[int]:
        return [item async for some in turns.in_turns(range(count)) for item in some]

    assert asyncio.run(collect()) == list(range(count))


def test_others_have_the_event_loop_between_the_turns_of_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(turns, "QUIET_SECONDS", math.inf)  # every round counts as one in which others did nothing
    monkeypatch.setattr(turns, "OTHERS_SECONDS", math.inf)
    monkeypatch.setattr(turns, "QUIET_ROUNDS", 1)
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
    assert seen[:7] == ["short", "long", "short", "long", "short", "long", "long"]
    assert seen[-1] == "end"


def test_no_items_wait_for_nobody() -> None:
    async def runs() -> bool:
        task = asyncio.create_task(collect())
        await asyncio.sleep(0)
        return task.done()

    async def collect() -> list[Sequence[int]]:
        return [some async for some in turns.in_turns(list[int](), of=10 * turns.LARGE)]

    assert asyncio.run(runs())


def test_small_work_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)

    async def runs() -> list[int]:
        return [len(some) async for some in turns.in_turns(range(turns.LARGE))]

    assert asyncio.run(runs()) == [turns.LARGE]


def order_beside(steps: int) -> list[str]:
    """Who had the event loop, one after the other: somebody with so many steps, and long work with two turns."""
    order: list[str] = []

    async def large() -> None:
        async for some in turns.in_turns(range(turns.LARGE + turns.STRIDE)):
            order.append("large" if len(some) == turns.STRIDE else "uncut")
            if order.count("large") == 2:
                return

    async def small() -> None:
        for _ in range(steps):
            order.append("small")
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(large(), small())

    asyncio.run(both())
    return order


def test_somebody_with_many_steps_is_through_before_long_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small request is several steps of the event loop; some of them take no longer than a round without any."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(turns, "QUIET_SECONDS", math.inf)
    monkeypatch.setattr(turns, "OTHERS_SECONDS", math.inf)
    steps = turns.QUIET_ROUNDS
    assert order_beside(2 * steps) == [*["small"] * steps, "large", *["small"] * steps, "large"]


def test_somebody_who_never_ends_leaves_long_work_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(turns, "QUIET_SECONDS", 0.0)  # no round is quiet
    monkeypatch.setattr(turns, "OTHERS_SECONDS", 1e-9)  # any round is as long as others may have
    assert order_beside(10)[:4] == ["small", "large", "small", "large"]


def test_parts_of_large_work_do_not_go_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is smaller than what is cut; they come in the same round, as the answers to several messages do."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(turns, "QUIET_SECONDS", math.inf)
    monkeypatch.setattr(turns, "OTHERS_SECONDS", math.inf)
    order: list[str] = []

    async def part(name: str) -> None:
        async for some in turns.in_turns(range(2 * turns.STRIDE), of=turns.LARGE + 1):
            assert len(some) == turns.STRIDE
            order.append(name)

    async def small() -> None:
        for _ in range(10 * turns.QUIET_ROUNDS):
            order.append("small")
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        await asyncio.gather(part("one"), part("two"), part("three"), small())

    asyncio.run(all_of_them())
    assert [each for each in order if each != "small"] == ["one", "two", "three"] * 2
    places = [place for place, each in enumerate(order) if each != "small"]
    between = [after - before - 1 for before, after in pairwise(places)]
    assert min(between) >= turns.QUIET_ROUNDS


def test_a_part_that_is_given_up_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)

    async def part() -> int:
        return sum([len(some) async for some in turns.in_turns(range(2 * turns.STRIDE), of=turns.LARGE + 1)])

    async def some_given_up() -> list[int | BaseException]:
        parts = [asyncio.create_task(part()) for _ in range(4)]
        await asyncio.sleep(0)  # one has its turn next, the others wait behind it
        parts[0].cancel()
        parts[2].cancel()
        async with asyncio.timeout(20):
            return await asyncio.gather(*parts, return_exceptions=True)

    answers = asyncio.run(some_given_up())
    assert [answers[1], answers[3]] == [2 * turns.STRIDE] * 2
    assert isinstance(answers[0], asyncio.CancelledError)
    assert isinstance(answers[2], asyncio.CancelledError)


@pytest.mark.parametrize("count", [0, 1, turns.MANY, 3 * turns.MANY + 7])
def test_best_come_first_and_equal_ones_in_their_order(count: int) -> None:
    scores = [float(index * 7919 % 101) for index in range(count)]
    expected = sorted(range(count), key=lambda index: (-scores[index], index))
    assert asyncio.run(turns.best_first(scores)) == expected


def test_a_turn_that_is_not_over_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", math.inf)
    given_up = 0

    async def let_others_go() -> None:
        nonlocal given_up
        given_up += 1

    monkeypatch.setattr(turns, "_let_others_go", let_others_go)
    asyncio.run(turns.best_first([0.0] * (10 * turns.MANY)))
    assert given_up == 1


@pytest.mark.parametrize("count", [0, 1, turns.STRIDE, 3 * turns.LARGE + 7])
def test_list_written_in_turns_is_the_list(count: int) -> None:
    def pair(index: int) -> ScoredPair:
        return ScoredPair(index, index / 7)

    answer = ScoreAnswer("score-1", "list", 1, "model", [pair(index) for index in range(count)], ScoreUsage(1, 1))
    written = asyncio.run(turns.write_list(pair, range(count)))
    encoded = msgspec.json.encode(msgspec.structs.replace(answer, data=written))
    assert encoded == msgspec.json.encode(answer)

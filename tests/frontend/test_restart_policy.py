"""The restart policy converges: whatever dies when, a launch ends with everything up, or with the documented exit.

The real supervisors run on a fake clock, with processes whose fates hypothesis writes: a child dies before it is up or
after, says that its settings are wrong, never becomes ready, or falls silent. After its fates a child lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.restart_policy import FIRST_BACKOFF, MAX_EARLY_DEATHS, GiveUp, RestartPolicy, StartAgain
from frontend.supervisor import PATIENCE, Launch, StartFailed, Supervisor
from ipc.child import EXIT_USAGE, Alive, Broken, Status, Up
from tests.frontend.fake_clock import run_on_fake_clock

STARTUP_TIMEOUT = 120.0
LONGEST_BACKOFF: float = FIRST_BACKOFF * 2 ** (MAX_EARLY_DEATHS - 1)
LONGEST = 60.0  # seconds that a fate takes to come
BEAT = 1.0
NAMES = ("worker", "engine", "api server 0")


@dataclass(frozen=True)
class Fate:
    """How one start of a child goes."""

    seconds: float = 1.0  # until it is up, or dies before
    life: float | None = None  # seconds that it is up; None: it never is
    code: int = -9
    is_silent: bool = False  # it does not end by itself: it hangs, and has to be found
    patience: float = PATIENCE  # that it asks for once it is up
    broken: Broken | None = None  # its last words


HEALTHY = Fate(life=float("inf"))
TIMES = st.floats(0.0, LONGEST)
FATES = st.one_of(
    st.builds(Fate, TIMES, st.none(), st.sampled_from([1, -9, -11, EXIT_USAGE])),
    st.builds(Fate, TIMES, TIMES, st.sampled_from([1, -9, EXIT_USAGE])),
    st.builds(Fate, TIMES, st.one_of(st.none(), TIMES), st.just(-9), st.just(True)),
)


@dataclass(eq=False)
class FakeProcess:
    """As much of a process as a supervisor sees."""

    fate: Fate
    pid: int = 0
    returncode: int | None = None
    stdout: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.stdin = self
        self.living = asyncio.create_task(self.live())

    async def live(self) -> None:
        fate = self.fate
        await asyncio.sleep(fate.seconds)
        if fate.life is not None:
            self.say(Up())
            self.say(Alive(fate.patience))
            left, beat = fate.life, 0.9 * fate.patience
            while left > 0:
                await asyncio.sleep(min(beat, left))
                left -= beat
                self.say(Alive(fate.patience))
        if fate.broken is not None:
            self.say(fate.broken)
        if not fate.is_silent:
            self.end(fate.code)

    def say(self, status: Status) -> None:
        self.stdout.feed_data(msgspec.json.encode(status) + b"\n")

    def end(self, code: int) -> None:
        if self.returncode is None:
            self.returncode = code
            self.stdout.feed_eof()
            self.ended.set()

    async def wait(self) -> int:
        await self.ended.wait()
        assert self.returncode is not None
        return self.returncode

    def write(self, line: bytes) -> None:
        assert line.endswith(b"\n")

    async def drain(self) -> None:
        """Settings have been read."""

    def close(self) -> None:
        self.end(0)

    def is_closing(self) -> bool:
        return self.returncode is not None


class Child:
    """A supervisor, and how its processes fare."""

    def __init__(self, name: str, fates: Sequence[Fate]) -> None:
        self._fates = iter(fates)
        self.fates_left = len(fates)
        self.process: FakeProcess | None = None
        self.starts: list[float] = []
        self.deaths: list[float] = []
        self.supervisor = Supervisor(
            name,
            lambda: Launch(name, msgspec.defstruct("Settings", [])()),
            STARTUP_TIMEOUT,
            lambda summary: None,
            lambda: self.deaths.append(asyncio.get_running_loop().time()),
            lambda line: None,
            self.start,
        )

    async def start(self, launch: Launch) -> Any:
        assert self.process is None or self.process.returncode is not None, f"{launch.module} was started twice"
        self.starts.append(asyncio.get_running_loop().time())
        fate = next(self._fates, None)
        self.fates_left -= fate is not None
        self.process = FakeProcess(fate or HEALTHY)
        return self.process

    @property
    def is_settled(self) -> bool:
        return self.supervisor.is_up and self.process is not None and self.process.fate is HEALTHY


async def launch(children: Sequence[Child], longest: float) -> int | None:
    """Run until everything is up for good (None), or until the launch ends with an exit code."""
    tasks = [asyncio.create_task(child.supervisor.run()) for child in children]
    try:
        async with asyncio.timeout(longest):
            while not all(child.is_settled for child in children):
                done, _ = await asyncio.wait(tasks, timeout=BEAT, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    error = done.pop().exception()
                    assert isinstance(error, StartFailed)
                    return error.exit_code
        return None
    finally:
        for child in children:
            child.supervisor.close_lifeline()
            if child.process is not None:
                child.process.living.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def documented_exit(fates: Sequence[Fate]) -> int | None:
    """What README and architecture say of a child with these fates."""
    early, was_up = 0, False
    for fate in fates:
        if fate.life is not None:
            early, was_up = 0, True
            continue
        early += 1
        if fate.code == EXIT_USAGE and not was_up:
            return 2
        if early == 5:
            return 1
    return None


def documented_waits(fates: Sequence[Fate]) -> list[float]:
    """The seconds from each death of such a child to its next start."""
    early, waits = 0, []
    for fate in fates:
        early = 0 if fate.life is not None else early + 1
        waits.append(0.1 * 2**early if early else 0.0)
    return waits


def longest_of(fates: Sequence[Fate]) -> float:
    """By when these fates are over, and a healthy child is up."""
    each = max(STARTUP_TIMEOUT, 2 * LONGEST + PATIENCE) + LONGEST_BACKOFF
    return (len(fates) + 1) * each


@given(st.lists(st.lists(FATES, max_size=9), min_size=len(NAMES), max_size=len(NAMES)))
def test_launch_ends_with_everything_up_or_with_the_documented_exit(fates: list[list[Fate]]) -> None:
    async def play() -> None:
        children = [Child(name, each) for name, each in zip(NAMES, fates, strict=True)]
        found = await launch(children, max(map(longest_of, fates)))
        expected = {documented_exit(each) for each in fates}
        assert found in expected and (found is not None or expected == {None})
        for child, own in zip(children, fates, strict=True):
            waits = [start - death for death, start in zip(child.deaths, child.starts[1:], strict=False)]
            assert waits == pytest.approx(documented_waits(own)[: len(waits)], abs=1e-6)
            assert len(child.starts) <= len(child.deaths) + 1

    with patch("frontend.supervisor.kill", lambda process: process.end(-9)):
        run_on_fake_clock(play())


@pytest.mark.parametrize(
    ("fate", "seconds"),
    [
        pytest.param(Fate(is_silent=True), STARTUP_TIMEOUT, id="never-up"),
        pytest.param(Fate(3.0, life=0.0, is_silent=True), 3.0 + PATIENCE, id="silent"),
        pytest.param(Fate(3.0, 0.0, is_silent=True, patience=5 * PATIENCE), 3.0 + 5 * PATIENCE, id="silent-and-busy"),
        pytest.param(Fate(3.0, 40 * PATIENCE, patience=5 * PATIENCE), 3.0 + 40 * PATIENCE, id="busy-not-silent"),
    ],
)
def test_who_is_silent_is_killed_when_its_patience_is_over_and_not_before(fate: Fate, seconds: float) -> None:
    async def play() -> list[float]:
        child = Child("worker", [fate])
        assert await launch([child], LONGEST + 50 * PATIENCE + STARTUP_TIMEOUT) is None
        return child.deaths[:1]

    with patch("frontend.supervisor.kill", lambda process: process.end(-9)):
        assert run_on_fake_clock(play()) == pytest.approx([seconds])


@pytest.mark.parametrize(
    ("broken", "exit_code", "message"),
    [
        pytest.param(Broken("no such model", retry=False), 2, "worker: no such model", id="settings"),
        pytest.param(
            Broken("no memory"), 1, "worker: died 5 times before it was ready; last: no memory", id="five-times"
        ),
    ],
)
def test_a_launch_that_ends_says_with_which_child_and_why(broken: Broken, exit_code: int, message: str) -> None:
    async def play() -> StartFailed:
        with pytest.raises(StartFailed) as failed:
            await Child("worker", [Fate(code=1, broken=broken)] * MAX_EARLY_DEATHS).supervisor.run()
        return failed.value

    with patch("frontend.supervisor.kill", lambda process: process.end(-9)):
        failure = run_on_fake_clock(play())
    assert (str(failure), failure.exit_code) == (message, exit_code)


@given(st.lists(st.booleans(), max_size=30))
def test_deaths_before_it_was_up_are_waited_after_twice_as_long_each(ups: list[bool]) -> None:
    policy = RestartPolicy()
    early = 0
    for was_up in ups:
        if was_up:
            policy.came_up()
        decision = policy.died(was_up, -9, may_retry=True)
        early = 0 if was_up else early + 1
        if early == MAX_EARLY_DEATHS:
            assert decision == GiveUp(1)
            return
        assert decision == StartAgain(FIRST_BACKOFF * 2**early if early else 0.0)


@pytest.mark.parametrize(
    ("code", "may_retry"), [pytest.param(EXIT_USAGE, True, id="exit-code"), pytest.param(1, False, id="said-so")]
)
def test_wrong_settings_end_the_first_start_and_are_a_death_like_another_later(code: int, may_retry: bool) -> None:
    assert RestartPolicy().died(False, code, may_retry) == GiveUp(2)
    policy = RestartPolicy()
    policy.came_up()
    policy.died(True, -9, may_retry=True)
    assert [policy.died(False, code, may_retry) for _ in range(MAX_EARLY_DEATHS)][-1] == GiveUp(1)

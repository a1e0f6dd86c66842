"""What is there when a process has settled is not looked at by the garbage collector again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from ipc.collector import ONLY_WHEN_IDLE, SECONDS_BETWEEN, THRESHOLDS, IdleCollector, settle_collector


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_is_there_is_frozen_and_what_comes_is_not() -> None:
    stays = [[number] for number in range(1000)]
    settle_collector()
    assert gc.get_threshold() == THRESHOLDS
    assert gc.get_freeze_count() >= len(stays)
    ids = {id(each) for each in gc.get_objects()}
    assert not ids & {id(each) for each in stays}
    comes = [stays]
    assert id(comes) in {id(each) for each in gc.get_objects()}


class Cycle:
    def __init__(self) -> None:
        self.own = self


def test_who_collects_when_idle_does_so_then_and_not_too_often() -> None:
    settle_collector(ONLY_WHEN_IDLE)
    assert gc.get_threshold() == ONLY_WHEN_IDLE
    now = 0.0
    collector = IdleCollector(lambda: now)

    gc.disable()
    try:
        old = Cycle()
        ref = weakref.ref(old)
        gc.collect(1)  # into the oldest generation
        del old
        collector.tell_idle()
        assert ref() is not None
        now += SECONDS_BETWEEN
        collector.tell_idle()
        assert ref() is None
        old = Cycle()
        ref = weakref.ref(old)
        gc.collect(1)
        del old
        now += SECONDS_BETWEEN / 2
        collector.tell_idle()
        assert ref() is not None
    finally:
        gc.enable()

"""What is there when a process has settled is not looked at by the garbage collector again."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from ipc.collector import THRESHOLDS, settle_collector


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

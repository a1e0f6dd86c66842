"""Looks are left out more and more while they find nothing, and at once taken up again when one does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipc.busy_poll import MOST_LEFT_OUT, BusyPoll


def left_out(poll: BusyPoll) -> int:
    count = 0
    while not poll.wants_look():
        count += 1
    return count


def test_each_look_in_vain_doubles_what_is_left_out() -> None:
    poll = BusyPoll()
    counts = []
    for _ in range(9):
        counts.append(left_out(poll))
        poll.tell(False)
    assert counts == [0, 1, 2, 4, 8, 16, 32, 64, 64]


@given(st.lists(st.booleans()))
def test_one_that_finds_something_is_followed_by_another(looks: list[bool]) -> None:
    poll = BusyPoll()
    for has_found in looks:
        assert left_out(poll) <= MOST_LEFT_OUT
        poll.tell(has_found)
    left_out(poll)
    poll.tell(True)
    assert poll.wants_look()
    poll.tell(False)
    assert left_out(poll) == 1

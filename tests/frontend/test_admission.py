"""Who is let in, and when: the rules A1 to A4 of `frontend.admission`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.admission import FIRST_BYTES, FIRST_RATIO, MOST_UNDECIDED, Admission, Ticket
from ipc.errors import ServiceFailed
from ipc.messages import ErrorCode

CAPACITY = 1000  # tokens
FULL = int(CAPACITY / FIRST_RATIO) + 3  # bytes of text


def admission(max_body_bytes: int = 10_000) -> Admission:
    made = Admission(max_body_bytes)
    made.capacity_tokens = CAPACITY
    return made


def full() -> Admission:
    """One whose work room is taken."""
    made = admission()
    made.try_admit(0).add_missing(FULL)
    return made


def test_who_finds_everything_in_the_store_is_let_in_however_much_there_is_to_encode() -> None:
    made = full()
    for _ in range(10 * MOST_UNDECIDED):
        made.try_admit(10).add_missing(0)
    assert made.refused == 0


def test_who_lacks_something_is_refused_while_there_is_no_room_with_the_time_to_come_back() -> None:
    made = full()
    ticket = made.try_admit(10)
    with pytest.raises(ServiceFailed) as failure:
        ticket.add_missing(1)
    assert failure.value.code is ErrorCode.OVERLOADED
    assert failure.value.retry_after_ms >= 100
    assert made.refused == 1


def test_a_request_that_is_alone_is_let_in_whatever_it_lacks() -> None:
    made = admission()
    ticket = made.try_admit(10**9)
    ticket.set_body_bytes(10**9)
    ticket.add_missing(100 * FULL)


def test_a_request_that_is_alone_is_let_in_though_the_engine_grants_nothing() -> None:
    made = admission()
    made.capacity_tokens = 0
    made.try_admit(10).add_missing(1)


def test_who_was_let_in_with_a_part_of_its_texts_goes_on_with_the_others() -> None:
    made = admission()
    made.try_admit(0).add_missing(0)
    ticket = made.try_admit(0)
    ticket.add_missing(FULL)
    ticket.add_missing(FULL)
    assert made.refused == 0


def test_while_there_is_no_room_few_may_ask_and_a_flood_is_refused_before_its_bodies_are_read() -> None:
    made = full()
    asking = [made.try_admit(10) for _ in range(MOST_UNDECIDED)]
    with pytest.raises(ServiceFailed):
        made.try_admit(10)
    asking[0].add_missing(0)
    asking[1].release()
    made.try_admit(10)
    made.try_admit(10)
    with pytest.raises(ServiceFailed):
        made.try_admit(10)


def test_bodies_are_bounded_however_cheap_they_are() -> None:
    made = admission(max_body_bytes=100)  # less than FIRST_BYTES: all of a body is set aside
    made.try_admit(60)
    with pytest.raises(ServiceFailed):
        made.try_admit(41)
    made.try_admit(40)


def test_who_announces_much_and_sends_nothing_keeps_nobody_out() -> None:
    made = admission(max_body_bytes=4 * FIRST_BYTES)
    silent = made.try_admit(4 * FIRST_BYTES)
    with pytest.raises(ServiceFailed):
        made.try_admit(4 * FIRST_BYTES)  # would not fit
    ticket = made.try_admit(2 * FIRST_BYTES)
    ticket.set_body_bytes(2 * FIRST_BYTES)
    silent.set_body_bytes(2 * FIRST_BYTES)
    with pytest.raises(ServiceFailed):
        silent.set_body_bytes(3 * FIRST_BYTES)
    ticket.release()
    silent.set_body_bytes(4 * FIRST_BYTES)
    silent.release()
    assert made._bytes == 0


def test_the_estimate_learns_what_missing_texts_cost() -> None:
    made = admission()
    for _ in range(200):
        ticket = made.try_admit(10)
        ticket.add_missing(1000)
        made.learn(ticket, 100, 0.1)
        ticket.release()
    made.try_admit(0).add_missing(9000)  # 900 tokens by now, 3000 at first
    made.try_admit(0).add_missing(1)


Step = tuple[int, int, int]  # what is done, to which request, with how many bytes


@given(steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 2 * FULL)), max_size=60))
def test_whatever_happens_nothing_is_left_when_all_have_gone(steps: list[Step]) -> None:
    made = admission(5000)
    tickets: list[Ticket] = []
    for what, which, size in steps:
        ticket = tickets[which % len(tickets)] if tickets else None
        try:
            if what == 0 or ticket is None:
                tickets.append(made.try_admit(size))
            elif what == 1:
                ticket.add_missing(size)
            elif what == 2:
                ticket.set_body_bytes(size)
            else:
                ticket.release()
        except ServiceFailed as failure:
            assert failure.code is ErrorCode.OVERLOADED
            assert made.outstanding > 0
    for ticket in tickets:
        ticket.release()
    assert (made.outstanding, made._undecided, made._tokens, made._bytes) == (0, 0, 0, 0)

"""The set of recent keys forgets what was longest not used, and never grows past its limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from frontend.recent_keys import RecentKeys

keys = st.integers(0, 20).map(lambda number: number.to_bytes(16, "little"))


@given(st.lists(st.lists(keys, max_size=5), max_size=20), st.integers(1, 8))
def test_it_holds_the_last_ones(added: list[list[bytes]], limit: int) -> None:
    recent = RecentKeys(limit)
    order: list[bytes] = []
    for some in added:
        recent.add(some)
        for key in some:
            order = [other for other in order if other != key] + [key]
        assert len(recent) <= limit
    kept = set(order[-limit:])
    assert all((key in recent) == (key in kept) for key in order)


def test_cleared_it_holds_nothing() -> None:
    recent = RecentKeys(2)
    recent.add([b"a"])
    recent.clear()
    assert b"a" not in recent and len(recent) == 0

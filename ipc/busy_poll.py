"""Whether a service looks for its next message for a moment before it sleeps. Pure: no clock, no socket.

A process that has just slept runs at half its speed for its next request: cold caches, and three threads to wake.
Whoever asks again at once is served almost twice as fast by a service that has not gone to sleep (docs/decisions/0004).
But a look that finds nothing is wasted, so after each of them the next ones are left out: 1, 2, 4, ... up to
MOST_LEFT_OUT.
"""

from __future__ import annotations

MOST_LEFT_OUT = 64


class BusyPoll:
    """Looks pay while they find something."""

    def __init__(self) -> None:
        self._leave_out = 0
        self._penalty = 1

    def wants_look(self) -> bool:
        """Asked once after each answer."""
        if self._leave_out:
            self._leave_out -= 1
            return False
        return True

    def tell(self, has_found: bool) -> None:
        """How the last look ended."""
        if has_found:
            self._penalty = 1
        else:
            self._leave_out = self._penalty
            self._penalty = min(2 * self._penalty, MOST_LEFT_OUT)

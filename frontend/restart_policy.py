"""Whether and when a child that has died is started again. Pure: no clock, no process.

    R1  After a death that came after the child was up, the next start is at once.
    R2  After the k-th death in a row before it was up, it waits FIRST_BACKOFF * 2**k seconds: 1.6 s at most.
    R3  MAX_EARLY_DEATHS of them in a row end the launch with exit code 1.
    R4  Wrong settings end it with exit code 2, if the child was never up; later they are a death like another, since
        the files they are about may be on their way.

So MAX_EARLY_DEATHS deaths without a child that was up between them end the launch, and a child that does not die again
is up one start later, whatever came before. tests/frontend/test_restart_policy.py shows both for a whole launch.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipc.child import EXIT_USAGE

MAX_EARLY_DEATHS = 5
FIRST_BACKOFF = 0.1  # seconds
EXIT_FAILED = 1


@dataclass(frozen=True, slots=True)
class StartAgain:
    """Once so many seconds have passed."""

    delay: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The launch ends with this exit code."""

    exit_code: int


class RestartPolicy:
    """The deaths of one child."""

    def __init__(self) -> None:
        self.early_deaths = 0  # in a row
        self._was_ever_up = False

    def came_up(self) -> None:
        """The child serves."""
        self._was_ever_up = True
        self.early_deaths = 0

    def died(self, was_up: bool, code: int, may_retry: bool) -> StartAgain | GiveUp:
        """The child has been reaped.

        Args:
            was_up: this start of it served before it died.
            code: its exit code.
            may_retry: False if it has said that it would fail again the same way.
        """
        if was_up:
            return StartAgain(0.0)
        self.early_deaths += 1
        if not self._was_ever_up and (code == EXIT_USAGE or not may_retry):
            return GiveUp(EXIT_USAGE)
        if self.early_deaths == MAX_EARLY_DEATHS:
            return GiveUp(EXIT_FAILED)
        return StartAgain(FIRST_BACKOFF * 2**self.early_deaths)

"""A real child as small as can be: `-m tests.frontend.small_child`. It imports nothing that takes long."""

from __future__ import annotations

import os
import select
from pathlib import Path

import msgspec

from frontend.supervisor import Launch
from ipc.child import Alive, Child, Promotion, Up

MODULE = "tests.frontend.small_child"
STANDS_BY = "SMALL_CHILD_STANDS_BY"  # in the environment: it waits for a promotion first, as `scorer_worker.spare`
BEAT = 0.02  # seconds


class Settings(msgspec.Struct, frozen=True):
    """How long the launcher is to bear this child's silence."""

    patience: float


def launch_of(patience: float) -> Launch:
    return Launch(MODULE, Settings(patience), environment())


def environment(stands_by: bool = False) -> dict[str, str]:
    """The tests are found from here, wherever they were started from."""
    return {"PYTHONPATH": str(Path(__file__).parents[2])} | ({STANDS_BY: "yes"} if stands_by else {})


def is_gone(pid: int) -> bool:
    """Whether it has been reaped: of one that is only dead the system still knows."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def is_dead(pid: int) -> bool:
    """Whether it has ended; it may not have been reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def main() -> None:
    child = Child("small-child")
    if STANDS_BY in os.environ:
        child.report(Up())
        child.read_settings(Promotion)
        child.report(Up())
    settings = child.read_settings(Settings)
    child.report(Alive(settings.patience))  # first: it may be stopped as soon as it is up
    child.report(Up())
    while not select.select([child.lifeline], [], [], BEAT)[0]:
        child.report(Alive(settings.patience))


if __name__ == "__main__":
    main()

"""A child process and its launcher: settings in, status out, and a lifeline that ends the child.

The child's stdin carries one JSON line with its settings (secrets stay out of `ps`) and then nothing until the end: it
is the lifeline. STOP on it, or EOF, means that the launcher wants this child to stop; EOF without STOP, that it has
gone. A child that has not ended LAST_SECONDS after EOF is ended by a thread of its own: it is still loading, or it
hangs, and nobody else may be left to kill it. The child's stdout carries one JSON line per status. Logs go to stderr.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import threading
import time
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")

STOP = b"\n"  # the launcher's last byte on the lifeline of a child that it wants to stop
LAST_SECONDS = 15.0  # after EOF; more than a launcher that stops gives its services
LEAST_PATIENCE = 10.0  # seconds
EXIT_USAGE = 2  # what the user gave is wrong; starting again would not help


class Progress(msgspec.Struct, frozen=True, tag=True):
    """What the child does while it starts, for people."""

    text: str


class Up(msgspec.Struct, frozen=True, tag=True):
    """The child serves."""

    summary: dict[str, str] = {}


class Promotion(msgspec.Struct, frozen=True):
    """To a process that stands by: the first line on its stdin, before the settings of what it becomes."""

    module: str  # "scorer_worker" or "engine"
    environment: dict[str, str] = {}


class Broken(msgspec.Struct, frozen=True, tag=True):
    """The child cannot serve. With `retry` false its settings are wrong and a restart would fail the same way."""

    message: str
    retry: bool = True


class Alive(msgspec.Struct, frozen=True, tag=True):
    """Written by the working loop itself, never by a thread of its own: silence means that the loop hangs.

    A batch longer than `patience` seconds is a hang.
    """

    patience: float


Status = Progress | Up | Broken | Alive


class Child:
    """The child's side of its connection to the launcher.

    Args:
        name: for `ps` and `top`, at most 15 letters.
    """

    def __init__(self, name: str) -> None:
        self.is_abandoned = False  # the lifeline has ended without a word: the launcher was killed
        self.rename(name)
        self.lifeline = os.dup(0)
        self._status = os.dup(1)
        os.dup2(2, 1)  # a library that prints to stdout must not damage the status lines
        os.set_blocking(self._status, False)
        self._encoder = msgspec.json.Encoder()
        threading.Thread(target=self._end_at_last, name="lifeline", daemon=True).start()

    def rename(self, name: str) -> None:
        """Be seen under this name; what the process was started as says nothing of one that has stood by."""
        with contextlib.suppress(OSError):  # it is only for people
            Path("/proc/self/comm").write_text(name)

    def read_settings(self, kind: type[T]) -> T:
        """The settings of this child, from the first line of stdin.

        Raises:
            msgspec.ValidationError: the launcher speaks another version.
        """
        line = bytearray()
        while not line.endswith(b"\n"):
            part = os.read(self.lifeline, 65_536)
            if not part:
                raise SystemExit("no settings on stdin: this process is started by `maxsimd serve`")
            line += part
        return msgspec.json.decode(bytes(line), type=kind)

    def report(self, status: Status) -> None:
        """Tell the launcher. A launcher that does not read, or has gone, costs the line and nothing else."""
        try:
            os.write(self._status, self._encoder.encode(status) + b"\n")
        except (BlockingIOError, BrokenPipeError):
            return

    def is_to_stop(self) -> bool:
        """Whether the lifeline says so, without waiting. Not to be asked again after a yes."""
        readable, _, _ = select.select([self.lifeline], [], [], 0)
        if not readable:
            return False
        self.is_abandoned = os.read(self.lifeline, 1) != STOP
        return True

    def _end_at_last(self) -> None:
        """EOF shows without being read. The traceback says where it hangs. Python's lock is needed to come here: who
        hangs with it, in C code that never lets it go, stays.
        """
        lifeline = select.poll()
        lifeline.register(self.lifeline, 0)
        lifeline.poll()
        faulthandler.dump_traceback_later(LAST_SECONDS, exit=True)


class Pulse:
    """The working loop's sign of life: at most one status line a second, written by the loop itself.

    Args:
        longest_batch: seconds, measured at start; a batch of 20 times that, and of 10 s at least, counts as a hang.
    """

    def __init__(self, child: Child, longest_batch: float = 0.0) -> None:
        self.patience = max(LEAST_PATIENCE, 20 * longest_batch)
        self._child = child
        self._next_beat = 0.0

    def beat(self, busy_seconds: float = 0.0) -> None:
        """Call once a turn.

        Args:
            busy_seconds: how long a batch in another thread has been running.

        Raises:
            SystemExit: that thread hangs; the launcher starts this process again.
        """
        if busy_seconds > self.patience:
            raise SystemExit(
                f"a batch has been running for {busy_seconds:.0f} s, {self.patience:.0f} s count as a hang"
            )
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + 1.0
            self._child.report(Alive(self.patience))


def ignore_stop_signals() -> None:
    """Ctrl-C and container stops signal the whole process group; children stop when the launcher says so (P8)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

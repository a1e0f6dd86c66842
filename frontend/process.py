"""Starting a process of this project by command line, with pipes for its settings and its status (`ipc.child`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def start_process(
    module: str, environment: Mapping[str, str], descriptors: Sequence[int] = ()
) -> asyncio.subprocess.Process:
    """`python -P -m module`: a user's own folder of that name must not shadow ours.

    Args:
        environment: on top of our own.
        descriptors: that it inherits.

    Raises:
        OSError: the system has no room for it.
    """
    with _stop_signals_blocked():
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
            pass_fds=descriptors,
        )


_blockers = 0  # starts on their way at this moment: the mask is the process's, as this count is


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """A child inherits the mask, so that signals to the whole process group do not end it with a traceback before it
    ignores them by itself (`ipc.child.ignore_stop_signals`). We get ours a moment later.
    """
    global _blockers
    _blockers += 1
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        _blockers -= 1
        if not _blockers:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL.

    Not `process.kill()`: that reaps a child that has just died, and asyncio then never learns its exit code.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """An exit code, in words."""
    return f"killed by signal {-code}" if code < 0 else f"exited with {code}"

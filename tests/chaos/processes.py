"""What the tests of this folder do to processes, and what they look at afterwards."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.end_to_end.running_server import Server, wait_until

HANG_LIMIT = 60.0  # seconds until a hanging process has been found and ended
END_LIMIT = 30.0  # seconds until processes that should end have ended

WORKER, ENGINE, API_SERVER = "scorer_worker", "engine", "frontend.api_server"
ENGINE_PROCESS = ("--engine-placement", "process")
HOSTED_ENCODER = ("--engine-placement", "worker")  # the scorer worker encodes too, as on CUDA by itself
NAMES = {WORKER: "worker", ENGINE: "engine", API_SERVER: "api server"}


def restarts(server: Server, module: str) -> int:
    """How often a child of this kind has come up again."""
    return sum(f": {NAMES[module]}" in line and line.endswith(": up again") for line in server.lines)


def kill(server: Server, module: str) -> None:
    """SIGKILL the newest process of this kind, and wait until another one serves in its place."""
    before = restarts(server, module)
    os.kill(server.children(module)[-1], signal.SIGKILL)
    wait_restart(server, module, before)


def who_was_silent(server: Server, since: int) -> list[str]:
    """Which children have been ended because they hung, by their names for people.

    Args:
        since: how many lines the log had when it was clean of what others did to this server.
    """
    lines = [line for line in server.lines[since:] if line.endswith("; starting it again")]
    halves = [line.removeprefix("maxsimd: ").partition(": its working loop has been silent for ") for line in lines]
    return [name for name, silence, _ in halves if silence]


def wait_restart(server: Server, module: str, before: int) -> None:
    """Until a child of this kind is up once more than `before`, and its clients know."""
    wait_until(lambda: restarts(server, module) > before)
    wait_until(server.is_ready)


def hang(server: Server, module: str) -> int:
    """SIGSTOP the newest process of this kind: alive for the system, silent for everybody.

    Returns:
        Its pid.
    """
    victim = server.children(module)[-1]
    os.kill(victim, signal.SIGSTOP)
    return victim


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_directories(parent: Path) -> list[str]:
    """Directories of launches, with what is in them: `parent` is their TMPDIR."""
    return sorted(str(path.relative_to(parent)) for path in parent.rglob("*"))

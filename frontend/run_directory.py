"""The directory of one launch: sockets, files of running requests, metrics. And what killed launches have left of it.

A launch holds a lock on a file in its directory for as long as its launcher lives; the kernel lets go of it however
that ends. So a directory whose lock is free belongs to nobody, and the next launch removes it. Usually none is left: a
launcher removes its own, and where it was killed, the worker does. Only where all were killed at once nobody can.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ipc.sockets import RUN_DIRECTORY_PREFIX, make_run_directory, remove_run_directory

LOCK = "launcher.lock"


class RunDirectory:
    """A fresh directory of mode 0700; those of dead launches of this user are removed first."""

    def __init__(self) -> None:
        for leftover in dead_run_directories():
            remove_run_directory(leftover)
        self.path = make_run_directory()
        new = self.path / f"{LOCK}.new"
        self._lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(self.path / LOCK)  # locked before it can be found: nobody takes a new launch for a dead one

    def remove(self) -> None:
        """The launch has ended."""
        remove_run_directory(self.path)
        os.close(self._lock)


def dead_run_directories() -> Iterator[Path]:
    """Directories of this user's launches whose launchers have gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{RUN_DIRECTORY_PREFIX}*"):
        if _is_ours(path) and _is_unlocked(path / LOCK):
            yield path


def _is_ours(path: Path) -> bool:
    try:
        about = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()


def _is_unlocked(lock: Path) -> bool:
    """False also where there is no lock: a launch that is just being made, or something that is no launch."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return False
    finally:
        os.close(descriptor)
    return True

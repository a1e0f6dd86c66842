"""What a launch that was killed has left is removed by the next one, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from frontend.run_directory import LOCK, RunDirectory, dead_run_directories

KILLED = "import os, signal; from frontend.run_directory import RunDirectory; RunDirectory(); os.kill(os.getpid(), 9)"


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def kill_a_launch(directory: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(directory)}
    subprocess.run([sys.executable, "-P", "-c", KILLED], env=environment, check=False, timeout=60)


def test_directory_of_a_killed_launch_is_removed_by_the_next_one(tmp_path: Path) -> None:
    kill_a_launch(tmp_path)
    (left,) = tmp_path.iterdir()
    assert list(dead_run_directories()) == [left]
    fresh = RunDirectory()
    assert list(tmp_path.iterdir()) == [fresh.path]
    fresh.remove()
    assert list(tmp_path.iterdir()) == []


def test_directory_of_a_launch_that_lives_is_left_alone() -> None:
    first, second = RunDirectory(), RunDirectory()
    assert list(dead_run_directories()) == []
    assert first.path.is_dir() and second.path.is_dir()
    assert first.path.stat().st_mode & 0o777 == 0o700
    for each in (first, second):
        each.remove()


def test_what_only_looks_like_a_launch_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    (tmp_path / "maxsimd-link").symlink_to(elsewhere)
    (tmp_path / "maxsimd-file").touch()
    (tmp_path / "maxsimd-new").mkdir()
    (tmp_path / "maxsimd-linked-lock").mkdir()
    (tmp_path / "maxsimd-linked-lock" / LOCK).symlink_to(elsewhere / LOCK)
    assert list(dead_run_directories()) == []

"""The file of running requests: what a dead service leaves to its successor."""

from __future__ import annotations

import shutil
from pathlib import Path

from ipc.messages import IDENTITY_BYTES
from ipc.running import MAX_DEATHS, MAX_RUNNING, RunningFile

REQUEST = (b"i" * IDENTITY_BYTES, 7)
OTHER = (b"j" * IDENTITY_BYTES, 8)


def test_what_ran_when_the_process_died_is_suspect(tmp_path: Path) -> None:
    first = RunningFile(tmp_path / "running")
    first.write([REQUEST])
    second = RunningFile(tmp_path / "running")  # `first` never cleared: it was killed
    assert second.deaths(REQUEST) == 1
    assert second.deaths(OTHER) == 0
    second.write([REQUEST, OTHER])
    third = RunningFile(tmp_path / "running")
    assert third.deaths(REQUEST) == MAX_DEATHS
    assert third.deaths(OTHER) == 1


def test_what_is_read_while_a_batch_runs_is_suspect_with_it(tmp_path: Path) -> None:
    first = RunningFile(tmp_path / "running")
    first.write([REQUEST])
    with first.also(OTHER):
        killed_in_it = shutil.copy(tmp_path / "running", tmp_path / "then")
    while_reading, after = RunningFile(Path(killed_in_it)), RunningFile(tmp_path / "running")
    assert (while_reading.deaths(REQUEST), while_reading.deaths(OTHER)) == (1, 1)
    assert (after.deaths(REQUEST), after.deaths(OTHER)) == (1, 0)


def test_what_had_ended_is_not_suspect(tmp_path: Path) -> None:
    first = RunningFile(tmp_path / "running")
    first.write([REQUEST])
    first.clear()
    assert not RunningFile(tmp_path / "running").has_suspects


def test_forgiven_request_is_no_longer_suspect(tmp_path: Path) -> None:
    RunningFile(tmp_path / "running").write([REQUEST])
    second = RunningFile(tmp_path / "running")
    second.forgive(REQUEST)
    assert second.deaths(REQUEST) == 0


def test_more_requests_than_the_file_holds_are_cut(tmp_path: Path) -> None:
    RunningFile(tmp_path / "running").write([(b"i" * IDENTITY_BYTES, n) for n in range(MAX_RUNNING + 10)])
    second = RunningFile(tmp_path / "running")
    assert second.deaths((b"i" * IDENTITY_BYTES, MAX_RUNNING - 1)) == 1
    assert second.deaths((b"i" * IDENTITY_BYTES, MAX_RUNNING)) == 0


def test_file_of_another_size_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "running").write_bytes(b"garbage")
    assert not RunningFile(tmp_path / "running").has_suspects

"""What a child makes of its lifeline. Real processes: it is about pipes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ipc.child import STOP

HANGING_CHILD = """
import os, time
import ipc.child
ipc.child.LAST_SECONDS = 0.1
child = ipc.child.Child("test")
os.write(child._status, b"running\\n")
os.read(child.lifeline, 1)
time.sleep(3600)  # in native code
"""

CHILD = """
import os, select
from ipc.child import Child
child = Child("test")
assert child.read_settings(dict) == {"a": 1}
assert not child.is_to_stop() and not child.is_abandoned
os.write(child._status, b"running\\n")
select.select([child.lifeline], [], [])
assert child.is_to_stop()
os.write(child._status, b"abandoned" if child.is_abandoned else b"told")
"""


@pytest.mark.parametrize(("last_words", "seen"), [(STOP, b"told"), (b"", b"abandoned")])
def test_a_killed_launcher_is_told_from_one_that_stops(last_words: bytes, seen: bytes) -> None:
    """A launcher that is killed writes nothing more; its pipes close before its children get another parent."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b'{"a": 1}\n')
        process.stdin.flush()
        assert process.stdout.readline() == b"running\n"
        process.stdin.write(last_words)
        process.stdin.close()
        assert process.stdout.read() == seen


@pytest.mark.parametrize("last_words", [STOP, b""], ids=["told", "abandoned"])
def test_a_child_that_hangs_ends_when_its_launcher_has_gone(last_words: bytes) -> None:
    """And says where it hangs. Nobody is left who could kill it."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HANGING_CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        assert process.poll() is None
        _, log = process.communicate(last_words, timeout=30)
        assert process.returncode == 1
        assert b"line 8 in <module>" in log

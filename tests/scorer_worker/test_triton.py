"""The Triton kernel without a device: the cases of `interpreted_triton.py`, under Triton's interpreter.

In a process of their own: Triton decides when it is imported whether it compiles or interprets.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("interpreted_triton.py")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is built for Linux only")
def test_triton_kernel_under_its_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""The encoder's Triton kernels without a device: computed by Triton's interpreter, and compiled for a Hopper GPU.

In processes of their own: Triton decides when it is imported whether it compiles or interprets.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is built for Linux only"),
]


@pytest.mark.parametrize(
    ("cases", "interpret"),
    [pytest.param("interpreted_triton.py", "1", id="computed"), pytest.param("compiled_triton.py", "0", id="compiled")],
)
def test_the_encoders_kernels(cases: str, interpret: str) -> None:
    path = str(Path(__file__).with_name(cases))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", path],
        env={**os.environ, "TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

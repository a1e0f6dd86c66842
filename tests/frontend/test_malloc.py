"""Memory that is freed and needed again at once does not come anew from the kernel."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping

import pytest

from frontend.malloc import ENVIRONMENT, KEPT_BYTES

BODY = 2**21
COUNT_FAULTS = f"""
import resource
def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    blocks = [bytearray({BODY}) for _ in range({KEPT_BYTES // BODY - 3})]
use()
use()
before = count()
for _ in range(10):
    use()
print(count() - before)
"""


def faults(environment: Mapping[str, str]) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS]
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's")
def test_bodies_take_the_memory_of_those_before_them() -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    assert faults({**inherited, **ENVIRONMENT}) < 100 < faults(inherited)

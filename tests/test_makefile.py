"""The first minute: which Python `make` finds, which torch it takes, what it says when it cannot go on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

# Programs that stand for what is found under the names of Python on other people's machines.
SHIM_WITHOUT_VERSION = "#!/bin/sh\necho 'pyenv: python3.13: command not found' >&2\nexit 127\n"
TOO_OLD = "#!/bin/sh\necho 3.10\n"
WITHOUT_VENV = '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *) echo 3.11;; esac\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that comes first on PATH."""
    path = tmp_path / "bin"
    path.mkdir()
    return path


def put(folder: Path, name: str, program: str) -> None:
    (folder / name).write_text(program)
    (folder / name).chmod(0o755)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in the clone with `folder` first on PATH and an environment folder of its own."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "TORCH"))
    }
    environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", f"VENV={folder.parent / 'venv'}", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def make_environment(folder: Path, names: str) -> subprocess.CompletedProcess[str]:
    return make(folder, f"PYTHON_NAMES={names}", str(folder.parent / "venv" / "bin" / "pip"))


def test_the_first_python_that_really_works_is_taken(folder: Path) -> None:
    put(folder, "python3.13", SHIM_WITHOUT_VERSION)
    put(folder, "python3.12", TOO_OLD)
    put(folder, "python3.11", WITHOUT_VENV)
    (folder / "python3").symlink_to(sys.executable)
    result = make_environment(folder, "python3.14-not-there python3.13 python3.12 python3.11 python3")
    assert result.returncode == 0, result.stderr
    assert " with python3 (Python 3." in result.stdout
    assert result.stderr == ""
    assert (folder.parent / "venv" / "bin" / "pip").exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        pytest.param(SHIM_WITHOUT_VERSION, "needs Python 3.11, 3.12 or 3.13 (tried p: none runs)", id="does-not-run"),
        pytest.param(TOO_OLD, "needs Python 3.11, 3.12 or 3.13 (tried p: p is 3.10)", id="too-old"),
        pytest.param(WITHOUT_VENV, "p cannot make virtual environments: install its venv module", id="no-venv"),
    ],
)
def test_where_no_python_will_do_one_line_says_what_to_do(folder: Path, program: str, said: str) -> None:
    put(folder, "p", program)
    result = make_environment(folder, "p")
    assert result.returncode != 0
    ours, of_make = result.stderr.splitlines()
    assert ours.startswith(f"maxsimd: {said}")
    assert ours.endswith("or name another: make PYTHON=/path/to/python3")
    assert of_make.startswith("make: ***")


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [pytest.param(0, "now: cuda", id="device"), pytest.param(9, "now: cpu", id="nvidia-smi-without-a-driver")],
)
def test_torch_follows_nvidia_smi(folder: Path, exit_code: int, expected: str) -> None:
    put(folder, "nvidia-smi", f"#!/bin/sh\nexit {exit_code}\n")
    assert expected in make(folder, "help").stdout
    assert "now: cpu, TORCH says" in make(folder, "help", "TORCH=cpu").stdout


def test_an_unknown_torch_is_refused(folder: Path) -> None:
    result = make(folder, "help", "TORCH=rocm")
    assert result.returncode != 0
    assert "TORCH must be cpu or cuda, got 'rocm'" in result.stderr

"""The command `maxsimd` as a user meets it: exit codes, one line per mistake, a manual that holds every option."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from frontend import cli
from frontend.config import options
from frontend.version import VERSION

ROOT = Path(__file__).parent.parent.parent


def maxsimd(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "frontend.cli", *argv],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_version() -> None:
    result = maxsimd("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"maxsimd {VERSION}\n", "")


def test_the_manual_holds_every_option_with_its_variable_and_its_default() -> None:
    result = maxsimd("serve", "--help")
    assert result.returncode == 0
    manual = "".join(result.stdout.split())  # lines are wrapped, also at hyphens
    for named in options():
        assert named.flag in manual
        assert f"[default:{named.shown_default};{named.variable}]".replace(" ", "") in manual
        assert f"\n{named.option.group}:\n" in result.stdout


def test_the_manual_fits_the_terminal() -> None:
    assert max(len(line) for line in maxsimd("serve", "--help").stdout.splitlines()) <= 100


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        pytest.param(["serve", "--port", "70000"], "--port: must be a whole number from 0 to 65535", id="flag"),
        pytest.param(["serve", "--nonsense"], "unrecognized arguments: --nonsense", id="unknown-flag"),
        pytest.param([], "the following arguments are required: COMMAND", id="no-command"),
        pytest.param(["rerank"], "COMMAND: invalid choice: 'rerank'", id="unknown-command"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv: list[str], line: str) -> None:
    result = maxsimd(*argv)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"maxsimd: {line}")
    assert result.stderr.count("\n") == 1


def test_a_wrong_variable_is_one_line_and_exit_code_2() -> None:
    result = maxsimd("serve", MAXSIMD_DEVICE="tpu")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "maxsimd: MAXSIMD_DEVICE: must be one of auto, cpu, cuda, got 'tpu'\n"


def test_a_port_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = maxsimd("serve", "--port", str(port))
    assert result.returncode == 2
    assert result.stderr.startswith("maxsimd: ")
    assert str(port) in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_mistake_is_found_before_the_launcher_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "frontend.launcher", raising=False)
    assert cli.main(["serve", "--port", "x"]) == 2
    assert "frontend.launcher" not in sys.modules

"""A server and a worker in processes of their own, for benchmarks."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ipc.settings import WorkerSettings

START_LIMIT = 120.0
LOG_SHOWN = 2000  # bytes of what a server said that did not start
BECOME = {"maxsimd-worker": "scorer_worker", "maxsimd-engine": "engine"}  # the names of processes that stood by


class Server:
    """`maxsimd serve` on a free port, as a context manager."""

    def __init__(self, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - the server's for as long as it runs
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "frontend.cli", "serve", "--port", str(self.port), *arguments],
            stderr=self._log,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

    def __enter__(self) -> Server:
        end = time.monotonic() + START_LIMIT
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                self._log.seek(0)
                raise SystemExit(f"the server did not start\n{self._log.read()[-LOG_SHOWN:].decode(errors='replace')}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)
        self._log.close()

    @property
    def pid(self) -> int:
        """The launcher's."""
        return self._process.pid

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def children(self, module: str) -> list[int]:
        """Pids of the launcher's children that run this module."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
                modules = _modules(path)
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == self._process.pid and module in modules:
                found.append(int(path.name))
        return sorted(found)

    def _is_ready(self) -> bool:
        connection = self.connect()
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def _modules(process: Path) -> list[str]:
    """What a process runs: what it has become, else its command line."""
    become = BECOME.get((process / "comm").read_text().strip())
    return [become] if become else (process / "cmdline").read_text().split("\0")


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[Any, http.client.HTTPResponse]:
    """The decoded answer, and the response with its headers.

    Raises:
        RuntimeError: the answer is not a 200.
    """
    connection.request("POST", path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {content[:300]!r}")
    return content, response


def start_worker(settings: WorkerSettings) -> subprocess.Popen[bytes]:
    """The scorer worker alone, as the launcher starts it; returns when it serves. Closing its stdin ends it."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "scorer_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(msgspec.json.encode(settings) + b"\n")
    process.stdin.flush()
    for line in process.stdout:
        if json.loads(line)["type"] == "Up":
            return process
    raise SystemExit("the worker did not start")


def memory_of(pid: int, field: str) -> float:
    """MiB of VmRSS (now) or VmHWM (at most so far)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)

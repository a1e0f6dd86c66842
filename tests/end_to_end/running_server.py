"""A real server in processes of its own, and the truth its answers are held against."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

START_LIMIT = 90.0  # seconds until ready, on a busy machine
STOP_LIMIT = 30.0
BECOME = {"maxsimd-worker": "scorer_worker", "maxsimd-engine": "engine"}  # the names of processes that stood by

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def wait_until(condition: Callable[[], Any], limit: float = START_LIMIT) -> None:
    """Wait for a condition, with a limit; no test sleeps for a fixed time."""
    end = time.monotonic() + limit
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"still not so after {limit} s"
        pause.wait(0.02)


class Server:
    """`maxsimd serve` as a user starts it, on a free port of loopback; no process stands by, unless it is asked for."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None, wait: bool = True) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "frontend.cli", "serve", "--port", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "MAXSIMD_SPARE_PROCESS": "off", **(environment or {})},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if wait:
            wait_until(lambda: any("ready  " in line for line in self.lines) or self.process.poll() is not None)
            assert self.process.poll() is None, self.log

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def url(self) -> str:
        wait_until(lambda: re.search(r"https?://\S+?(?=;|\s|$)", self.log))
        match = re.search(r"https?://[\w.:]+", self.log)
        assert match is not None
        return match.group()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def children(self, module: str = "") -> list[int]:
        """Pids of the launcher's children, in the order of their start; `module` chooses."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((directory / "stat").read_text().rsplit(")", 1)[1].split()[1])
                modules = _modules(directory)
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == self.process.pid and module in [*modules, ""]:
                found.append(int(directory.name))
        return sorted(found)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(self.url + path, content=content, headers=headers, timeout=60)

    def scores(self, query: Any, documents: Sequence[Any], **more: Any) -> list[float]:
        """The scores of a rerank request, in the order of the documents."""
        answer = self.post("/rerank", {"query": query, "documents": documents, **more})
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        return [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]

    def metric(self, name: str) -> float:
        """A metric without labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert match is not None, f"no {name} in\n{text}"
        return float(match.group(1))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop as an init system does; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code, once the server has stopped."""
        code = self.process.wait(STOP_LIMIT)
        self._reader.join(STOP_LIMIT)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def end(self) -> None:
        """Leave nothing, whatever the test did."""
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.wait()


def _modules(process: Path) -> list[str]:
    """What a process runs: what it has become, else its command line."""
    become = BECOME.get((process / "comm").read_text().strip())
    return [become] if become else (process / "cmdline").read_text().split("\0")


def random_embeddings(rows: int, dim: int, seed: int) -> Floats:
    """[rows, dim] float32, L2-normalised."""
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    normalised: Floats = values / np.linalg.norm(values, axis=1, keepdims=True)
    return normalised


def as_input(embeddings: Floats, dtype: str = "float32") -> dict[str, Any]:
    """Embeddings as a request carries them."""
    data = base64.b64encode(np.ascontiguousarray(embeddings, dtype=dtype).tobytes()).decode()
    return {"embeddings": {"data": data, "dtype": dtype, "shape": list(embeddings.shape)}}


def maxsim(query: Floats, document: Floats) -> float:
    """The definition, in float64."""
    return float((query.astype(np.float64) @ document.astype(np.float64).T).max(axis=1).sum())

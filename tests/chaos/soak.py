"""A long run: mixed traffic, and what every process holds and how long requests take, looked at all the while.

A probe asks on a connection of its own beside the traffic: ten known documents, ten new ones, and /live, which only an
API server answers. The machine's own pace is looked at too, since others may use it: a loop of fixed work.
"""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from tests.chaos.sampling import Holdings, all_holdings
from tests.chaos.traffic import Traffic
from tests.chaos.truth import Truth
from tests.end_to_end.running_server import Server

PROBES = 20  # requests of each kind in one sample
KNOWN = [f"document {number} of the probe, which is asked for again and again" for number in range(10)]


@dataclass(frozen=True)
class Sample:
    """A server at one time."""

    seconds: float  # since the start of the traffic
    answers: int  # so far
    holdings: dict[str, Holdings]  # by process
    latency_ms: dict[str, float]  # medians
    spin_ms: float  # the machine's pace


class Probe:
    """One client's latency, kind by kind."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._numbers = count()

    def look(self) -> dict[str, float]:
        """Median milliseconds of each kind of request."""
        return {
            "live": self._median(lambda: self._ask("GET", "/live")),
            "known": self._median(lambda: self._rank(KNOWN)),
            "new": self._median(lambda: self._rank([f"{next(self._numbers)} {text}" for text in KNOWN])),
        }

    def close(self) -> None:
        self._connection.close()

    def _median(self, ask: Callable[[], None]) -> float:
        seconds = []
        for _ in range(PROBES):
            started = time.perf_counter()
            ask()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds) * 1e3

    def _rank(self, documents: list[str]) -> None:
        self._ask("POST", "/rerank", json.dumps({"query": "what is a probe?", "documents": documents}).encode())

    def _ask(self, method: str, path: str, body: bytes | None = None) -> None:
        self._connection.request(method, path, body)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content


def soak(
    server: Server, truth: Truth, seconds: float, interval: float, connections: int, pause: float
) -> tuple[list[Sample], Traffic]:
    """Traffic for so long, a sample every `interval` seconds.

    Returns:
        The samples, and the traffic after its end, with what it has found.
    """
    samples = []
    probe = Probe(server)
    with Traffic(server.url, truth, connections=connections, seed=30, pause=pause) as traffic:
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds:
            latency = probe.look()
            samples.append(Sample(elapsed, traffic.answers, all_holdings(server), latency, _spin()))
            traffic.wait_seconds(interval)
    probe.close()
    return samples, traffic


def as_json(sample: Sample) -> dict[str, Any]:
    """For a result file, in few characters."""
    return {
        "seconds": round(sample.seconds, 1),
        "answers": sample.answers,
        "spin_ms": round(sample.spin_ms, 2),
        "latency_ms": {kind: round(value, 2) for kind, value in sample.latency_ms.items()},
        "processes": {
            name: [round(each.resident_mib, 1), round(each.own_mib, 1), each.files, each.sockets, each.threads]
            for name, each in sample.holdings.items()
        },
    }


def _spin() -> float:
    """Milliseconds of a fixed piece of work, median of five."""

    def once() -> float:
        started = time.perf_counter()
        sum(range(200_000))
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(5)) * 1e3

"""Prometheus metrics of N API servers, added up right.

Values live in files named by slot, not by pid, in a directory of the launch: whichever API server answers /metrics
reads all of them, and a restarted one goes on counting in its predecessor's file.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess, values

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One API server's counters. Make one per process, before any request."""

    def __init__(self, slot: int) -> None:
        self.registry = CollectorRegistry()
        if DIRECTORY_VARIABLE in os.environ:
            values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
        self.requests = Counter(
            "maxsimd_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "maxsimd_request_seconds",
            "From the first byte to the answer",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "maxsimd_stage_seconds",
            "Time in each stage of a ranking: tokenize, encode, worker (Score round trips), queue, score",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.pairs = Counter("maxsimd_pairs", "Pairs scored", registry=self.registry)
        self.prompt_tokens = Counter("maxsimd_prompt_tokens", "Tokens of scored texts", registry=self.registry)
        self.encoded_tokens = Counter(
            "maxsimd_encoded_tokens",
            "Tokens that had to be encoded; the others were in the store",
            registry=self.registry,
        )

    def render(self, services: dict[str, dict[str, float]]) -> bytes:
        """The text of /metrics: this launch's API servers added up, then the services' own values as gauges."""
        if DIRECTORY_VARIABLE in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        else:
            registry = self.registry
        lines = [
            line
            for service, statistics in services.items()
            for name, value in sorted(statistics.items())
            for line in (f"# TYPE maxsimd_{service}_{name} gauge", f"maxsimd_{service}_{name} {value}")
        ]
        return generate_latest(registry) + "".join(f"{line}\n" for line in lines).encode()

"""A long run on the CPU: does anything grow, does anything become slower, is any answer wrong?

    python -m benchmarks.bench_soak

Two API servers, engine and worker, with the embedded model and a store that is full after a minute. The traffic is that
of tests/chaos: known and new texts, embeddings by value and embeddings out, wrong requests, cancels, disconnects and
deadlines, every answer held against the reference. Every few seconds each process's memory, open files, sockets and
threads, and the latency of a probe. Slopes are Theil and Sen's, after the warm-up.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.measuring import parser, write
from tests.chaos.sampling import slope
from tests.chaos.soak import Sample, as_json, soak
from tests.chaos.truth import compute_truth
from tests.end_to_end.reference_model import load_reference
from tests.end_to_end.running_server import Server

SERVE = ("--api-server-count", "2", "--embedding-cache-size", "32MiB")
WINDOW = 0.1  # of the samples after the warm-up: what "start" and "end" are medians of


def main() -> None:
    arguments = parser(__doc__ or "", "soak-cpu")
    arguments.add_argument("--minutes", type=float, default=30.0)
    arguments.add_argument("--warm-up", type=float, default=5.0, help="minutes that do not count (default 5)")
    arguments.add_argument("--interval", type=float, default=5.0, help="seconds between samples (default 5)")
    arguments.add_argument("--connections", type=int, default=8)
    arguments.add_argument("--pause", type=float, default=0.2, help="seconds between a connection's requests")
    options = arguments.parse_args()
    truth = compute_truth(load_reference())
    server = Server(*SERVE)
    try:
        samples, traffic = soak(
            server, truth, options.minutes * 60, options.interval, options.connections, options.pause
        )
        log = [line for line in server.lines if "WARNING" in line or "ERROR" in line or "again" in line]
    finally:
        server.end()
    warm = [sample for sample in samples if sample.seconds >= options.warm_up * 60]
    write(
        options.out,
        {
            "minutes": options.minutes,
            "nice": os.nice(0),
            "answers": traffic.answers,
            "given_up": traffic.given_up,
            "problems": traffic.problems,
            "resets": traffic.resets,
            "reset_errors": traffic.reset_errors,
            "log": log,
            "processes": {name: _growth(warm, name) for name in warm[0].holdings},
            "latency_ms": {kind: _ends([sample.latency_ms[kind] for sample in warm]) for kind in warm[0].latency_ms},
            "spin_ms": _ends([sample.spin_ms for sample in warm]),
            "samples": [as_json(sample) for sample in samples],
        },
    )


def _growth(samples: Sequence[Sample], name: str) -> dict[str, Any]:
    """Of each thing that a process holds: at the start, at the end, at most, and the slope an hour."""
    seconds = [sample.seconds for sample in samples]
    found: dict[str, Any] = {}
    for field in asdict(samples[0].holdings[name]):
        values = [float(getattr(sample.holdings[name], field)) for sample in samples]
        found[field] = {**_ends(values), "most": max(values), "an_hour": 3600 * slope(seconds, values)}
    return found


def _ends(values: Sequence[float]) -> dict[str, float]:
    """Medians of the first and of the last values."""
    size = max(1, int(len(values) * WINDOW))
    return {"start": statistics.median(values[:size]), "end": statistics.median(values[-size:])}


if __name__ == "__main__":
    main()

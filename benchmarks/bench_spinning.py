"""How long OpenMP's threads should spin while they wait for each other: scoring and layers, alone and beside others.

    python -m benchmarks.bench_spinning

Each setting of libgomp in a process of its own, in turns; beside: as many processes as cores do nothing but compute. Of
the times of one process the median counts. Decision 0009.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.measuring import parser, spread, write

SETTINGS = {
    "libgomp's own": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "1,000": {"GOMP_SPINCOUNT": "1000"},
    "10,000": {"GOMP_SPINCOUNT": "10000"},
}
WORK = """
import json, time
import torch
from engine.allocator import keep_freed_memory
from engine.linear import Linear
from scorer_worker.arena import Arena
from scorer_worker.scorer import PairGroup, Scorer
from scorer_worker.store import NewEntry

torch.set_grad_enabled(False)
keep_freed_memory()

def median_ms(work, times=21):
    work()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[times // 2] * 1e3

def scoring(documents, rows, dim=384):
    arena = Arena(2**30, dim, torch.float32, torch.device("cpu"))
    texts = [NewEntry(number.to_bytes(16, "little"), rows if number else 32, 0) for number in range(documents + 1)]
    entries = arena.directory.admit([], texts)
    for entry in entries:
        arena.write(entry, torch.nn.functional.normalize(torch.randn(entry.rows, dim), dim=-1))
    scorer = Scorer(arena)
    return median_ms(lambda: scorer.score([PairGroup(entries[0], entries[1:])]))

first, second = Linear(torch.randn(1536, 384), None, "gelu"), Linear(torch.randn(384, 1536), None)

def layers(tokens):
    rows = torch.randn(tokens, 384)
    return median_ms(lambda: [torch.nn.functional.layer_norm(second(first(rows)), (384,)) for _ in range(6)])

print(json.dumps({
    "10 documents of 180 rows": scoring(10, 180),
    "300 documents of 180 rows": scoring(300, 180),
    "6 layers of 128 tokens": layers(128),
    "6 layers of 1024 tokens": layers(1024),
}))
"""


def main() -> None:
    arguments = parser(__doc__ or "", "spinning-cpu")
    arguments.set_defaults(runs=5)
    options = arguments.parse_args()
    results: dict[str, Any] = {}
    for where, neighbours in (("alone", 0), ("beside", len(os.sched_getaffinity(0)))):
        found: dict[str, dict[str, list[float]]] = {name: {} for name in SETTINGS}
        with busy(neighbours):
            for run in range(options.runs):
                print(f"{where}, run {run + 1} of {options.runs}", file=sys.stderr, flush=True)
                for name, environment in SETTINGS.items():
                    for what, milliseconds in measure(environment).items():
                        found[name].setdefault(what, []).append(milliseconds)
        results[where] = {
            name: {what: spread(values) for what, values in times.items()} for name, times in found.items()
        }
    write(options.out, results)


def measure(environment: dict[str, str]) -> dict[str, float]:
    """Milliseconds by what was done, in a new process."""
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    output = subprocess.run(
        [sys.executable, "-P", "-c", WORK], env={**own, **environment}, capture_output=True, text=True, check=True
    ).stdout
    times: dict[str, float] = json.loads(output)
    return times


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that never sleep."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()

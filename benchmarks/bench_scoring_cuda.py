"""MaxSim on a CUDA device through the real store, after its content was replaced ten times.

    python -m benchmarks.bench_scoring_cuda

Two times of each call: the device's (events around its launches, which are queued behind a sleep, so that the host's
time is not in it), and the whole call's (from Python objects to scores on the host). Each call takes other documents
than the one before, until more than the device's cache has passed by. Floor: the unique bytes over the bandwidth of a
copy, or the FLOPs of real rows over the rate of an fp16 matmul, both measured in the same run; the larger.

Documents have 0.5 to 1.5 times the mean rows. Every workload is compared with float64 before it is timed.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from benchmarks.measuring import parser, percentile, spread, write
from scorer_worker.arena import Arena
from scorer_worker.kernels.triton_packed import TritonPacked
from scorer_worker.pairs import PairGroup
from scorer_worker.scorer import Scorer
from scorer_worker.store import Entry, NewEntry

GIB = 2**30
REPLACED = 10  # times that the store's whole content is
ROTATED_BYTES = 2**28  # of documents, before a call sees the same again: four times an H200's cache
SLEEP_CYCLES = 5_000_000  # about 2.5 ms: longer than the host takes to launch any of these calls
MOST_CALLS = 100
CHECKED_PAIRS = 300
DEVICE = torch.device("cuda", 0)

Lengths = list[tuple[int, list[int]]]  # rows of each query, and of each of its documents


@dataclass(frozen=True)
class Workload:
    """What one call scores."""

    text: str
    lengths: Callable[[random.Random], Lengths]
    dim: int = 128
    most_error: float = 5e-6


def documents(choose: random.Random, count: int, mean: int) -> list[int]:
    return [round(choose.uniform(0.5, 1.5) * mean) for _ in range(count)]


def one_query(count: int, mean: int, rows: int = 32) -> Callable[[random.Random], Lengths]:
    return lambda choose: [(rows, documents(choose, count, mean))]


def many_queries(choose: random.Random) -> Lengths:
    return [(choose.randint(8, 64), documents(choose, 100, 300)) for _ in range(64)]


def mixed(choose: random.Random) -> Lengths:
    """One query of 1024 rows among the others, and a document of 8192 rows among those of another query."""
    lengths = many_queries(choose)
    lengths[40][1].append(8192)
    return [*lengths[:20], (1024, documents(choose, 100, 300)), *lengths[20:]]


WORKLOADS = {
    "least": Workload("1 query x 1, 1 document x 1: what any call takes", lambda choose: [(1, [1])]),
    "W1": Workload("1 query x 32, 100 documents x 300", one_query(100, 300)),
    "W10": Workload("8 queries x 32, each its own 20 x 300", lambda c: [(32, documents(c, 20, 300)) for _ in range(8)]),
    "W2": Workload("1 x 32, 1000 x 300", one_query(1000, 300)),
    "W3": Workload("1 x 32, 10000 x 300", one_query(10000, 300)),
    "W4": Workload("64 queries x 8..64, each its own 100 x 300", many_queries),
    "W9": Workload("as W4, and a query of 1024 rows, a document of 8192", mixed, most_error=1e-4),
    "W6a": Workload("16 x 24, each 100 x 1030", lambda c: [(24, documents(c, 100, 1030)) for _ in range(16)]),
    "W6b": Workload("1 x 1024, 500 x 1024", one_query(500, 1024, 1024), most_error=1e-4),
    "W7": Workload("1 x 32, 64 x 8192", one_query(64, 8192)),
    "W8_64": Workload("as W2, dim 64", one_query(1000, 300), dim=64),
    "W8_96": Workload("as W2, dim 96", one_query(1000, 300), dim=96),
    "W8_384": Workload("as W2, dim 384", one_query(1000, 300), dim=384),
}


def main() -> None:
    arguments = parser(__doc__ or "", "scoring-cuda")
    arguments.add_argument("--store-gib", type=float, default=4, help="of dim 128; a quarter of it for others")
    options = arguments.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(options.seed)
    ceilings = measure_ceilings()
    stores: dict[int, Store] = {}
    results: dict[str, Any] = {}
    for name, workload in WORKLOADS.items():
        store = stores.get(workload.dim)
        if store is None:
            stores.clear()  # the one before goes
            gib = options.store_gib / (1 if workload.dim == 128 else 4)
            store = stores[workload.dim] = Store(workload.dim, int(gib * GIB), options.seed)
        results[name] = measure(workload, store, ceilings, options.runs)
        print(name, {key: results[name][key] for key in ("device_us", "times_floor", "call_us")}, flush=True)
    gpu = torch.cuda.get_device_properties(DEVICE)
    write(
        options.out, {"gpu": gpu.name, "multiprocessors": gpu.multi_processor_count, **ceilings, "workloads": results}
    )


class Store:
    """A store after a life: its content was replaced, in entries of any size."""

    def __init__(self, dim: int, cache_bytes: int, seed: int) -> None:
        started = time.perf_counter()
        self.choose = random.Random(seed)
        self.arena = Arena(cache_bytes, dim, torch.float16, DEVICE)
        self.noise = torch.nn.functional.normalize(torch.randn(2**20, dim, device=DEVICE), dim=1).half()
        for first in range(0, len(self.arena.rows), len(self.noise)):
            part = self.arena.rows[first : first + len(self.noise)]
            part.copy_(self.noise[: len(part)])
        self._count = 0
        rows = 0
        while rows < REPLACED * self.arena.directory.capacity_rows:
            rows += self.pass_by(64)
        self.scorer = Scorer(self.arena)
        self.kernel = TritonPacked(self.arena.rows)
        self.seconds = time.perf_counter() - started

    def admit(self, lengths: Sequence[int]) -> list[Entry]:
        """Room for entries of these lengths."""
        new = [NewEntry((self._count + index).to_bytes(16, "little"), rows, rows) for index, rows in enumerate(lengths)]
        self._count += len(new)
        entries = self.arena.directory.admit([], new)
        assert entries is not None
        return entries

    def pass_by(self, count: int) -> int:
        """Admit texts that nobody asks for again, with what lies there. How many rows they have."""
        entries = self.admit([self.choose.randrange(20, 512) for _ in range(count)])
        for entry in entries:
            self.arena.directory.fill(entry)
        self.arena.directory.unpin(entries)
        return sum(entry.rows for entry in entries)

    def place(self, lengths: Lengths) -> list[PairGroup]:
        """The texts of one call, admitted in any order among others, with embeddings of their own."""
        flat = [rows for query, others in lengths for rows in (query, *others)]
        entries: dict[int, Entry] = {}
        order = self.choose.sample(range(len(flat)), len(flat))
        for first in range(0, len(order), 50):
            some = order[first : first + 50]
            admitted = self.admit([flat[which] for which in some])
            embeddings = torch.randn(sum(entry.rows for entry in admitted), self.noise.shape[1], device=DEVICE)
            firsts = [0, *accumulate(entry.rows for entry in admitted)]
            self.arena.copy_batch(admitted, firsts[:-1], torch.nn.functional.normalize(embeddings, dim=1))
            for entry in admitted:
                self.arena.directory.fill(entry)
            entries.update(zip(some, admitted, strict=True))
            self.pass_by(20)
        groups: list[PairGroup] = []
        place = 0
        for _, others in lengths:
            own = [entries[place + 1 + index] for index in range(len(others))]
            groups.append(PairGroup(entries[place], own))
            place += 1 + len(others)
        return groups

    def release(self, groups: Sequence[PairGroup]) -> None:
        for group in groups:
            self.arena.directory.unpin([group.query, *group.documents])


def measure(workload: Workload, store: Store, ceilings: dict[str, float], runs: int) -> dict[str, Any]:
    lengths = [workload.lengths(store.choose)]
    document_rows = sum(map(sum, (others for _, others in lengths[0])))
    unique_bytes = 2 * workload.dim * (document_rows + sum(rows for rows, _ in lengths[0]))
    flops = 2 * workload.dim * sum(rows * sum(others) for rows, others in lengths[0])
    floor = max(unique_bytes / ceilings["copy_tb_s"] / 1e12, flops / ceilings["matmul_tflop_s"] / 1e12)
    lengths *= min(MOST_CALLS, max(3, -(-ROTATED_BYTES // unique_bytes)))
    calls = [store.place(own) for own in lengths]
    error = largest_error(store, calls[0])
    assert error <= workload.most_error, f"{workload.text}: off by {error}"
    device = [seconds for _ in range(runs) for seconds in device_seconds(store.kernel, calls)]
    call = [wall_seconds(store.scorer, groups) for _ in range(runs) for groups in calls]
    for groups in calls:
        store.release(groups)
    return {
        "workload": workload.text,
        "pairs": sum(len(group.documents) for group in calls[0]),
        "documents_mb": unique_bytes / 1e6,
        "largest_error": error,
        "floor_us": floor * 1e6,
        "device_us": statistics.median(device) * 1e6,
        "device_us_spread": spread(device, 1e6),
        "times_floor": statistics.median(device) / floor,
        "call_us": statistics.median(call) * 1e6,
        "call_us_p90": percentile(call, 0.9) * 1e6,
        "call_us_spread": spread(call, 1e6),
    }


def device_seconds(kernel: TritonPacked, calls: Sequence[Sequence[PairGroup]]) -> list[float]:
    """The device's time of each call."""
    seconds = []
    for groups in calls:
        start, end = event(), event()
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        num_pairs = kernel.start(groups)
        end.record()
        kernel.finish(num_pairs)
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return seconds


def event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def wall_seconds(scorer: Scorer, groups: Sequence[PairGroup]) -> float:
    started = time.perf_counter()
    scorer.score(groups)
    return time.perf_counter() - started


def largest_error(store: Store, groups: Sequence[PairGroup]) -> float:
    """Of some pairs, against float64."""
    scores = iter(store.scorer.score(groups))
    pairs = [(group.query, document, next(scores)) for group in groups for document in group.documents]

    def rows(entry: Entry) -> torch.Tensor:
        return store.arena.rows[entry.start : entry.start + entry.rows].double()

    some = store.choose.sample(pairs, min(CHECKED_PAIRS, len(pairs)))
    return max(abs(score - (rows(query) @ rows(document).T).amax(1).sum().item()) for query, document, score in some)


def measure_ceilings() -> dict[str, float]:
    """Bytes read and written by a copy, and multiplications and additions of an fp16 product of random values."""
    source = torch.randint(0, 256, (2 * GIB,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    left, right = torch.randn(2, 8192, 8192, device=DEVICE).half()
    return {
        "copy_tb_s": 2 * source.numel() / median_event_seconds(lambda: target.copy_(source)) / 1e12,
        "matmul_tflop_s": 2 * 8192**3 / median_event_seconds(lambda: left @ right) / 1e12,
    }


def median_event_seconds(work: Callable[[], object], runs: int = 15) -> float:
    seconds: list[float] = []
    for _ in range(runs):
        start, end = event(), event()
        start.record()
        work()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return float(statistics.median(seconds))


if __name__ == "__main__":
    main()

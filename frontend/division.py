"""How many cores there are, and who gets how many threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Division:
    """Threads of each process. A process that hosts nothing heavy gets one."""

    cores: int
    api_server: int  # tokenising threads of each API server
    engine: int
    worker: int

    def describe(self, api_server_count: int) -> str:
        """One line for people."""
        engine = f", engine {self.engine}" if self.engine else ""
        return (
            f"{self.cores} cores: {api_server_count} x {self.api_server} for API servers{engine}, worker {self.worker}"
        )


# How often OpenMP's threads look whether the others are done before they sleep: enough for the next operation of the
# same batch, which they wait for some microseconds. By itself libgomp lets them spin for milliseconds, on cores that
# somebody else needs: the engine, an API server, another container. Decision 0009.
SPINS = "10000"
TOKENISING_THREADS = 2  # of an API server, at most: more of them wait for Python's lock, and the event loop behind them
WORKER_THREADS_ON_CUDA = 2  # one decides and launches scoring, one launches encoding


def divide_cores(cores: int, api_server_count: int, has_engine: bool, uses_cuda: bool = False) -> Division:
    """The threads of each process.

    Where a CUDA device encodes and scores, the API servers share the cores but those that feed it. On a CPU they have a
    quarter, and what of it they cannot use the encoder has, or without one the scorer.

    Encoding and scoring follow each other in a request's life, so on small machines both get all cores; on larger ones
    they are kept apart, because two OpenMP teams on the same cores wait for each other.
    """
    if uses_cuda:
        rest = cores - WORKER_THREADS_ON_CUDA
        return Division(cores, _tokenising_threads(rest, api_server_count), 0, WORKER_THREADS_ON_CUDA)
    api_server = _tokenising_threads(cores // 4, api_server_count)
    unused = max(0, cores // 4 - api_server_count * (1 + api_server))  # one more is the event loop's
    if not has_engine:
        return Division(cores, api_server, 0, max(1, cores - cores // 4 + unused))
    if cores <= 4:
        return Division(cores, api_server, cores, cores)
    return Division(cores, api_server, cores // 2 + unused, cores - cores // 2 - cores // 4)


def _tokenising_threads(cores: int, api_server_count: int) -> int:
    """Of each API server, where they share so many cores."""
    return min(TOKENISING_THREADS, max(1, cores // api_server_count))


def count_cores() -> int:
    """The cores this process may use: its affinity, and the CPU quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, round(int(quota) / int(period))))


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that hold a process to so many threads. A user's own settings of their spinning win."""
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        limits["GOMP_SPINCOUNT"] = SPINS
    return limits

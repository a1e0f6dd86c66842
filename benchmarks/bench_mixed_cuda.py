"""Mixed traffic on one CUDA device for some minutes: whether memory stays flat, and what a small cached Score waits.

    python -m benchmarks.bench_mixed_cuda --minutes 10

A model of jina-colbert-v2's shape with random weights, four API servers. Some clients keep the encoder busy over HTTP:
for a fifth of the time with new documents only, then each with one load after the other, of many kinds. Before and
meanwhile a client on the worker's socket asks 50 times a second for a Score of a query and ten documents that the
store has, as an API server would, and between two of these a process that does nothing but answer: what that takes, the
machine takes for whoever answers. Memory is the device's, of all processes, as nvidia-smi has it, and what torch's
allocator has reserved.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.bench_serving import ask
from benchmarks.bench_serving_cuda import USED_MEMORY, bench, gpu_name
from benchmarks.echo import Echo, EchoClient
from benchmarks.jina_shape import make_checkpoint
from benchmarks.measuring import parser, percentile, write
from benchmarks.running import Server
from ipc.client import ServiceClient
from ipc.errors import ServiceFailed

ENCODING = "100 new documents of 256 tokens"
Watch = Callable[[float], Coroutine[Any, Any, dict[str, Any]]]
Load = tuple[list[str], int, int]  # options of `maxsimd bench`, requests, at a time
LOADS: dict[str, Load] = {
    ENCODING: (["--documents", "100", "--document-len", "256"], 200, 16),
    "half of 200 documents cached": (["--documents", "200", "--document-len", "180", "--repeated", "0.5"], 100, 16),
    "one new document of 2000 tokens": (["--documents", "1", "--document-len", "2000"], 1000, 64),
    "10 new documents of 30 tokens": (["--documents", "10", "--document-len", "30"], 2000, 64),
    "1000 cached documents": (["--documents", "1000", "--repeated", "1"], 1000, 8),
    "long and short": (["--documents", "3", "--document-len", "900", "--query-len", "300"], 600, 64),
}
ENCODING_SHARE = 0.2  # of the time
CLIENTS = 3  # at a time, of a process each, since each makes up its requests before it asks them
IDLE_SECONDS = 10.0
PROBE_INTERVAL = 0.01  # seconds
SAMPLE_INTERVAL = 2  # seconds, whole ones


class Background:
    """The loads in turn, in a thread, until it is told to stop.

    Args:
        index: which of the clients it is.
        loads: those it asks.
        seeds: every run of a load takes one, so that no new document was asked about before.
    """

    def __init__(
        self, server: Server, tokenizer: str, index: int, loads: Mapping[str, Load], seeds: Iterator[int]
    ) -> None:
        self.done: list[dict[str, Any]] = []
        self._server = server
        self._tokenizer = tokenizer
        self._index = index
        self._loads = loads
        self._seeds = seeds
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping.set()
        self._thread.join()

    def _run(self) -> None:
        names = list(self._loads)
        for number in itertools.count():
            if self._is_stopping.is_set():
                return
            name = names[(self._index * len(names) // CLIENTS + number) % len(names)]
            options, requests, at_a_time = self._loads[name]
            seed = ["--seed", str(next(self._seeds))]
            load = ["--dataset-name", "synthetic", "--tokenizer", self._tokenizer, *options, *seed]
            result = bench(self._server, load, requests, at_a_time, processes=1, may_refuse=True)
            kept = ("completed", "failed", "request_throughput", "document_throughput", "token_throughput")
            self.done.append(
                {"load": name, **{key: result[key] for key in kept}, "p99_ms": result["latency"]["p99_ms"]}
            )


def main() -> None:
    arguments = parser(__doc__ or "", "mixed-cuda")
    arguments.add_argument("--minutes", type=float, default=10)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TMPDIR"] = directory  # the worker's socket will be in it
        model = Path(directory) / "model"
        make_checkpoint(model)
        serve = [str(model), "--load-format", "dummy", "--device", "cuda", "--api-server-count", "4"]
        with Server(*serve, "--embedding-cache-size", "8GiB") as server, Echo() as echo:
            watched = functools.partial(
                watch, f"ipc://{next(Path(directory).glob('maxsimd-*/worker.sock'))}", echo.address
            )
            idle = uvloop.run(watched(IDLE_SECONDS))
            ask_beside = functools.partial(beside, server, str(model), watched, itertools.count())
            encoding = ask_beside({ENCODING: LOADS[ENCODING]}, options.minutes * 60 * ENCODING_SHARE)
            mixed = ask_beside(LOADS, options.minutes * 60 * (1 - ENCODING_SHARE))
    results = {"beside_nothing": idle, "beside_encoding": encoding, "beside_mixed_traffic": mixed}
    write(options.out, {"gpu": gpu_name(), "minutes": options.minutes, **results})


def beside(
    server: Server, tokenizer: str, watched: Watch, seeds: Iterator[int], loads: Mapping[str, Load], seconds: float
) -> dict[str, Any]:
    """Probes and samples while clients ask these loads."""
    clients = [Background(server, tokenizer, index, loads, seeds) for index in range(CLIENTS)]
    try:
        measured = uvloop.run(watched(seconds))
    finally:
        for client in clients:
            client.stop()
    done = [load for client in clients for load in client.done]
    return {**measured, "failed": sum(load["failed"] for load in done), "loads": done}


async def watch(address: str, echo_address: str, seconds: float) -> dict[str, Any]:
    """Probes and samples for so long."""
    client, echo = ServiceClient("worker", address), EchoClient(echo_address)
    await client.start()
    await client.wait_ready(30)
    await ask(client, supplies=True)
    await echo.ask()  # it may still be starting
    latencies: list[float] = []
    echoes: list[float] = []
    samples: list[dict[str, float]] = []
    end = time.monotonic() + seconds
    sampling = asyncio.create_task(sample(client, samples, end))
    while time.monotonic() < end:
        started = time.perf_counter()
        try:
            await ask(client, supplies=False)
            latencies.append(time.perf_counter() - started)
        except (AssertionError, ServiceFailed):  # evicted: it is Missing
            await ask(client, supplies=True)
        await asyncio.sleep(PROBE_INTERVAL)
        started = time.perf_counter()
        await echo.ask()
        echoes.append(time.perf_counter() - started)
        await asyncio.sleep(PROBE_INTERVAL)
    await sampling
    await client.close()
    echo.close()
    busy = samples[-1].pop("encode_seconds") - samples[0].pop("encode_seconds")
    memory = {name: brief_of([each[name] for each in samples]) for name in ("used_mib", "reserved_mib")}
    waits = {"cached_score_ms": brief(latencies), "bare_zeromq_ms": brief(echoes)}
    return {"encoder_busy_share": busy / seconds, **waits, "memory": memory}


async def sample(client: ServiceClient, samples: list[dict[str, float]], end: float) -> None:
    """Until `end`, what is in use whenever nvidia-smi says so: one of them, so that none starts between two probes."""
    smi = await asyncio.create_subprocess_exec(
        *USED_MEMORY, f"--loop={SAMPLE_INTERVAL}", stdout=asyncio.subprocess.PIPE
    )
    assert smi.stdout is not None
    try:
        while time.monotonic() < end:
            line = await smi.stdout.readline()
            assert line, "nvidia-smi has ended"
            statistics = await client.statistics(5.0)
            reserved = statistics["device_bytes_reserved"] / 2**20
            busy = statistics["encode_seconds"]
            samples.append({"used_mib": float(line), "reserved_mib": reserved, "encode_seconds": busy})
    finally:
        smi.terminate()
        await smi.wait()


def brief(seconds: list[float]) -> dict[str, float]:
    shares = {f"p{share * 100:g}": percentile(seconds, share) * 1e3 for share in (0.5, 0.9, 0.99, 0.999)}
    return {"count": len(seconds), **shares, "max": max(seconds) * 1e3}


def brief_of(values: list[float]) -> dict[str, float]:
    return {"first": values[0], "last": values[-1], "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()

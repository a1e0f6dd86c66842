"""The whole server on one CUDA device, over HTTP: cached documents, new ones, and what more API servers change.

    python -m benchmarks.bench_serving_cuda

Requests are `maxsimd bench`'s, from processes of their own on the same machine. Memory is the device's, as nvidia-smi
has it, all processes together; CUDA processes are those that map libcuda.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import parser, write
from benchmarks.running import Server

CACHED = ["--dataset-name", "synthetic", "--documents", "1000", "--document-len", "256", "--query-len", "32"]
CACHED += ["--repeated", "1", "--pool", "1000"]
NEW = ["--dataset-name", "synthetic", "--documents", "100", "--document-len", "256", "--query-len", "32"]
CACHED_100 = ["--dataset-name", "synthetic", "--documents", "100", "--repeated", "1"]
NEW_10 = ["--dataset-name", "synthetic", "--documents", "10"]
SECONDS_OF_A_RATE = 2
MOST_CONNECTIONS = 512
MOST_API_SERVERS = 8
CLIENT_PROCESSES = 4
WARM_UPS = 8
COUNTS = (1, 2, 4, 8, 16)


def main() -> None:
    arguments = parser(__doc__ or "", "serving-cuda")
    arguments.add_argument("--model", help="directory of a checkpoint (default: the embedded model)")
    arguments.add_argument("--tokenizer", help="directory with its tokenizer.json")
    arguments.add_argument("--store", default="8GiB", help="size of the embedding store (default 8GiB)")
    options = arguments.parse_args()
    serve = [*([options.model] if options.model else []), "--device", "cuda", "--embedding-cache-size", options.store]
    ask = ["--tokenizer", options.tokenizer] if options.tokenizer else []
    results: dict[str, Any] = {"gpu": gpu_name(), "model": options.model or "embedded all-MiniLM-L6-v2"}
    with Server(*serve, "--api-server-count", str(MOST_API_SERVERS)) as server:
        results["cached_1000_documents"] = {
            f"{at_a_time}_at_a_time": bench(server, [*CACHED, *ask], requests, at_a_time)
            for at_a_time, requests in ((1, 200), (8, 2000), (32, 1000))
        }
        results["100_cached_documents_by_rate"] = by_rate(server, [*CACHED_100, *ask], (100, 200, 400, 800, 1200))
    with Server(*serve, "--api-server-count", str(MOST_API_SERVERS), "--no-embedding-cache") as server:
        results["new_100_documents"] = bench(server, [*NEW, *ask], 200, 16)
        results["10_new_documents_by_rate"] = by_rate(server, [*NEW_10, *ask], (50, 100, 200, 300, 400))
    results["by_api_servers"] = [by_count(count, serve, ask) for count in COUNTS]
    write(options.out, results)


def by_rate(server: Server, requests: list[str], rates: Sequence[int]) -> list[dict[str, Any]]:
    """Latency where so many requests per second come at random times, whether or not earlier ones were answered."""
    return [
        {"rate": rate, **bench(server, requests, SECONDS_OF_A_RATE * rate, MOST_CONNECTIONS, rate)} for rate in rates
    ]


def by_count(count: int, serve: list[str], ask: list[str]) -> dict[str, Any]:
    """Memory, CUDA processes and throughput with so many API servers."""
    with Server(*serve, "--api-server-count", str(count)) as server:
        idle = used_memory()
        result = bench(server, [*CACHED, *ask], 800, 8)
        many = bench(server, [*CACHED, *ask], 1000, 32)
        pids = [pid for module in ("frontend.api_server", "scorer_worker") for pid in server.children(module)]
        return {
            "api_servers": count,
            "device_memory_mib_idle": idle,
            "device_memory_mib_after_load": used_memory(),
            "cuda_processes": sum("libcuda.so" in Path(f"/proc/{pid}/maps").read_text() for pid in pids),
            **result,
            "32_at_a_time": {name: many[name] for name in ("document_throughput", "latency", "client_is_bottleneck")},
        }


def bench(
    server: Server,
    requests: list[str],
    count: int,
    at_a_time: int,
    rate: float | None = None,
    processes: int = CLIENT_PROCESSES,
    may_refuse: bool = False,
) -> dict[str, Any]:
    """One run of `maxsimd bench`, after a warm-up that fills the store.

    Args:
        rate: requests per second, at random times; None: as many as are answered.
        processes: that ask, at most.
        may_refuse: requests that fail are counted in the result; else one ends this.
    """
    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory) / "result.json"
        command = [sys.executable, "-P", "-m", "frontend.cli", "bench"]
        command += ["--base-url", f"http://127.0.0.1:{server.port}", *requests]
        command += ["--num-prompts", str(count), "--max-concurrency", str(at_a_time), "--num-warmups", str(WARM_UPS)]
        command += ["--request-rate", str(rate)] if rate is not None else []
        command += ["--client-processes", str(min(at_a_time, processes)), "--save-result", str(saved)]
        print(" ".join(command), file=sys.stderr)
        subprocess.run(command, check=not may_refuse, stdout=sys.stderr)
        result: dict[str, Any] = json.loads(saved.read_text())["result"]
    return result


def used_memory() -> float:
    """MiB of the first device, of all processes."""
    return float(_output_of(USED_MEMORY))


def gpu_name() -> str:
    return _output_of(_of_first_device("name"))


def _of_first_device(field: str) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "--id=0"]


def _output_of(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


USED_MEMORY = _of_first_device("memory.used")


if __name__ == "__main__":
    main()

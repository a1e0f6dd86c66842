"""What HTTP, IPC and the worker cost around MaxSim, on a CPU; what an API server weighs; where connections go.

    python -m benchmarks.bench_serving

The machine should be idle: latencies are medians over requests of one connection at a time.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import tempfile
import threading
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.echo import Echo, EchoClient
from benchmarks.large_vocabulary import make_checkpoint
from benchmarks.measuring import parser, percentile, spread, write
from benchmarks.running import Server, memory_of, post, start_worker
from ipc.arrays import FrameWriter
from ipc.client import ServiceClient
from ipc.messages import KEY_BYTES, Score, Scores, SuppliedEmbeddings, SuppliedTokens
from ipc.settings import WorkerSettings
from ipc.sockets import make_run_directory, remove_run_directory

DOCUMENTS, DOCUMENT_TOKENS = 1000, 180
ROUND_TRIPS = 5000
LOAD_CONNECTIONS, LOAD_SECONDS, KNOWN_DOCUMENTS = 32, 40.0, 200
WORDS = [
    "river",
    "mountain",
    "light",
    "engine",
    "paper",
    "garden",
    "ocean",
    "market",
    "winter",
    "glass",
    "story",
    "music",
    "window",
    "copper",
    "forest",
    "signal",
    "bread",
    "history",
    "silver",
    "animal",
    "number",
    "letter",
    "summer",
    "island",
    "village",
    "colour",
    "machine",
    "question",
    "answer",
    "morning",
    "evening",
]


def main() -> None:
    arguments = parser(__doc__ or "", "serving-cpu")
    arguments.set_defaults(runs=40)
    options = arguments.parse_args()
    choose = random.Random(options.seed)
    results: dict[str, Any] = {}
    with Server("--api-server-count", "1", "--expose-timings", "--request-timeout", "300") as server:
        results["cached_rerank"] = cached_rerank(server, choose, options.runs)
    results["small_cached_score"] = {**asyncio_run(small_score()), "bare_zeromq": bare_round_trips()}
    with Server("--api-server-count", "4") as server:
        results["connections_of_8"] = even_connections(server)
        results["api_server_memory_mib"] = memory_under_load(server, choose)
    results["api_server_memory_mib_250k_vocabulary"] = memory_of_large_vocabulary()
    write(options.out, results)


# --- cached rerank over HTTP ----------------------------------------------------------------------------------------


def cached_rerank(server: Server, choose: random.Random, runs: int) -> dict[str, Any]:
    """The same 1000 documents of 180 tokens, reranked again and again."""
    documents = [make_document(choose) for _ in range(DOCUMENTS)]
    body = {"query": "which island has a copper market?", "documents": documents}
    bodies = {
        "with_documents": json.dumps(body).encode(),
        "without_documents": json.dumps({**body, "return_documents": False}).encode(),
    }
    connection = server.connect()
    for first in range(0, DOCUMENTS, 50):
        post(connection, "/rerank", json.dumps({**body, "documents": documents[first : first + 50]}).encode())
        print(f"\rencoding {first + 50} of {DOCUMENTS} documents", end="", flush=True)
    print()
    before = counters(server)
    total: dict[str, list[float]] = {name: [] for name in bodies}
    outside: dict[str, list[float]] = {name: [] for name in bodies}
    around: list[float] = []
    score: list[float] = []
    for _ in range(runs):
        for name, content in bodies.items():
            started = time.perf_counter()
            _, response = post(connection, "/rerank", content)
            elapsed = (time.perf_counter() - started) * 1e3
            in_kernel = float(response.headers["x-maxsimd-score-ms"])
            total[name].append(elapsed)
            outside[name].append(elapsed - in_kernel)
            score.append(in_kernel)
            around.append(float(response.headers["x-maxsimd-worker-ms"]) - in_kernel)
    after = counters(server)
    connection.close()
    return {
        "documents": DOCUMENTS,
        "tokens_of_a_document": DOCUMENT_TOKENS,
        "body_bytes": len(bodies["with_documents"]),
        "total_ms": {name: spread(values) for name, values in total.items()},
        "outside_maxsim_ms": {name: spread(values) for name, values in outside.items()},
        "maxsim_ms": spread(score),
        "ipc_and_worker_ms": spread(around),
        "tokenised_or_encoded": {name: after[name] - before[name] for name in after},
    }


def make_document(choose: random.Random) -> str:
    """Common words of one token each: 178 of them and two special tokens."""
    return " ".join(choose.choice(WORDS) for _ in range(DOCUMENT_TOKENS - 2))


def counters(server: Server) -> dict[str, float]:
    connection = server.connect()
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    names = ("maxsimd_encoded_tokens_total", "maxsimd_engine_texts", "maxsimd_engine_requests")
    found = dict(re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE))
    return {name: float(found[name]) for name in names}


# --- a small cached Score over the socket ---------------------------------------------------------------------------


async def small_score() -> dict[str, Any]:
    """One query of 32 rows and ten documents of 16 rows, d=128, named by keys: API server's client, worker and back."""
    directory = make_run_directory()
    address = f"ipc://{directory}/worker.sock"
    settings = WorkerSettings(address, str(directory / "worker.running"), dim=128, cache_bytes=64 * 2**20, threads=1)
    process = start_worker(settings)
    client = ServiceClient("worker", address)
    await client.start()
    try:
        await client.wait_ready(30)
        await ask(client, supplies=True)
        seconds = []
        kernel = []
        for _ in range(ROUND_TRIPS):
            started = time.perf_counter()
            answer = await ask(client, supplies=False)
            seconds.append(time.perf_counter() - started)
            kernel.append(answer.score_us)
        seconds, kernel = seconds[200:], kernel[200:]
        return {
            "round_trips": len(seconds),
            "p50_us": percentile(seconds, 0.5) * 1e6,
            "p99_us": percentile(seconds, 0.99) * 1e6,
            "kernel_p50_us": percentile([float(value) for value in kernel], 0.5),
        }
    finally:
        await client.close()
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(30)
        remove_run_directory(directory)


async def ask(client: ServiceClient, supplies: bool) -> Scores:
    """One small Score.

    Args:
        supplies: with its embeddings, of the service's dim; else by names alone, of what was supplied before.
    """
    assert client.service is not None
    dim = client.service.ready.dim
    writer = FrameWriter()
    keys = writer.add_keys([bytes([number]) * KEY_BYTES for number in range(11)])
    supplied: list[SuppliedEmbeddings | SuppliedTokens] = []
    if supplies:
        rows = [32, *([16] * 10)]
        values = array("f", (random.random() for _ in range(sum(rows) * dim)))
        supplied.append(
            SuppliedEmbeddings(
                writer.add_ints(range(11)),
                writer.add_ints(rows),
                writer.add_ints(rows),
                writer.add(values, "float32", [sum(rows), dim]),
            )
        )
    message = Score(0, 0, b"somebody", 0, 1, 10, keys, None, supplied)
    answer, _ = await client.request(message, writer.frames, asyncio.get_running_loop().time() + 30)
    assert isinstance(answer, Scores)
    return answer


def asyncio_run(work: Any) -> Any:
    return uvloop.run(work)


def bare_round_trips() -> dict[str, float]:
    """As `Echo`."""
    with Echo() as echo:
        seconds = asyncio_run(_ask_echo(echo.address))[200:]
    return {"p50_us": percentile(seconds, 0.5) * 1e6, "p99_us": percentile(seconds, 0.99) * 1e6}


async def _ask_echo(address: str) -> list[float]:
    client = EchoClient(address)
    seconds = []
    for _ in range(ROUND_TRIPS):
        started = time.perf_counter()
        await client.ask()
        seconds.append(time.perf_counter() - started)
    client.close()
    return seconds


# --- connections and memory -----------------------------------------------------------------------------------------


def even_connections(server: Server) -> list[int]:
    """How many of 8 kept-alive connections each API server has."""
    connections = [server.connect() for _ in range(8)]
    owners: Counter[str] = Counter()
    for connection in connections:
        connection.request("GET", "/live")
        connection.getresponse().read()
    for pid in server.children("frontend.api_server"):
        owners[str(pid)] = count_established(pid, server.port)
    for connection in connections:
        connection.close()
    return sorted(owners.values())


def count_established(pid: int, port: int) -> int:
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[9] in inodes and int(row[1].split(":")[1], 16) == port and row[3] == "01" for row in rows)


def memory_under_load(server: Server, choose: random.Random) -> dict[str, Any]:
    """Resident memory of the API servers, idle, and at most while many connections rerank, one document in 500 new.

    Who is refused waits a moment, as clients do: the load is what the server can take, and a little more.
    """
    pids = server.children("frontend.api_server")
    idle = [memory_of(pid, "VmRSS") for pid in pids]
    end = time.monotonic() + LOAD_SECONDS
    answered: Counter[int] = Counter()
    known = [make_document(choose) for _ in range(KNOWN_DOCUMENTS)]

    def one_connection(seed: int) -> None:
        choose = random.Random(seed)
        connection = server.connect()
        while time.monotonic() < end:
            documents = choose.choices(known, k=choose.choice((1, 5, 100, 1000)))
            documents = [make_document(choose) if choose.random() < 0.002 else document for document in documents]
            body = json.dumps({"query": "river", "documents": documents}).encode()
            connection.request("POST", "/rerank", body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            answered[response.status] += 1
            if response.status != 200:
                time.sleep(choose.random())
        connection.close()

    threads = [threading.Thread(target=one_connection, args=(choose.random(),)) for _ in range(LOAD_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    peak = [memory_of(pid, "VmHWM") for pid in pids]
    return {
        "idle": idle,
        "peak_under_load": peak,
        "more_under_load": [high - low for high, low in zip(peak, idle, strict=True)],
        "connections": LOAD_CONNECTIONS,
        "answers_by_status": {str(status): count for status, count in sorted(answered.items())},
    }


def memory_of_large_vocabulary() -> dict[str, Any]:
    """An API server with a vocabulary of 250,002 pieces, idle."""
    directory = Path(tempfile.mkdtemp(prefix="large-vocabulary-"))
    try:
        make_checkpoint(directory)
        with Server(str(directory), "--api-server-count", "1", "--embedding-cache-size", "64MiB") as server:
            return {"idle": [memory_of(pid, "VmRSS") for pid in server.children("frontend.api_server")]}
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()

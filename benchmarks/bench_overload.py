"""Overload and fairness over HTTP, with the embedded model.

    python -m benchmarks.bench_overload
    python -m benchmarks.bench_overload --only-fairness --device cuda --out benchmarks/results/fairness-cuda.json

Overload: what the server can do is measured first, with 8 connections and nothing cached. Then ten times as much is
asked at regular times, each request on one of 200 connections that is free; where none is, it is not sent. Latency
counts from the last byte of a request. Then 8 connections again.

Fairness: a client with an API key of its own asks for ten documents, one request after the other, alone and while
another one, in a process of its own, asks for 10,000 documents without pause; in turns. Once every document is new,
once all are in the store. The second with one API server and with two: then the launcher puts the two connections on
different ones. And, for comparison, beside COMPUTING processes that only compute, as many as the large client keeps
busy, itself and who serves it: what the machine's cores alone come to.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from benchmarks.bench_serving_cuda import gpu_name
from benchmarks.measuring import parser, percentile, write
from benchmarks.running import Server, memory_of
from frontend.bench.client import Connection

WORDS = ["late", "interaction", "keeps", "one", "embedding", "for", "every", "token"] * 2
FEW_CONNECTIONS, MANY_CONNECTIONS = 8, 200
OVERLOAD = 10  # times what the server can do
SMALL, LARGE = 10, 10_000  # documents
TURNS = 2  # of each measurement
KEYS = ("small-client", "large-client")
COMPUTING = 2  # processes


@dataclass
class Answers:
    """What came back: seconds by status."""

    seconds: dict[int, list[float]] = field(default_factory=dict)

    def add(self, status: int, seconds: float) -> None:
        self.seconds.setdefault(status, []).append(seconds)

    def count(self, status: int) -> int:
        return len(self.seconds.get(status, []))

    def brief(self) -> dict[str, Any]:
        return {
            str(status): {
                "count": len(each),
                **{f"p{share * 100:g}_ms": percentile(each, share) * 1e3 for share in (0.5, 0.99)},
                "max_ms": max(each) * 1e3,
            }
            for status, each in sorted(self.seconds.items())
        }


class Client:
    """Requests to one server with one key."""

    def __init__(self, port: int, key: str = "") -> None:
        self.port = port
        self._head = b"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        self._head += f"authorization: Bearer {key}\r\n".encode() if key else b""

    async def connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self.port)
        return connection

    async def ask(self, connection: Connection, documents: list[str]) -> int:
        """The status of the answer."""
        body = json.dumps({"query": "what is late interaction?", "documents": documents}).encode()
        status, _ = await connection.ask(self._head + b"content-length: %d\r\n\r\n" % len(body) + body)
        return status


def new_documents(count: int, words: int, first: int = 0) -> Iterator[list[str]]:
    """Lists of documents that were in no list before: numbered, from `first`."""
    numbers = itertools.count(first)
    while True:
        yield [f"{next(numbers)} {' '.join(WORDS[:words])}" for _ in range(count)]


async def closed(client: Client, connections: int, lists: Iterator[list[str]], seconds: float) -> Answers:
    """Each connection asks again as soon as it has its answer."""
    answers = Answers()
    end = time.monotonic() + seconds

    async def one() -> None:
        connection = await client.connect()
        while time.monotonic() < end:
            started = time.monotonic()
            status = await client.ask(connection, next(lists))
            answers.add(status, time.monotonic() - started)
        connection.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return answers


async def paced(
    client: Client, connections: int, lists: Iterator[list[str]], rate: float, seconds: float
) -> tuple[Answers, int]:
    """`rate` requests a second at regular times, whether or not earlier ones were answered.

    Returns:
        What came back, and how many requests were not sent because no connection was free.
    """
    answers = Answers()
    free = [await client.connect() for _ in range(connections)]
    waiting: set[asyncio.Task[None]] = set()
    unsent = 0

    async def one(connection: Connection) -> None:
        started = time.monotonic()
        answers.add(await client.ask(connection, next(lists)), time.monotonic() - started)
        free.append(connection)

    begin = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
        if not free:
            unsent += 1
            continue
        waiting.add(task := asyncio.create_task(one(free.pop())))
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)
    for connection in free:
        connection.close()
    return answers, unsent


def memory(server: Server) -> dict[str, float]:
    """MiB of each process, by module; of several of a kind the largest."""
    modules = ("frontend.api_server", "engine", "scorer_worker")
    pids = {"frontend.cli": [server.pid], **{module: server.children(module) for module in modules}}
    return {module: max(memory_of(pid, "VmRSS") for pid in each) for module, each in pids.items()}


async def overload(server: Server, seconds: float) -> dict[str, Any]:
    client, lists = Client(server.port), new_documents(100, 16)
    await closed(client, FEW_CONNECTIONS, lists, seconds / 3)  # warm; admission learns what a request costs
    before = await closed(client, FEW_CONNECTIONS, lists, seconds)
    capacity = before.count(200) / seconds
    idle = memory(server)
    during, unsent = await paced(client, MANY_CONNECTIONS, lists, OVERLOAD * capacity, seconds)
    loaded = memory(server)
    await paced(client, MANY_CONNECTIONS, lists, OVERLOAD * capacity, seconds)
    again = memory(server)
    after = await closed(client, FEW_CONNECTIONS, lists, seconds)
    return {
        "requests_per_second_before": capacity,
        "asked_per_second": sum(map(len, during.seconds.values())) / seconds,
        "unsent": unsent,  # for want of a free connection
        "answers": during.brief(),
        "answered_per_second": during.count(200) / seconds,
        "requests_per_second_after": after.count(200) / seconds,
        "memory_mib": {"before": idle, "after_overload": loaded, "after_overload_again": again},
    }


class LargeClient:
    """Asks for LARGE documents without pause, as long as the `with` block runs."""

    def __init__(self, port: int, is_new: bool, first: int) -> None:
        """
        Args:
            first: number of the first of its new documents.
        """
        context = multiprocessing.get_context("spawn")
        self._finished = context.Value("i", 0)
        self._process = context.Process(target=keep_asking, args=(port, is_new, first, self._finished), daemon=True)

    @property
    def finished(self) -> int:
        """Requests that were answered."""
        return int(self._finished.value)

    def __enter__(self) -> LargeClient:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._process.is_alive():
            raise SystemExit(f"the large client has ended, exit code {self._process.exitcode}: nothing was beside")
        self._process.terminate()
        self._process.join()


def keep_asking(port: int, is_new: bool, first: int, finished: Synchronized[int]) -> None:
    """The process of a LargeClient."""

    async def run() -> None:
        client = Client(port, KEYS[1])
        connection = await client.connect()
        lists = new_documents(LARGE, 8, first) if is_new else itertools.repeat(known_documents())
        for documents in lists:
            assert await client.ask(connection, documents) == 200
            finished.value += 1

    asyncio.run(run())


class Computing:
    """COMPUTING processes that only compute, as long as the `with` block runs."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = [context.Process(target=compute, daemon=True) for _ in range(COMPUTING)]

    def __enter__(self) -> Computing:
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def compute() -> None:
    """The process of a Computing."""
    number = 0
    while True:
        number += 1


def known_documents() -> list[str]:
    return next(new_documents(LARGE, 6))


async def fairness(server: Server, is_new: bool, seconds: float) -> dict[str, Any]:
    """
    Args:
        is_new: nothing that is asked about was asked about before; else everything was.
    """
    small = Client(server.port, KEYS[0])
    few = new_documents(SMALL, 16) if is_new else itertools.repeat(known_documents()[:SMALL])
    await closed(small, 1, few, 2.0)
    samples: dict[str, list[float]] = {"alone": [], "beside": [], "beside_computing": []}
    finished = 0
    for turn in range(TURNS):
        samples["alone"] += (await closed(small, 1, few, seconds)).seconds[200]
        with LargeClient(server.port, is_new, (turn + 1) * 10**8) as large:
            await asyncio.sleep(4.0)  # until it is in the middle of it
            samples["beside"] += (await closed(small, 1, few, seconds)).seconds[200]
            finished += large.finished
        await asyncio.sleep(1.0)  # what nobody waits for is dropped
        with Computing():
            await asyncio.sleep(1.0)  # until they compute
            samples["beside_computing"] += (await closed(small, 1, few, seconds)).seconds[200]
    alone = percentile(samples["alone"], 0.99)
    brief = {
        name: {f"p{share * 100:g}_ms": percentile(each, share) * 1e3 for share in (0.5, 0.99)} | {"count": len(each)}
        for name, each in samples.items()
    }
    times = {
        "times_p99": percentile(samples["beside"], 0.99) / alone,
        "times_p99_computing": percentile(samples["beside_computing"], 0.99) / alone,
    }
    return {**brief, "large_finished": finished, **times}


def main() -> None:
    arguments = parser(__doc__ or "", "overload-cpu")
    arguments.add_argument("--seconds", type=float, default=15.0, help="of each load")
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--only-fairness", action="store_true")
    options = arguments.parse_args()
    device = ["--device", options.device]
    results: dict[str, Any] = {"device": options.device} | ({"gpu": gpu_name()} if options.device == "cuda" else {})
    if not options.only_fairness:
        with Server(*device, "--embedding-cache-size", "256MiB") as server:
            results["overload"] = asyncio.run(overload(server, options.seconds))
    keys = [argument for key in KEYS for argument in ("--api-key", key)]
    serve = [*device, *keys, "--max-documents-per-request", str(LARGE), "--request-timeout", "10m"]
    serve += ["--cache-scope", "shared", "--embedding-cache-size", "1GiB"]
    for servers in (1, 2):
        with Server(*serve, "--api-server-count", str(servers)) as server:
            if servers == 1:
                results["fairness_new"] = asyncio.run(fairness(server, True, options.seconds))
            asyncio.run(fill(server))
            name = "fairness_cached" if servers == 1 else "fairness_cached_2_api_servers"
            results[name] = asyncio.run(fairness(server, False, options.seconds))
    write(Path(options.out), results)


async def fill(server: Server) -> None:
    client = Client(server.port, KEYS[1])
    connection = await client.connect()
    assert await client.ask(connection, known_documents()) == 200
    connection.close()


if __name__ == "__main__":
    main()

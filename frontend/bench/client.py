"""One process of the load generator: `python -P -m frontend.bench.client`, started by `maxsimd bench`.

A `Task` as one JSON line on stdin; on stdout lines of JSON, `Progress` while it runs and one `Finished` at the end.

Closed loop: so many connections, each asks again as soon as it has its answer. Open loop: requests start at random
times of a Poisson process, whether or not earlier ones have been answered; latency counts from the time a request was
due, so that a server that stalls does not hide what would have been asked meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httptools
import msgspec

PROGRESS_INTERVAL = 0.2  # seconds
MAX_ERROR = 200  # characters of an answer that is shown


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One request, by the places of its texts."""

    query: int
    documents: list[int]


class Workload(msgspec.Struct, frozen=True):
    """What all client processes ask together; texts that are asked for again are there once."""

    texts: list[str]
    requests: list[Request]


class Task(msgspec.Struct, frozen=True):
    """One process's part of a run. It asks requests `first`, `first + step`, ..."""

    workload: str  # path of the Workload, msgpack
    url: str  # of the endpoint
    first: int
    step: int
    connections: int  # at most, for an open loop
    rate: float | None = None  # requests per second of this process; None: closed loop
    seed: int = 0
    timeout: float = 600.0
    headers: dict[str, str] = {}
    extra: dict[str, object] = {}  # more fields of each body
    salt: str = ""  # where each body has a cache_salt of its own: what it begins with


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Requests answered so far."""

    done: int


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """One request's fate. Seconds are on the clock of this machine, `time.monotonic`."""

    started: float
    latency: float
    documents: int
    prompt_tokens: int = 0
    error: str = ""


class Finished(msgspec.Struct, frozen=True, tag=True):
    """All outcomes of this process, and how busy it was."""

    outcomes: list[Outcome]
    cpu_share: float  # of one core, while requests were on their way


Report = Progress | Finished


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection with one request at a time."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._body)))

    async def ask(self, message: bytes) -> tuple[int, bytes]:
        """(status, body).

        Raises:
            ConnectionError: the connection ended before the answer did.
        """
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return await self._answer

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.close()


class Client:
    """Asks one process's part of a workload."""

    def __init__(self, task: Task, workload: Workload) -> None:
        self._task = task
        self._workload = workload
        self._numbers = range(task.first, len(workload.requests), task.step)
        parts = urlsplit(task.url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or (443 if self._tls else 80)
        lines = [f"POST {parts.path or '/'} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in task.headers.items()]
        self._head = "\r\n".join(lines) + "\r\ncontent-length: "
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(_Answer)
        self._raw: dict[tuple[int, ...], msgspec.Raw] = {}  # the documents of the last request, if they repeat
        self._idle: list[Connection] = []
        self.outcomes: list[Outcome] = []

    async def run(self) -> None:
        """All of it."""
        if self._task.rate is None:
            todo = iter(self._numbers)
            await asyncio.gather(*(self._ask_on_and_on(todo) for _ in range(self._task.connections)))
        else:
            await self._ask_at_random(self._task.rate)
        for connection in self._idle:
            connection.close()

    async def _ask_on_and_on(self, todo: Iterator[int]) -> None:
        for number in todo:
            await self._ask(number, time.monotonic())

    async def _ask_at_random(self, rate: float) -> None:
        choose = random.Random(f"{self._task.seed} {self._task.first}")
        room = asyncio.Semaphore(self._task.connections)
        due = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in self._numbers:
                due += choose.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await room.acquire()
                task = tasks.create_task(self._ask(number, due))
                task.add_done_callback(lambda _: room.release())

    async def _ask(self, number: int, due: float) -> None:
        request = self._workload.requests[number]
        tokens, error = 0, ""
        try:
            async with asyncio.timeout(self._task.timeout):
                status, body = await self._exchange(self._encode(number))
            if status == 200:
                usage = self._decoder.decode(body).usage
                tokens = (usage.prompt_tokens or usage.total_tokens) if usage is not None else 0
            else:
                error = f"{status}: {body[:MAX_ERROR].decode(errors='replace')}"
        except (OSError, TimeoutError, msgspec.DecodeError, httptools.HttpParserError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        self.outcomes.append(Outcome(due, time.monotonic() - due, len(request.documents), tokens, error))

    async def _exchange(self, message: bytes) -> tuple[int, bytes]:
        connection = self._idle.pop() if self._idle else None
        if connection is None or not connection.is_open:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        try:
            answer = await connection.ask(message)
        except BaseException:
            connection.close()
            raise
        if connection.is_open:
            self._idle.append(connection)
        return answer

    def _encode(self, number: int) -> bytes:
        texts, request = self._workload.texts, self._workload.requests[number]
        key = tuple(request.documents)
        documents = self._raw.get(key)
        if documents is None:  # a thousand documents cost a millisecond to encode; asked again they are as they were
            documents = msgspec.Raw(self._encoder.encode([texts[place] for place in key]))
            self._raw = {key: documents}
        salt = {"cache_salt": f"{self._task.salt}-{number}"} if self._task.salt else {}
        body = self._encoder.encode({"query": texts[request.query], "documents": documents, **self._task.extra, **salt})
        return f"{self._head}{len(body)}\r\n\r\n".encode() + body


async def _run(task: Task, workload: Workload) -> Finished:
    client = Client(task, workload)
    started, cpu = time.monotonic(), time.process_time()
    running = asyncio.create_task(client.run())
    while not running.done():
        await asyncio.wait([running], timeout=PROGRESS_INTERVAL)
        _say(Progress(len(client.outcomes)))
    await running
    elapsed = time.monotonic() - started
    return Finished(client.outcomes, (time.process_time() - cpu) / elapsed if elapsed > 0 else math.nan)


def _say(report: Report) -> None:
    os.write(1, msgspec.json.encode(report) + b"\n")


def main() -> int:
    """Returns 0."""
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    workload = msgspec.msgpack.decode(Path(task.workload).read_bytes(), type=Workload)
    output = msgspec.json.encode(asyncio.run(_run(task, workload))) + b"\n"
    sys.stdout.buffer.write(output)
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

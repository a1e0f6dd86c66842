"""Small cached Scores through one worker, from four client processes with 32 outstanding each.

    python -m benchmarks.bench_score_rate

A Score is one query of 32 rows and ten documents of 16 rows, dim 128, named by keys. Two kinds of clients: raw ones,
which write messages and look at answers themselves, so that the worker is what is measured; and
`ipc.client.ServiceClient` on uvloop, as API servers use it. Every raw answer is compared bit by bit with the first one.
Clients and worker share the machine's cores: what the worker and the clients take of the processor for one Score says
what bounds the rate.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop
import zmq

from benchmarks.bench_serving import ask
from benchmarks.measuring import parser, spread, write
from benchmarks.running import start_worker
from ipc.arrays import FrameWriter
from ipc.client import ServiceClient
from ipc.codec import decode_to_client, encode
from ipc.messages import IDENTITY_BYTES, KEY_BYTES, PROTOCOL_VERSION, Hello, Ready, Score, Scores
from ipc.settings import WorkerSettings
from ipc.sockets import connect_dealer, make_run_directory, receive_parts, remove_run_directory

CLIENTS, OUTSTANDING = 4, 32
TARGET = 10_000  # Scores a second
KEYS = [bytes([number]) * KEY_BYTES for number in range(11)]
BUDGET_MS = 60_000
HELLO_INTERVAL = 0.5


class Report(msgspec.Struct):
    """What one client process has done in its measured seconds."""

    answers: int
    seconds: float
    cpu_seconds: float


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "client":
        client(*sys.argv[2:5])
        return
    arguments = parser(__doc__ or "", "score-rate-cpu")
    arguments.set_defaults(runs=5)
    arguments.add_argument("--seconds", type=float, default=5.0, help="of each run")
    options = arguments.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"raw": [], "service_client": []}
    directory = make_run_directory()
    address = f"ipc://{directory}/worker.sock"
    settings = WorkerSettings(address, str(directory / "worker.running"), dim=128, cache_bytes=64 * 2**20, threads=1)
    worker = start_worker(settings)
    try:
        uvloop.run(fill(address))
        for _ in range(options.runs):
            for kind, found in runs.items():
                found.append(measure(kind, address, worker.pid, options.seconds))
                print(kind, {name: round(value, 1) for name, value in found[-1].items()})
    finally:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait(30)
        remove_run_directory(directory)
    briefs = {kind: {name: spread([run[name] for run in found]) for name in found[0]} for kind, found in runs.items()}
    write(options.out, {"clients": CLIENTS, "outstanding": OUTSTANDING, "target": TARGET, **briefs})


def measure(kind: str, address: str, worker: int, seconds: float) -> dict[str, float]:
    """One run of all clients; processor time in microseconds for each Score."""
    command = [sys.executable, "-P", "-m", "benchmarks.bench_score_rate", "client", kind, address, str(seconds)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) for _ in range(CLIENTS)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    before = _cpu_seconds(worker)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    reports = []
    for process in processes:
        content, _ = process.communicate()
        assert process.returncode == 0
        reports.append(msgspec.json.decode(content, type=Report))
    answers = sum(report.answers for report in reports)
    return {
        "scores_per_second": sum(report.answers / report.seconds for report in reports),
        "worker_us": (_cpu_seconds(worker) - before) / answers * 1e6,
        "client_us": sum(report.cpu_seconds for report in reports) / answers * 1e6,
    }


async def fill(address: str) -> None:
    """The embeddings that all Scores name."""
    service = ServiceClient("worker", address)
    await service.start()
    await service.wait_ready(30)
    await ask(service, supplies=True)
    await service.close()


def client(kind: str, address: str, seconds: str) -> None:
    """One client process."""
    report = raw(address, float(seconds)) if kind == "raw" else uvloop.run(with_service_client(address, float(seconds)))
    sys.stdout.buffer.write(msgspec.json.encode(report))


def raw(address: str, seconds: float) -> Report:
    """A plain socket: as little as a client can do."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = connect_dealer(context, address, secrets.token_bytes(IDENTITY_BYTES))
    hello = encode(Hello(PROTOCOL_VERSION))
    writer = FrameWriter()
    keys = writer.add_keys(KEYS)
    ready = None
    while not isinstance(ready, Ready):
        _try_send(socket, hello)
        if socket.poll(100):
            parts = receive_parts(socket)
            ready = decode_to_client(parts)[0] if parts is not None else None
    epoch, tag, next_id = ready.epoch, secrets.token_bytes(8), 1
    expected: bytes | None = None
    _wait_go()
    for _ in range(OUTSTANDING):
        socket.send_multipart(encode(Score(epoch, next_id, tag, BUDGET_MS, 1, 10, keys), writer.frames))
        next_id += 1
    answers, started, cpu = 0, time.monotonic(), time.process_time()
    end, next_hello = started + seconds, started
    while (now := time.monotonic()) < end:
        if now >= next_hello:
            _try_send(socket, hello)
            next_hello = now + HELLO_INTERVAL
        parts_of_answer = socket.recv_multipart()
        if len(parts_of_answer) == 1:
            continue  # Ready
        scores = parts_of_answer[1]
        expected = expected or scores
        assert scores == expected, "another answer than the first one"
        answers += 1
        socket.send_multipart(encode(Score(epoch, next_id, tag, BUDGET_MS, 1, 10, keys), writer.frames))
        next_id += 1
    report = Report(answers, time.monotonic() - started, time.process_time() - cpu)
    socket.close(0)
    context.term()
    return report


async def with_service_client(address: str, seconds: float) -> Report:
    """An API server's client, with as many requests at a time."""
    service = ServiceClient("worker", address)
    await service.start()
    await service.wait_ready(30)
    await ask(service, supplies=False)
    await asyncio.get_running_loop().run_in_executor(None, _wait_go)
    answers, started, cpu = 0, time.monotonic(), time.process_time()
    end = started + seconds

    async def keep_asking() -> None:
        nonlocal answers
        while time.monotonic() < end:
            answer = await ask(service, supplies=False)
            assert isinstance(answer, Scores)
            answers += 1

    await asyncio.gather(*(keep_asking() for _ in range(OUTSTANDING)))
    report = Report(answers, time.monotonic() - started, time.process_time() - cpu)
    await service.close()
    return report


def _try_send(socket: zmq.Socket[bytes], parts: Any) -> None:
    try:
        socket.send_multipart(parts, zmq.NOBLOCK)
    except zmq.Again:
        return


def _wait_go() -> None:
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    assert sys.stdin.buffer.readline() == b"go\n"


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

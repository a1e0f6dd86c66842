"""A real worker in a thread of the test, on a real socket, and a client of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import torch

from engine.encode_queue import EncodeQueue
from engine.encoder import Encoder
from engine.encoder_thread import EncoderThread
from ipc.client import ServiceClient
from ipc.messages import MAX_MESSAGE_BYTES, MAX_TEXTS, Credits, Limits
from ipc.running import RunningFile
from ipc.service import Description, Endpoint
from scorer_worker.arena import Arena
from scorer_worker.batcher import Batcher
from scorer_worker.hosted_encoder import HostedEncoder
from scorer_worker.scorer import Scorer
from scorer_worker.store import ROW_GRAIN
from scorer_worker.worker import Worker

DIM = 8
LIMIT = 20.0
CLIENT = b"someone!"  # whose turn it is


class RunningWorker:
    """A worker with or without an encoder.

    Args:
        rows: of the store.
        encoder: hosted by the worker; batches of at most 64 tokens.
    """

    def __init__(self, directory: Path, rows: int = 4096, encoder: Encoder | None = None) -> None:
        self.address = f"ipc://{directory}/worker.sock"
        self._running_path = directory / "worker.running"
        self._rows = rows
        self._encoder = encoder
        self._stopping = threading.Event()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,))
        self._thread.start()
        assert started.wait(LIMIT)

    def _run(self, started: threading.Event) -> None:
        arena = Arena(self._rows * DIM * 4, DIM, torch.float32, torch.device("cpu"))
        self.directory = arena.directory
        limits = Limits(arena.directory.max_job_rows, MAX_MESSAGE_BYTES, MAX_TEXTS, ROW_GRAIN)
        description = Description(DIM, b"f" * 16, limits, Credits(2**26, 2**20))
        endpoint = Endpoint(self.address, description, lambda: self.worker.statistics(), time.monotonic)
        batcher = Batcher(max_batch_pairs=64, max_batch_work=10**6, slice_work=10**5, wary_work=10**5)
        running = RunningFile(self._running_path)
        with contextlib.ExitStack() as stack:
            hosted = self._host(self._encoder, arena, endpoint, stack) if self._encoder is not None else None
            self.worker = Worker(endpoint, arena, Scorer(arena), batcher, running, hosted, keep_entries=True)
            started.set()
            self.worker.run(self._stopping.is_set, lambda: None)
        endpoint.close()

    def _host(self, encoder: Encoder, arena: Arena, endpoint: Endpoint, stack: contextlib.ExitStack) -> HostedEncoder:
        thread = EncoderThread(encoder)
        stack.callback(thread.close)
        endpoint.watch(thread.descriptor)
        running = RunningFile(self._running_path.with_suffix(".encoder"))
        return HostedEncoder(EncodeQueue(64), thread, arena, running, encoder.rules)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()


@contextlib.asynccontextmanager
async def worker_and_client(
    directory: Path, rows: int = 4096, encoder: Encoder | None = None
) -> AsyncIterator[tuple[RunningWorker, ServiceClient]]:
    worker = RunningWorker(directory, rows, encoder)
    client = ServiceClient("worker", worker.address)
    await client.start()
    try:
        await client.wait_ready(LIMIT)
        yield worker, client
    finally:
        await client.close()
        await asyncio.get_running_loop().run_in_executor(None, worker.stop)

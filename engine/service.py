"""The engine's control thread: from Encode requests to batches of texts, from finished batches to Encoded answers.

G1  Every request that was read is answered once, or dropped because its client has gone or cancelled it.
G2  A text is encoded once for all who wait for it; it is dropped from the queue only when the last of them is gone.
G3  Nothing is kept after its answer: embeddings are stored by the scorer worker, not here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from engine.encode_queue import EncodeQueue
from engine.encoder_thread import EncodedBatch, EncoderThread
from ipc.arrays import FrameWriter, split_keys
from ipc.messages import Encode, Encoded, ErrorCode
from ipc.running import MAX_DEATHS, RequestName, RunningFile
from ipc.service import Cancelled, Endpoint, Event, Gone, Request

IDLE_WAIT = 0.25  # seconds
COUNTERS = ("requests", "answered", "cancelled", "expired", "batches", "texts", "tokens", "encode_seconds")
RATE_WEIGHT = 0.1  # of a full batch in the running mean of tokens per second
RATE_TOKENS = 1024

_REPLY_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(slots=True)
class _Pending:
    """One Encode request, and what there is of it."""

    request: Request
    message: Encode
    keys: list[bytes]
    left: set[bytes]
    embeddings: dict[bytes, torch.Tensor] = field(default_factory=dict)  # key -> [rows, dim]


class EngineService:
    """The engine without its process: the socket and the encoder come from outside.

    Args:
        check: token ids -> what is wrong with a text, or None.
        rate: tokens per second, measured at start.
        horizon: seconds of work that all clients together may have outstanding.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        queue: EncodeQueue,
        thread: EncoderThread,
        running: RunningFile,
        check: Callable[[memoryview], str | None],
        rate: float,
        horizon: float,
    ) -> None:
        self._endpoint = endpoint
        self._horizon = horizon
        self._rate = rate  # tokens per second, running mean over batches
        self._queue = queue
        self._thread = thread
        self._running = running
        self._check = check
        self._pending: dict[RequestName, _Pending] = {}
        self._next_expiry = 0.0
        self.counters = dict.fromkeys(COUNTERS, 0.0)
        endpoint.watch(thread.descriptor)

    def run(self, is_stopping: Callable[[], bool], on_turn: Callable[[], None]) -> None:
        """Serve until `is_stopping`. `on_turn` is called once a turn: the proof that the loop is alive."""
        while not is_stopping():
            self.turn()
            on_turn()

    def turn(self) -> None:
        """Take what came, answer what is finished, drop what nobody waits for, start the next batch."""
        self._endpoint.wait(IDLE_WAIT)
        for event in self._endpoint.receive():
            self._handle(event)
        finished = self._thread.take()
        if finished is not None:
            self._finish(finished)
        self._drop_expired(time.monotonic())
        if self._thread.is_idle:
            self._launch()

    def statistics(self) -> dict[str, float]:
        """Counters and gauges by name."""
        return {
            **self.counters,
            "requests_waiting": float(len(self._pending)),
            "malformed_messages": float(self._endpoint.malformed_messages),
            "dropped_clients": float(self._endpoint.dropped_clients),
        }

    def _handle(self, event: Event) -> None:
        match event:
            case Request():
                self._take(event)
            case Cancelled(name):
                self._drop(name)
            case Gone(identity):
                for name in [name for name in self._pending if name[0] == identity]:
                    self._drop(name)

    def _take(self, request: Request) -> None:
        message = request.message
        if not isinstance(message, Encode):
            self._endpoint.fail(request.name, ErrorCode.INVALID_REQUEST, "the engine only encodes")
            return
        deaths = self._running.deaths(request.name)
        if deaths >= MAX_DEATHS:
            self._running.forgive(request.name)
            text = f"{deaths} engines died while this request was running in them"
            self._endpoint.fail(request.name, ErrorCode.WORKER_CRASHED, text)
            return
        texts = _read_texts(request, message)
        for position, (_, token_ids, _) in enumerate(texts):
            problem = self._check(token_ids)
            if problem is not None:
                self._endpoint.fail(request.name, ErrorCode.INVALID_REQUEST, problem, which=position)
                return
        keys = [key for key, _, _ in texts]
        self._pending[request.name] = _Pending(request, message, keys, set(keys))
        self.counters["requests"] += 1
        for key, token_ids, expansion in texts:
            self._queue.add(key, message.role, token_ids, expansion, request.name, message.client, alone=deaths > 0)

    def _launch(self) -> None:
        batch = self._queue.next_batch()
        if not batch:
            return
        self._running.write(self._queue.running_waiters())
        self._thread.submit(batch)

    def _finish(self, batch: EncodedBatch) -> None:
        self._running.clear()
        self.counters["batches"] += 1
        self.counters["texts"] += len(batch.texts)
        self.counters["tokens"] += sum(len(text.token_ids) for text in batch.texts)
        self.counters["encode_seconds"] += batch.seconds
        self._learn_rate(batch)
        made = {text.key: rows for text, rows in zip(batch.texts, batch.split(), strict=True)}
        for key, waiters in self._queue.finish(batch.texts):
            for name in waiters:
                pending = self._pending.get(name)
                if pending is None:
                    continue
                pending.embeddings[key] = made[key]
                pending.left.discard(key)
                if not pending.left:
                    self._answer(name, pending)

    def _learn_rate(self, batch: EncodedBatch) -> None:
        """Grant what can be done within the horizon at the rate of late."""
        tokens = sum(len(text.token_ids) for text in batch.texts)
        weight = RATE_WEIGHT * min(1.0, tokens / RATE_TOKENS)  # small batches say little
        self._rate += weight * (tokens / batch.seconds - self._rate)
        self._endpoint.set_tokens(int(self._rate * self._horizon))

    def _answer(self, name: RequestName, pending: _Pending) -> None:
        del self._pending[name]
        rows = [len(pending.embeddings[key]) for key in pending.keys]
        dtype = pending.message.reply
        embeddings = torch.cat([pending.embeddings[key] for key in pending.keys]).to(_REPLY_DTYPES[dtype])
        writer = FrameWriter()
        message = Encoded(
            request_id=name[1],
            rows=writer.add_ints(rows),
            embeddings=writer.add(embeddings.numpy().data.cast("B"), dtype, list(embeddings.shape)),
            credits=self._endpoint.credits(),
        )
        self._endpoint.answer(name, message, writer.frames)
        self._running.forgive(name)
        self.counters["answered"] += 1

    def _drop(self, name: RequestName) -> None:
        if self._pending.pop(name, None) is not None:
            self._queue.drop(name)
            self.counters["cancelled"] += 1

    def _drop_expired(self, now: float) -> None:
        if now < self._next_expiry:
            return
        self._next_expiry = now + IDLE_WAIT / 5
        for name in [name for name, pending in self._pending.items() if pending.request.deadline <= now]:
            self._endpoint.fail(name, ErrorCode.DEADLINE_EXCEEDED, "not encoded within the request's time", 1000)
            del self._pending[name]
            self._queue.drop(name)
            self.counters["expired"] += 1


def _read_texts(request: Request, message: Encode) -> list[tuple[bytes, memoryview, int]]:
    """(key, token ids, expansion rows) of each distinct text."""
    frames = request.frames
    keys = split_keys(frames[message.keys.frame - 1])
    lengths, expansion, token_ids = (
        frames[ref.frame - 1].cast("i") for ref in (message.lengths, message.expansion, message.token_ids)
    )
    texts: list[tuple[bytes, memoryview, int]] = []
    offset = 0
    for key, length, extra in zip(keys, lengths, expansion, strict=True):
        texts.append((key, token_ids[offset : offset + length], extra))
        offset += length
    return texts

"""The engine's control thread: from Encode requests to batches of texts, from finished batches to Encoded answers.

The requests' books are `engine.encode_requests`, with their invariants.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.encode_queue import EncodeQueue
from engine.encode_requests import EncodeRequests
from engine.encoder_thread import EncodedBatch, EncoderThread
from engine.recent import RecentEmbeddings
from ipc.messages import Encode, ErrorCode
from ipc.running import MAX_DEATHS, RunningFile
from ipc.service import Cancelled, Endpoint, Event, Gone, Request

IDLE_WAIT = 0.25  # seconds
COUNTERS = ("batches", "texts", "tokens", "encode_seconds")
RATE_WEIGHT = 0.1  # of a full batch in the running mean of tokens per second
RATE_TOKENS = 1024


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
        self._recent = RecentEmbeddings()
        self._requests = EncodeRequests(endpoint, queue, check, running.forgive, self._recent.find)
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
        self._requests.drop_expired(time.monotonic())
        if self._thread.is_idle:
            self._launch()

    def statistics(self) -> dict[str, float]:
        """Counters and gauges by name."""
        return {
            **self._requests.counters,
            **self.counters,
            "requests_waiting": float(len(self._requests)),
            "malformed_messages": float(self._endpoint.malformed_messages),
            "dropped_clients": float(self._endpoint.dropped_clients),
            "suspects": float(len(self._running.suspects)),
        }

    def _handle(self, event: Event) -> None:
        match event:
            case Request():
                with self._running.also(event.name):  # a batch may run meanwhile, in the encoder's thread
                    self._take(event)
            case Cancelled(name):
                self._requests.drop(name)
            case Gone(identity):
                self._requests.drop_client(identity)

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
        self._requests.take(request, message, deaths > 0)

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
        embeddings = batch.split()
        made = [place for place in range(len(batch.texts)) if place not in batch.failed]
        self._recent.add([batch.texts[place].key for place in made], [embeddings[place] for place in made])
        for place, (key, waiters) in enumerate(self._queue.finish(batch.texts)):
            encoded = None if place in batch.failed else embeddings[place]
            for name in waiters:
                self._requests.give(name, key, encoded)

    def _learn_rate(self, batch: EncodedBatch) -> None:
        """Grant what can be done within the horizon at the rate of late."""
        tokens = sum(len(text.token_ids) for text in batch.texts)
        weight = RATE_WEIGHT * min(1.0, tokens / RATE_TOKENS)  # small batches say little
        self._rate += weight * (tokens / batch.seconds - self._rate)
        self._endpoint.set_tokens(int(self._rate * self._horizon))

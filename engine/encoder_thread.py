"""Encodes planned batches, one after the other, in a thread. It keeps no books; whoever plans the batches does.

The control thread goes on answering while a batch runs: torch releases the interpreter lock inside its operations.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch

from engine.encode_queue import QueuedText
from engine.encoder import EncodedTexts, Encoder
from engine.packing import PackedTexts

T = TypeVar("T")
Write = Callable[[Sequence[QueuedText], EncodedTexts], None]

_Encode = Callable[[Sequence[QueuedText], Write | None], tuple[EncodedTexts, frozenset[int]]]

_log = logging.getLogger("maxsimd.engine")


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """What became of a batch."""

    texts: Sequence[QueuedText]
    embeddings: torch.Tensor  # [sum(rows), dim], one text after the other; the device has finished them
    rows: list[int]  # [n]
    failed: frozenset[int]  # places of texts for which the device had no memory, not even alone; they have no rows
    seconds: float

    def split(self) -> Sequence[torch.Tensor]:
        """Each text's [rows, dim] embeddings, in the batch's order."""
        return torch.split(self.embeddings, self.rows)


@dataclass(frozen=True, slots=True)
class _Submitted:
    """A batch to encode, and what to do with its embeddings."""

    texts: Sequence[QueuedText]
    write: Write | None


@dataclass(frozen=True, slots=True)
class _Launched:
    """A batch that the device has been told to encode."""

    texts: Sequence[QueuedText]
    encoded: EncodedTexts
    failed: frozenset[int]
    started: float
    done: torch.cuda.Event | None  # None: it is done


class EncoderThread:
    """Runs an `Encoder` beside the control thread.

    On CUDA two batches may be on their way: the next one is launched while the device still has the one before, so that
    it never waits for a batch to be planned. A second thread waits for what was launched: who waits cannot launch. A
    batch that is quick to launch is launched by whoever submits it: its time is Python's, and two threads that take
    Python's lock from each other need several times as long for it.

    An exception while encoding is not caught here: `take` or `submit` raises it in the control thread, which ends the
    process (what users send has been checked before, so it is our own fault, and a fresh process is the only state we
    can trust).
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._stream = _own_stream(encoder.device)
        self._depth = 2 if self._stream is not None else 1
        self._batches: queue.SimpleQueue[_Submitted | Callable[[], None] | None] = queue.SimpleQueue()
        self._launched: queue.SimpleQueue[_Launched | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[EncodedBatch | BaseException] = queue.SimpleQueue()
        # readable while a finished batch has not been taken
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._submitted = 0  # batches that have not been taken
        self._queued = 0  # batches that the thread was given, since the start
        self._launches = 0  # of these, counted by the thread
        self._busy_since = 0.0
        self._last_delivery = 0.0
        self._threads = [
            threading.Thread(target=self._run, args=[work], name=name, daemon=True)
            for name, work in (("encoder", self._launch_all), ("encoded", self._deliver_all))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether no batch runs or waits to be taken."""
        return not self._submitted

    @property
    def has_room(self) -> bool:
        """Whether another batch may be submitted."""
        return self._submitted < self._depth

    def busy_seconds(self) -> float:
        """How long the oldest batch has been running; 0 if there is none."""
        return time.monotonic() - self._busy_since if self._submitted else 0.0

    def call(self, work: Callable[[], T]) -> T:
        """Run something else in this thread, on its stream. For start-up, before batches are submitted.

        Raises:
            BaseException: what `work` raised.
        """
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised in the thread that called
                done.set_exception(error)

        self._batches.put(run)
        return done.result()

    def submit(self, texts: Sequence[QueuedText], write: Write | None = None) -> None:
        """Encode these, after what was submitted before.

        Args:
            write: called with them and their embeddings on the encoder's stream, in its thread or in this one; what it
                has the device do is done when the batch can be taken. Where the device has no memory for all of them at
                once it is called with parts of them, and never with a text that has failed.

        Raises:
            BaseException: what encoding raised, if that was done here.
        """
        assert self.has_room
        if not self._submitted:
            self._busy_since = time.monotonic()
        self._submitted += 1
        batch = _Submitted(texts, write)
        if not self._launch_here(batch):
            self._queued += 1
            self._batches.put(batch)

    def wait(self) -> None:
        """Until a batch has finished, or is about to be handed over: `take` may still find none. For start-up, before
        there is a loop."""
        select.select([self.descriptor], [], [])

    def take(self) -> EncodedBatch | None:
        """The oldest batch, if it has finished.

        Raises:
            BaseException: what encoding raised.
        """
        try:
            finished = self._finished.get_nowait()
        except queue.Empty:
            return None
        self._submitted -= 1
        self._busy_since = time.monotonic()
        os.eventfd_read(self.descriptor)
        if isinstance(finished, BaseException):
            raise finished
        return finished

    def close(self) -> None:
        """Let what was submitted end, then the threads."""
        self._batches.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self.descriptor)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed over: the control thread raises it
            self._hand_over(error)

    def _launch_all(self) -> None:
        if self._stream is not None:
            torch.cuda.set_stream(self._stream)
        try:
            while (batch := self._batches.get()) is not None:
                if isinstance(batch, _Submitted):
                    self._launched.put(self._launch(batch, self._encode))
                    self._launches += 1
                else:
                    batch()
        finally:
            self._launched.put(None)

    def _launch_here(self, batch: _Submitted) -> bool:
        """Launch it in this thread. False: it is not quick, or not next, or the device has no memory for all of it."""
        if self._stream is None or self._queued != self._launches:
            return False
        if not self._encoder.is_quick_to_launch([len(text.token_ids) for text in batch.texts]):
            return False
        with torch.cuda.stream(self._stream):
            try:
                launched = self._launch(batch, self._encode_whole)
            except torch.OutOfMemoryError:
                return False
        self._launched.put(launched)
        return True

    def _deliver_all(self) -> None:
        while (batch := self._launched.get()) is not None:
            self._deliver(batch)

    def _launch(self, batch: _Submitted, encode: _Encode) -> _Launched:
        started = time.monotonic()
        encoded, failed = encode(batch.texts, batch.write)
        done = None
        if self._encoder.device.type == "cuda":
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
        return _Launched(batch.texts, encoded, failed, started, done)

    def _deliver(self, batch: _Launched) -> None:
        """Only after the device has done it: then another stream may read it."""
        if batch.done is not None:
            batch.done.synchronize()
        now = time.monotonic()
        seconds = now - max(batch.started, self._last_delivery)  # the device had one batch after the other
        self._last_delivery = now
        encoded = batch.encoded
        self._hand_over(EncodedBatch(batch.texts, encoded.embeddings, encoded.rows, batch.failed, seconds))

    def _hand_over(self, finished: EncodedBatch | BaseException) -> None:
        """In this order: who finds it in the queue finds the descriptor readable, and may read it."""
        os.eventfd_write(self.descriptor, 1)
        self._finished.put(finished)

    def _encode(self, texts: Sequence[QueuedText], write: Write | None) -> tuple[EncodedTexts, frozenset[int]]:
        """The embeddings, and the places of the texts that have none for want of memory.

        Another process may have filled the device since the memory plan was made: the batch is halved until it fits.
        """
        try:
            return self._encode_whole(texts, write)
        except torch.OutOfMemoryError:
            pass  # only after this block does the exception let go of the attempt's tensors
        torch.cuda.empty_cache()
        half = len(texts) // 2
        if not half:
            _log.warning("the device has no memory for a text of %d tokens", len(texts[0].token_ids))
            return EncodedTexts(torch.empty(0, self._encoder.dim, device=self._encoder.device), [0]), frozenset([0])
        left, failed_left = self._encode(texts[:half], write)
        right, failed_right = self._encode(texts[half:], write)
        together = EncodedTexts(torch.cat([left.embeddings, right.embeddings]), left.rows + right.rows)
        return together, failed_left | {half + place for place in failed_right}

    def _encode_whole(self, texts: Sequence[QueuedText], write: Write | None) -> tuple[EncodedTexts, frozenset[int]]:
        """As `_encode`, and it has memory.

        Raises:
            torch.OutOfMemoryError: it has not.
        """
        encoded = self._encoder.encode(PackedTexts.of(texts))
        if write is not None:
            write(texts, encoded)
        return encoded, frozenset()


def _own_stream(device: torch.device) -> torch.cuda.Stream | None:
    """So that what the control thread scores meanwhile does not wait behind it; None on a CPU."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

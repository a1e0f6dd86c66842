"""One thread that encodes planned batches, one after the other. It keeps no books; whoever plans the batches does.

The control thread goes on answering while a batch runs: torch releases the interpreter lock inside its operations.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.encode_queue import QueuedText
from engine.encoder import EncodedTexts, Encoder
from engine.packing import PackedTexts

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


class EncoderThread:
    """Runs an `Encoder` beside the control thread.

    An exception while encoding is not caught here: `take` raises it in the control thread, which ends the process (what
    users send has been checked before, so it is our own fault, and a fresh process is the only state we can trust).
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._batches: queue.SimpleQueue[Sequence[QueuedText] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[EncodedBatch | BaseException] = queue.SimpleQueue()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable when a batch is finished
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a batch runs or waits to be taken."""
        return self._busy_since is not None

    def busy_seconds(self) -> float:
        """How long the running batch has been running; 0 if there is none."""
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    def submit(self, texts: Sequence[QueuedText]) -> None:
        """Encode these. One batch at a time."""
        assert not self.is_busy
        self._busy_since = time.monotonic()
        self._batches.put(texts)

    def wait(self) -> None:
        """Until a batch has finished. For start-up, before there is a loop."""
        select.select([self.descriptor], [], [])

    def take(self) -> EncodedBatch | None:
        """The batch that has finished, if one has.

        Raises:
            BaseException: what encoding raised.
        """
        try:
            finished = self._finished.get_nowait()
        except queue.Empty:
            return None
        self._busy_since = None
        os.eventfd_read(self.descriptor)
        if isinstance(finished, BaseException):
            raise finished
        return finished

    def close(self) -> None:
        """Let the running batch end, then the thread."""
        self._batches.put(None)
        self._thread.join()
        os.close(self.descriptor)

    def _run(self) -> None:
        if self._encoder.device.type == "cuda":
            # its own stream: what the control thread scores meanwhile does not wait behind it
            torch.cuda.set_stream(torch.cuda.Stream(self._encoder.device))  # type: ignore[no-untyped-call]
        while (texts := self._batches.get()) is not None:
            started = time.monotonic()
            try:
                encoded, failed = self._encode(texts)
                self._finish()
                seconds = time.monotonic() - started
                self._finished.put(EncodedBatch(texts, encoded.embeddings, encoded.rows, failed, seconds))
            except BaseException as error:  # noqa: BLE001 - handed over: the control thread raises it
                self._finished.put(error)
            os.eventfd_write(self.descriptor, 1)

    def _finish(self) -> None:
        """Until the device has done what was launched: only then may another stream read it."""
        if self._encoder.device.type == "cuda":
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record()
            event.synchronize()

    def _encode(self, texts: Sequence[QueuedText]) -> tuple[EncodedTexts, frozenset[int]]:
        """The embeddings, and the places of the texts that have none for want of memory.

        Another process may have filled the device since the memory plan was made: the batch is halved until it fits.
        """
        try:
            return self._encoder.encode(PackedTexts.of(texts)), frozenset()
        except torch.OutOfMemoryError:
            pass  # only after this block does the exception let go of the attempt's tensors
        torch.cuda.empty_cache()
        half = len(texts) // 2
        if not half:
            _log.warning("the device has no memory for a text of %d tokens", len(texts[0].token_ids))
            return EncodedTexts(torch.empty(0, self._encoder.dim, device=self._encoder.device), [0]), frozenset([0])
        left, failed_left = self._encode(texts[:half])
        right, failed_right = self._encode(texts[half:])
        together = EncodedTexts(torch.cat([left.embeddings, right.embeddings]), left.rows + right.rows)
        return together, failed_left | {half + place for place in failed_right}

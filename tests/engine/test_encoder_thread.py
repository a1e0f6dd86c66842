"""The encoder's thread: batches in order, two on their way where the device is CUDA, errors handed over."""

from __future__ import annotations

import queue
import select
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import pytest
import torch

from engine.encode_queue import QueuedText
from engine.encoder import EncodedTexts, Encoder
from engine.encoder_thread import EncodedBatch, EncoderThread
from engine.packing import PackedTexts

LIMIT = 10.0
CPU = torch.device("cpu")


@dataclass
class Gated:
    """An encoder that waits to be let on."""

    device: torch.device = CPU
    dim: int = 1
    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    error: Exception | None = None

    def encode(self, texts: PackedTexts) -> EncodedTexts:
        self.entered.release()
        assert self.gate.acquire(timeout=LIMIT)
        if self.error is not None:
            raise self.error
        return EncodedTexts(torch.full((sum(texts.lengths), 1), float(texts.token_ids[0])), list(texts.lengths))


@pytest.fixture
def encoder() -> Gated:
    return Gated()


@pytest.fixture
def thread(encoder: Gated) -> Iterator[EncoderThread]:
    made = EncoderThread(cast(Encoder, encoder))
    yield made
    encoder.gate.release(10)
    made.close()


def text(number: int) -> QueuedText:
    return QueuedText(number.to_bytes(16, "little"), "document", memoryview(array("i", [number])), 0)


def take(thread: EncoderThread) -> EncodedBatch:
    batch = None
    while batch is None:
        thread.wait()
        batch = thread.take()
    return batch


def test_one_batch_at_a_time_on_a_cpu(encoder: Gated, thread: EncoderThread) -> None:
    assert thread.is_idle and thread.has_room and thread.busy_seconds() == 0.0
    thread.submit([text(1)])
    assert not thread.has_room and thread.take() is None
    assert encoder.entered.acquire(timeout=LIMIT) and thread.busy_seconds() > 0.0
    encoder.gate.release()
    assert take(thread).embeddings.tolist() == [[1.0]]
    assert thread.is_idle


def test_batches_come_back_in_order(encoder: Gated) -> None:
    thread = EncoderThread(cast(Encoder, encoder))
    thread._depth = 2  # as on CUDA, without one
    thread.submit([text(1)])
    assert thread.has_room and not thread.is_idle
    thread.submit([text(2)])
    assert not thread.has_room
    encoder.gate.release(2)
    assert [take(thread).embeddings.tolist() for _ in range(2)] == [[[1.0]], [[2.0]]]
    assert thread.take() is None and thread.is_idle
    thread.close()


def test_an_error_is_raised_in_the_thread_that_takes(encoder: Gated) -> None:
    encoder.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    thread = EncoderThread(cast(Encoder, encoder))
    thread.submit([text(1)])
    encoder.gate.release()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        take(thread)


def test_closing_lets_the_last_batch_end(encoder: Gated) -> None:
    thread = EncoderThread(cast(Encoder, encoder))
    thread.submit([text(3)])
    encoder.gate.release()
    batch = take(thread)
    thread.close()
    assert batch.split()[0].tolist() == [[3.0]] and not batch.failed


class Noticed:
    """A queue whose items are taken before whoever put them does anything else."""

    def __init__(self, thread: EncoderThread) -> None:
        self.thread = thread
        self.items: list[object] = []
        self.taken: list[EncodedBatch | None] = []
        self.errors: list[BaseException] = []
        self.is_done = threading.Event()

    def put(self, item: object) -> None:
        self.items.append(item)
        try:
            self.taken.append(self.thread.take())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.errors.append(error)
        self.is_done.set()

    def get_nowait(self) -> object:
        return self.items.pop()


def test_a_batch_may_be_taken_as_soon_as_it_is_there(encoder: Gated, thread: EncoderThread) -> None:
    finished = Noticed(thread)
    thread._finished = cast("queue.SimpleQueue[EncodedBatch | BaseException]", finished)
    thread.submit([text(3)])
    encoder.gate.release()
    assert finished.is_done.wait(LIMIT)
    assert not finished.errors
    assert [batch.rows if batch else None for batch in finished.taken] == [[1]]
    assert not select.select([thread.descriptor], [], [], 0)[0]

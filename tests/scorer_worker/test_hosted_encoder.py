"""A device without memory: batches are halved until they fit, and only what cannot fit fails."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.encode_queue import EncodeQueue, QueuedText
from engine.encoder import EncodedTexts, Encoder
from engine.encoder_thread import EncodedBatch, EncoderThread, Write
from engine.packing import PackedTexts
from engine.text_rules import TextRules
from ipc.arrays import FrameWriter
from ipc.messages import IDENTITY_BYTES, Score
from ipc.running import RunningFile
from ipc.service import Request
from scorer_worker.arena import Arena
from scorer_worker.hosted_encoder import EncodedText, HostedEncoder
from scorer_worker.jobs import Job, SuppliedIds, read_job
from scorer_worker.store import EntryState, NewEntry

DIM = 4
CPU = torch.device("cpu")


@dataclass
class SmallDevice:
    """An encoder on a device that has room for so many tokens at a time; a row is its text's length and its place."""

    room: int
    device: torch.device = CPU
    dim: int = DIM
    batches: list[list[int]] = field(default_factory=list)

    def encode(self, texts: PackedTexts) -> EncodedTexts:
        if len(texts.token_ids) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(list(texts.lengths))
        rows = torch.zeros(len(texts.token_ids), self.dim)
        rows[:, :2] = torch.tensor([[length, place] for length in texts.lengths for place in range(length)])
        return EncodedTexts(rows, list(texts.lengths))


class Instant:
    """An encoder's thread on a device that has done every batch by the time somebody looks."""

    has_room = True

    def __init__(self, dim: int = DIM) -> None:
        self._dim = dim
        self._batches: list[EncodedBatch] = []

    @property
    def is_idle(self) -> bool:
        return not self._batches

    def submit(self, texts: Sequence[QueuedText], write: Write) -> None:
        encoded = SmallDevice(room=10**6, dim=self._dim).encode(PackedTexts.of(texts))
        write(texts, encoded)
        self._batches.append(EncodedBatch(texts, encoded.embeddings, encoded.rows, frozenset(), 0.0))

    def take(self) -> EncodedBatch | None:
        return self._batches.pop(0) if self._batches else None


@pytest.fixture
def made() -> Iterator[list[EncoderThread]]:
    threads: list[EncoderThread] = []
    yield threads
    for thread in threads:
        thread.close()


def run(thread: EncoderThread, lengths: list[int]) -> EncodedBatch:
    texts = [
        QueuedText(number.to_bytes(16, "little"), "document", memoryview(array("i", [0] * length)), 0)
        for number, length in enumerate(lengths)
    ]
    thread.submit(texts)
    batch = None
    while batch is None:
        thread.wait()
        batch = thread.take()
    return batch


def finished(hosted: HostedEncoder, thread: EncoderThread) -> list[EncodedText]:
    """What the next batch comes to; `wait` may return a moment before it is there."""
    while not (told := hosted.take_finished()):
        thread.wait()
    return told


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8), room=st.integers(1, 30))
def test_a_batch_is_halved_until_it_fits(lengths: list[int], room: int) -> None:
    thread = EncoderThread(cast(Encoder, SmallDevice(room)))
    try:
        batch = run(thread, lengths)
    finally:
        thread.close()
    assert batch.failed == {place for place, length in enumerate(lengths) if length > room}
    for place, (length, rows) in enumerate(zip(lengths, batch.split(), strict=True)):
        assert len(rows) == (0 if place in batch.failed else length)
        assert rows[:, 0].tolist() == [float(length)] * len(rows)
        assert rows[:, 1].tolist() == list(map(float, range(len(rows))))


def test_only_who_waits_for_the_text_that_cannot_fit_is_told(tmp_path: Path, made: list[EncoderThread]) -> None:
    arena = Arena(2**16, DIM, torch.float32, torch.device("cpu"))
    made.append(EncoderThread(cast(Encoder, SmallDevice(room=10))))
    running = RunningFile(tmp_path / "running")
    hosted = HostedEncoder(EncodeQueue(100), made[0], arena, running, TextRules(1000, 1000, {}))
    entries = {}
    for number, length in enumerate([4, 20, 6]):
        key = bytes([number]) * 16
        reserved = arena.directory.admit([], [NewEntry(key, length, length)])
        assert reserved is not None
        entries[number] = reserved[0]
        hosted.fill(
            reserved[0], SuppliedIds(0, "document", memoryview(array("i", [0] * length)), 0, length), job(number, key)
        )
    hosted.launch()
    told = {text.waiter[1]: text.is_encoded for text in finished(hosted, made[0])}
    assert told == {0: True, 1: False, 2: True}
    for number, entry in entries.items():
        arena.directory.unpin([entry])  # as the worker does when the job ends
        assert entry.state is (EntryState.GONE if number == 1 else EntryState.FILLED)
    arena.directory.check_integrity()
    assert arena.rows[entries[2].start : entries[2].start + 6, 0].tolist() == [6.0] * 6


def test_a_job_that_comes_while_its_text_is_encoded_by_value_gets_it_too(
    tmp_path: Path, made: list[EncoderThread]
) -> None:
    arena = Arena(2**16, DIM, torch.float32, torch.device("cpu"))
    made.append(EncoderThread(cast(Encoder, SmallDevice(room=100))))
    running = RunningFile(tmp_path / "running")
    hosted = HostedEncoder(EncodeQueue(100), made[0], arena, running, TextRules(1000, 1000, {}))
    ids = {length: memoryview(array("i", [0] * length)) for length in (3, 5)}
    by_value = (b"i" * 16, 7)
    for length, token_ids in ids.items():
        hosted.add(bytes([length]) * 16, "document", token_ids, 0, by_value, b"someone!")
    hosted.launch()
    reserved = arena.directory.admit([], [NewEntry(bytes([5]) * 16, 5, 5)])
    assert reserved is not None
    hosted.fill(reserved[0], SuppliedIds(0, "document", ids[5], 0, 5), job(1, bytes([5]) * 16))
    told = finished(hosted, made[0])
    assert [text.waiter[1] for text in told] == [7, 7, 1]
    arena.directory.unpin(reserved)
    assert reserved[0].state is EntryState.FILLED
    assert arena.rows[reserved[0].start : reserved[0].start + 5, 0].tolist() == [5.0] * 5
    arena.directory.check_integrity()


def job(number: int, key: bytes) -> Job:
    writer = FrameWriter()
    keys = writer.add_keys([key, key])
    message = Score(0, number, b"someone!", 0, 1, 1, keys)
    frames = [memoryview(frame).cast("B") for frame in writer.frames]
    return read_job(Request((b"i" * 16, number), message, frames, 1e9), False, 0.0)


def small_batches(tmp_path: Path) -> HostedEncoder:
    """It has two of them on their way at a time."""
    arena = Arena(2**16, DIM, torch.float32, torch.device("cpu"))
    queue = EncodeQueue(100)
    queue._wary = 10
    thread = cast(EncoderThread, Instant())
    return HostedEncoder(queue, thread, arena, RunningFile(tmp_path / "running"), TextRules(1000, 1000, {}))


IDENTITY = b"c" * IDENTITY_BYTES


def add(hosted: HostedEncoder, number: int, alone: bool = False) -> None:
    ids = memoryview(array("i", [1]))
    hosted.add(bytes([number]) * 16, "document", ids, 0, (IDENTITY, number), b"client", alone=alone)


def test_the_batch_that_followed_stays_in_the_running_file(tmp_path: Path) -> None:
    hosted = small_batches(tmp_path)
    for number in range(2):
        add(hosted, number)
        assert hosted.launch()
    assert [text.waiter[1] for text in hosted.take_finished()] == [0]
    successor = RunningFile(tmp_path / "running")
    assert [successor.deaths((IDENTITY, number)) for number in range(2)] == [0, 1]


@pytest.mark.parametrize("suspect", [0, 1])
def test_no_batch_follows_a_suspects_nor_is_a_suspects_that_follows(tmp_path: Path, suspect: int) -> None:
    hosted = small_batches(tmp_path)
    for number in range(2):
        add(hosted, number, alone=number == suspect)
    assert hosted.launch()
    assert not hosted.launch()
    hosted.take_finished()
    assert hosted.launch() or suspect == 0

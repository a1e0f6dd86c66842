"""However a request ends: it is answered once or dropped, and holds nothing; its name was in the running file.

On an endpoint without a socket, with an encoder that has done a batch as soon as it has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from engine.encode_queue import EncodeQueue
from engine.encoder_thread import EncoderThread
from engine.text_rules import TextRules
from ipc.arrays import FrameWriter
from ipc.codec import decode_to_service, encode
from ipc.messages import IDENTITY_BYTES, KEY_BYTES, Encode, Encoded, ErrorCode, Failed, Missing, Scores
from ipc.running import RequestName, RunningFile
from ipc.service import Cancelled, Endpoint, Gone, Request
from scorer_worker.arena import Arena
from scorer_worker.batcher import Batcher
from scorer_worker.hosted_encoder import HostedEncoder
from scorer_worker.jobs import JobState
from scorer_worker.scorer import Scorer
from scorer_worker.store import ROW_GRAIN, Entry, EntryState, NewEntry
from scorer_worker.worker import Worker
from tests.scorer_worker.running_worker import CLIENT, DIM
from tests.scorer_worker.test_hosted_encoder import Instant
from tests.scorer_worker.test_turns import KEYS, Desk, until_answered
from tests.scorer_worker.test_worker import TWO, score_message, unit

OTHER = b"another!"
MANY = 300  # pairs: several batches


class OpenDesk(Desk):
    """It takes Encode too."""

    dim = DIM

    def fail(
        self, name: RequestName, code: ErrorCode, message: str, retry_after_ms: int = 0, which: int | None = None
    ) -> None:
        super().fail(name, code, message, retry_after_ms)

    def ask_for_many_pairs(self, number: int) -> RequestName:
        return self._come(number, *score_message(KEYS, 1, TWO, pairs=[(0, 0)] * MANY), CLIENT)

    def ask_for_embeddings(self, number: int) -> RequestName:
        writer = FrameWriter()
        one, none = writer.add_ints([1]), writer.add_ints([0])
        keys = writer.add_keys([bytes([number]) * KEY_BYTES])
        message = Encode(0, number, CLIENT, 0, "document", keys, one, none, writer.add_ints([7]))
        read, frames = decode_to_service([memoryview(bytearray(part)) for part in encode(message, writer.frames)])
        assert isinstance(read, Encode)
        name = (CLIENT, number)
        self.events.append(Request(name, read, frames, time.monotonic() + 60.0))
        return name


@pytest.fixture
def desk() -> OpenDesk:
    return OpenDesk()


@pytest.fixture
def worker(desk: OpenDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr("scorer_worker.worker.READ_SECONDS", 60.0)
    arena = Arena(4096 * DIM * 4, DIM, torch.float32, torch.device("cpu"))
    batcher = Batcher(max_batch_pairs=64, max_batch_work=10**6, slice_work=10**5, wary_work=10**5)
    thread = cast(EncoderThread, Instant(DIM))
    encoding = RunningFile(tmp_path / "encoding")
    hosted = HostedEncoder(EncodeQueue(1000), thread, arena, encoding, TextRules(1000, 1000, {}))
    running = RunningFile(tmp_path / "running")
    return Worker(cast(Endpoint, desk), arena, Scorer(arena), batcher, running, hosted, keep_entries=True)


def fill_store(worker: Worker) -> list[Entry]:
    """Somebody else holds all there is."""
    directory = worker._directory
    admitted = [directory.admit([], [NewEntry(bytes([n]) * 16, directory.max_job_rows, 0)]) for n in range(4)]
    return [entry for entries in admitted if entries is not None for entry in entries]


def waits_for_room(worker: Worker, desk: OpenDesk) -> RequestName:
    fill_store(worker)
    name = desk.ask(1, TWO)
    while name not in worker._jobs:
        worker.turn()
    return name


def waits_for_the_encoder(worker: Worker, desk: OpenDesk) -> RequestName:
    name = desk.ask_with_ids(1, CLIENT)
    worker._receive()
    return name


def is_being_encoded(worker: Worker, desk: OpenDesk) -> RequestName:
    name = waits_for_the_encoder(worker, desk)
    assert worker._launch(only_due=False)
    return name


def is_being_scored(worker: Worker, desk: OpenDesk) -> RequestName:
    name = desk.ask_for_many_pairs(1)
    while name not in worker._jobs or not worker._jobs[name].scored:
        worker.turn()
    return name


STATES: dict[Callable[[Worker, OpenDesk], RequestName], JobState] = {
    waits_for_room: JobState.WAITING,
    waits_for_the_encoder: JobState.ENCODING,
    is_being_encoded: JobState.ENCODING,
    is_being_scored: JobState.SCORING,
}


def cancel(worker: Worker, desk: OpenDesk, name: RequestName) -> None:
    desk.events.append(Cancelled(name))
    worker._receive()


def lose_client(worker: Worker, desk: OpenDesk, name: RequestName) -> None:
    desk.events.append(Gone(name[0]))
    worker._receive()


def pass_time(worker: Worker, desk: OpenDesk, name: RequestName) -> None:
    worker._drop_expired(time.monotonic() + 1000.0)
    assert desk.failures.pop(name) is ErrorCode.DEADLINE_EXCEEDED
    del desk.answers[name]


@pytest.mark.parametrize("end", [cancel, lose_client, pass_time])
@pytest.mark.parametrize("begin", STATES)
def test_whatever_ends_a_job_in_whatever_state_it_holds_nothing_any_more(
    worker: Worker,
    desk: OpenDesk,
    begin: Callable[[Worker, OpenDesk], RequestName],
    end: Callable[[Worker, OpenDesk, RequestName], None],
) -> None:
    directory = worker._directory
    name = begin(worker, desk)
    assert worker._jobs[name].state is STATES[begin]
    others = sum(map(directory.pins, directory._entries.values())) if begin is waits_for_room else 0
    end(worker, desk, name)
    assert not desk.answers and not worker._jobs and not len(worker._batcher) and not len(worker._waiting)
    worker._take_encoded()  # what runs is finished
    assert sum(map(directory.pins, directory._entries.values())) == others
    directory.check_integrity()
    if begin is not waits_for_room:
        assert directory.is_unheld
        assert until_answered(worker, desk, desk.ask(2, TWO, OTHER)) and name not in desk.answers


@pytest.mark.parametrize("end", [cancel, lose_client, pass_time])
def test_what_was_encoded_stays_though_nobody_waits_for_it_and_what_waited_is_not_encoded(
    worker: Worker, desk: OpenDesk, end: Callable[[Worker, OpenDesk, RequestName], None]
) -> None:
    """H1 and H2."""
    name = is_being_encoded(worker, desk)
    later = desk.ask_with_ids(2, CLIENT)
    worker._receive()
    entries = [worker._jobs[each].pinned for each in (name, later)]
    for each in (name, later):
        if each in worker._jobs:
            end(worker, desk, each)
            desk.answers.clear()
    worker._take_encoded()
    assert {entry.state for entry in entries[0]} == {EntryState.FILLED}
    assert {entry.state for entry in entries[1]} == {EntryState.GONE}
    assert worker._directory.is_unheld
    assert not worker._launch(only_due=False)
    assert until_answered(worker, desk, desk.ask_with_ids(1, OTHER)) == 1, "it is there"


def test_a_text_that_two_jobs_wait_for_is_encoded_though_the_first_has_gone(worker: Worker, desk: OpenDesk) -> None:
    """H2."""
    first, second = desk.ask_with_ids(1, CLIENT), desk.ask_with_ids(1, OTHER)
    worker._receive()
    cancel(worker, desk, first)
    until_answered(worker, desk, second)
    assert isinstance(desk.answers[second], Scores) and first not in desk.answers
    assert worker.statistics()["encoded_texts"] == 3


@pytest.mark.parametrize("end", [cancel, lose_client])
def test_an_encode_that_nobody_waits_for_is_dropped(
    worker: Worker, desk: OpenDesk, end: Callable[[Worker, OpenDesk, RequestName], None]
) -> None:
    name = desk.ask_for_embeddings(1)
    worker._receive()
    assert worker._read_next() and worker.statistics()["encode_requests_waiting"] == 1
    end(worker, desk, name)
    for _ in range(5):
        worker.turn()
    assert not desk.answers and worker.statistics()["encode_requests_waiting"] == 0


def test_an_encode_that_is_overdue_is_told_so(worker: Worker, desk: OpenDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    name = desk.ask_for_embeddings(1)
    monkeypatch.setattr(worker, "_launch", lambda only_due: False)  # the encoder has no time for it
    while not worker.statistics()["encode_requests_waiting"]:
        worker.turn()
    now = time.monotonic()
    monkeypatch.setattr("scorer_worker.worker.time.monotonic", lambda: now + 1000.0)
    worker.turn()
    assert desk.failures == {name: ErrorCode.DEADLINE_EXCEEDED}


def test_a_job_that_is_in_its_own_way_has_the_store_cleared(worker: Worker, desk: OpenDesk) -> None:
    """S5: a text that needs a run of slabs, with texts that lie in every run there is; nobody else holds anything."""
    directory = worker._directory
    num_texts = directory.capacity_rows // ROW_GRAIN
    keys = [b"%d" % number for number in range(num_texts)]
    for key in keys:
        admitted = directory.admit([], [NewEntry(key.ljust(KEY_BYTES, b"."), ROW_GRAIN, 0)])
        assert admitted is not None
        directory.fill(admitted[0])
        directory.unpin(admitted)
    few = keys[:: num_texts // 32]
    rows = directory.max_job_rows - ROW_GRAIN * len(few)
    name = desk._come(1, *score_message([b"long", *few], 1, {0: [unit(0)] * rows}), CLIENT)
    until_answered(worker, desk, name)
    assert isinstance(desk.answers[name], Missing), "they have gone with all others"
    directory.check_integrity()


class Died(Exception):
    """Where a real one would be gone."""


def dies(*arguments: Any, **named: Any) -> Any:
    raise Died


ASKS: dict[str, Callable[[OpenDesk], RequestName]] = {
    "scorer_worker.worker.read_job": lambda desk: desk.ask(1),
    "engine.encode_requests.EncodeRequests.take": lambda desk: desk.ask_for_embeddings(1),
    "scorer_worker.store.StoreDirectory.admit": lambda desk: desk.ask(1, TWO),
    "scorer_worker.scorer.Scorer.score": lambda desk: desk.ask(1, TWO),
}


@pytest.mark.parametrize("where", ASKS)
def test_a_request_that_ends_the_worker_is_known_to_the_next_one(
    worker: Worker, desk: OpenDesk, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W4: as it is read, as it gets room, as it is scored."""
    before = desk.ask(9, {0: [unit(1)], 1: TWO[1], 2: TWO[2]}, OTHER, query=b"other")
    until_answered(worker, desk, before)
    monkeypatch.setattr(where, dies)
    name = ASKS[where](desk)
    with pytest.raises(Died):
        until_answered(worker, desk, name)
    successor = RunningFile(tmp_path / "running")
    identity, number = name
    assert successor.deaths((identity.ljust(IDENTITY_BYTES, b"\0"), number)) == len(successor.suspects) == 1


def test_a_request_that_waits_is_no_suspect(worker: Worker, desk: OpenDesk, tmp_path: Path) -> None:
    """W4: nothing is done for it."""
    waits_for_room(worker, desk)
    assert len(RunningFile(tmp_path / "running").suspects) == 0


def test_a_request_that_was_answered_is_no_suspect(worker: Worker, desk: OpenDesk, tmp_path: Path) -> None:
    names = [desk.ask(1, TWO), desk.ask_with_ids(2), desk.ask_for_embeddings(3), desk.ask(4)]
    for name in names:
        until_answered(worker, desk, name)
    assert not any(isinstance(desk.answers[name], Failed) for name in names[:3])
    assert isinstance(desk.answers[names[2]], Encoded)
    assert len(RunningFile(tmp_path / "running").suspects) == len(RunningFile(tmp_path / "encoding").suspects) == 0

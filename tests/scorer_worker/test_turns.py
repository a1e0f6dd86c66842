"""Who waits for whom in the worker's turns: on an endpoint without a socket, so that a test decides what has come."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec
import pytest
import torch

from engine.encode_queue import EncodeQueue
from engine.encoder import Encoder
from engine.encoder_thread import EncoderThread
from engine.text_rules import TextRules
from ipc.arrays import Buffer, FrameWriter
from ipc.codec import decode_to_service, encode
from ipc.messages import Credits, ErrorCode, Failed, Message, Missing, Role, Score, Scores, SuppliedTokens
from ipc.running import RequestName, RunningFile
from ipc.service import Cancelled, Endpoint, Event, Gone, Request
from scorer_worker.arena import Arena
from scorer_worker.batcher import Batcher
from scorer_worker.hosted_encoder import HostedEncoder
from scorer_worker.jobs import JobState
from scorer_worker.pairs import PairGroup
from scorer_worker.scorer import Scorer
from scorer_worker.store import ROW_GRAIN, NewEntry
from scorer_worker.worker import Worker
from tests.scorer_worker.running_worker import CLIENT, DIM
from tests.scorer_worker.test_hosted_encoder import Instant, SmallDevice
from tests.scorer_worker.test_worker import TWO, Rows, score_message, unit

KEYS = [b"q", b"a", b"b"]
STORE_ROWS = 4096


@dataclass
class Desk:
    """An endpoint: what has come, and what was answered."""

    events: list[Event] = field(default_factory=list)
    answers: dict[RequestName, Message] = field(default_factory=dict)
    failures: dict[RequestName, ErrorCode] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    malformed_messages = dropped_clients = 0

    def wait(self, timeout: float) -> None:
        self.waits.append(timeout)

    def receive(self) -> Iterator[Event]:
        come, self.events = self.events, []
        yield from come

    def credits(self) -> Credits:
        return Credits(2**26, 2**20)

    def answer(self, name: RequestName, message: Message, frames: Sequence[Buffer] = ()) -> None:
        assert name not in self.answers, "answered twice"
        self.answers[name] = message

    def fail(self, name: RequestName, code: ErrorCode, message: str, retry_after_ms: int = 0) -> None:
        self.answer(name, Failed(name[1], code, message, retry_after_ms))
        self.failures[name] = code

    def ask(
        self,
        number: int,
        supplied: dict[int, Rows] | None = None,
        client: bytes = CLIENT,
        seconds: float = 60.0,
        query: bytes = KEYS[0],
    ) -> RequestName:
        """A Score of KEYS comes, over a connection of its own client."""
        return self._come(number, *score_message([query, *KEYS[1:]], 1, supplied), client, seconds)

    def ask_with_ids(self, number: int, client: bytes = b"another!", length: int = 5) -> RequestName:
        """A Score of new texts comes, and brings ids, so many of each."""
        message, writer = score_message([b"%d %d" % (number, text) for text in range(3)], 1)
        for role, which in (("query", [0]), ("document", [1, 2])):
            ids = writer.add_ints([7] * (length * len(which)))
            lengths, expansion = writer.add_ints([length] * len(which)), writer.add_ints([0] * len(which))
            message.supplied.append(SuppliedTokens(cast(Role, role), writer.add_ints(which), lengths, expansion, ids))
        return self._come(number, message, writer, client)

    def _come(
        self, number: int, message: Score, writer: FrameWriter, client: bytes, seconds: float = 60.0
    ) -> RequestName:
        message = msgspec.structs.replace(message, client=client)
        parts = [memoryview(bytearray(part)) for part in encode(message, writer.frames)]
        read, frames = decode_to_service(parts)
        name = (client, number)
        assert isinstance(read, Score)
        self.events.append(Request(name, read, frames, time.monotonic() + seconds))
        return name


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def worker(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """It reads one request at a time, however fast the machine is."""
    monkeypatch.setattr("scorer_worker.worker.READ_SECONDS", 0.0)
    arena = Arena(STORE_ROWS * DIM * 4, DIM, torch.float32, torch.device("cpu"))
    batcher = Batcher(max_batch_pairs=64, max_batch_work=10**6, slice_work=10**5, wary_work=10**5)
    running = RunningFile(tmp_path / "running")
    return Worker(cast(Endpoint, desk), arena, Scorer(arena), batcher, running, None, keep_entries=True)


@pytest.fixture
def hosting(worker: Worker, tmp_path: Path) -> Iterator[Worker]:
    """The same with an encoder."""
    arena, endpoint = worker._arena, worker._endpoint
    thread = EncoderThread(cast(Encoder, SmallDevice(room=10**6, dim=DIM)))
    running = RunningFile(tmp_path / "running.encoder")
    hosted = HostedEncoder(EncodeQueue(1000), thread, arena, running, TextRules(1000, 1000, {}))
    yield Worker(endpoint, arena, worker._scorer, worker._batcher, worker._running, hosted, keep_entries=True)
    thread.close()


def until_answered(worker: Worker, desk: Desk, name: RequestName) -> int:
    """How many turns that takes; those in which the encoder is busy do not count."""
    turn = 0
    end = time.monotonic() + 30.0
    while name not in desk.answers:
        assert time.monotonic() < end, "not answered in 30 s"
        encoder = worker._encoder
        turn += encoder is None or encoder._thread.is_idle
        assert turn < 100, "not answered in 99 turns"
        worker.turn()
    return turn


def test_who_brings_nothing_is_answered_in_the_turn_in_which_it_comes(worker: Worker, desk: Desk) -> None:
    until_answered(worker, desk, desk.ask(0, TWO))
    others = [desk.ask(number, {0: [unit(3)], 1: TWO[1], 2: TWO[2]}, query=b"%d" % number) for number in range(1, 20)]
    cached = desk.ask(99)
    assert until_answered(worker, desk, cached) == 1
    assert isinstance(desk.answers[cached], Scores)
    assert desk.answers.keys().isdisjoint(others)
    for name in others:
        until_answered(worker, desk, name)


def test_who_comes_while_others_are_scored_does_not_wait_for_the_next_step_too(
    worker: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_answered(worker, desk, desk.ask(0, TWO))
    score = worker._scorer.score
    cached: list[RequestName] = []

    def score_while_somebody_comes(groups: Sequence[PairGroup]) -> Sequence[float]:
        if not cached:
            cached.append(desk.ask(99, client=b"another!"))
        return score(groups)

    monkeypatch.setattr(worker._scorer, "score", score_while_somebody_comes)
    desk.ask(1)
    brings = desk.ask(2, TWO)
    worker.turn()
    assert isinstance(desk.answers[cached[0]], Scores)
    assert brings not in desk.answers


def test_who_brings_ids_of_a_few_texts_has_room_in_the_turn_in_which_it_comes(
    hosting: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        desk.ask(number, TWO, query=b"%d" % number)
    names = [desk.ask_with_ids(number) for number in range(8, 10)]
    hosting.turn()
    assert hosting.statistics()["store_insertions"] == 0, "they take turns where there is no time for more"
    monkeypatch.setattr("scorer_worker.worker.READ_SECONDS", 60.0)
    names.append(desk.ask_with_ids(10))
    hosting.turn()
    assert hosting.statistics()["store_insertions"] >= 3
    assert hosting._jobs[names[-1]].state is JobState.ENCODING
    monkeypatch.setattr("scorer_worker.worker.FEW_NEW_TEXTS", 2)
    names.append(desk.ask_with_ids(11))
    hosting.turn()
    assert names[-1] not in hosting._jobs or hosting._jobs[names[-1]].state is JobState.WAITING
    for name in names:
        until_answered(hosting, desk, name)
        assert isinstance(desk.answers[name], Scores)


@pytest.mark.parametrize(("seconds", "admitted"), [(0.0, 1), (60.0, 3)])
def test_jobs_that_wait_for_room_get_it_several_in_a_step_while_there_is_time(
    worker: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch, seconds: float, admitted: int
) -> None:
    """W6"""
    names = [desk.ask(number, TWO, client=client) for number, client in enumerate((b"client_a", b"client_b", CLIENT))]
    worker._receive()
    while worker._read_next():
        assert not desk.answers
    assert len(worker._waiting) == 3
    monkeypatch.setattr("scorer_worker.worker.READ_SECONDS", seconds)
    assert worker._admit_next()
    assert len(worker._waiting) == 3 - admitted
    for name in names:
        until_answered(worker, desk, name)


def test_who_brings_a_few_ids_without_end_keeps_nobody_from_being_read_and_admitted(
    hosting: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorer_worker.worker.READ_SECONDS", 60.0)
    assert hosting._encoder is not None
    monkeypatch.setattr(hosting._encoder, "_thread", Instant(DIM))
    monkeypatch.setattr("engine.encode_queue.WARY_BATCHES", 10**6)
    hosting._encoder._queue._wary = 10**6
    monkeypatch.setattr("scorer_worker.worker.LIGHT_TEXTS", 2)
    numbers = itertools.count(1)
    for _ in range(3):  # so that in each turn some of them can be taken or started
        for _ in range(8):
            desk.ask_with_ids(next(numbers))
        hosting.turn()
    brings = desk.ask(0, TWO)
    answered = 0
    for turn in range(60):
        desk.ask(turn, client=b"reads!!!")  # more than there is time to read
        desk.ask(100 + turn, client=b"reads!!!")
        hosting.turn()
        done = [name for name in desk.answers if name != brings]
        answered += len(done)
        for name in done:
            del desk.answers[name]
            if name[0] != b"reads!!!":
                desk.ask_with_ids(next(numbers))
    assert brings in desk.answers
    assert answered > 100


def test_who_is_never_read_is_told_so(hosting: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    name = desk.ask(0, TWO, seconds=0.0)
    monkeypatch.setattr(hosting, "_read_next", lambda: False)
    monkeypatch.setattr("scorer_worker.worker.IDLE_WAIT", 0.0)
    assert until_answered(hosting, desk, name) <= 2
    assert desk.failures[name] is ErrorCode.DEADLINE_EXCEEDED
    assert hosting.statistics()["jobs"] == 0


def test_who_brings_ids_of_a_few_texts_waits_behind_who_has_found_no_room(
    hosting: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorer_worker.worker.READ_SECONDS", 60.0)
    until_answered(hosting, desk, desk.ask(0, TWO))
    directory = hosting._directory
    most = directory.max_job_rows
    full = [directory.admit([], [NewEntry(bytes([number]) * 16, most, 0)]) for number in range(3)]
    assert all(full)
    desk.answers.clear()
    large = desk.ask(1, {0: [unit(0)] * (most - 2 * ROW_GRAIN), 1: TWO[1], 2: TWO[2]}, query=b"long")
    fits = desk.ask_with_ids(2)
    until_answered(hosting, desk, fits)
    hosting.turn()
    assert large in hosting._jobs
    later = [desk.ask_with_ids(number) for number in range(3, 6)]
    hosting.turn()
    states = [hosting._jobs[name].state for name in [large, *later]]
    assert states == [JobState.WAITING] * 4, "room that comes free is for who waits for it"
    for entries in full:
        assert entries is not None
        directory.unpin(entries)
    for name in [large, *later]:
        until_answered(hosting, desk, name)
        assert isinstance(desk.answers[name], Scores)
    directory.check_integrity()


def test_ids_of_a_few_texts_that_find_no_room_are_given_it_later(
    hosting: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorer_worker.worker.READ_SECONDS", 60.0)
    directory = hosting._directory
    full = [directory.admit([], [NewEntry(bytes([number]) * 16, directory.max_job_rows, 0)]) for number in range(4)]
    assert all(full)
    name, later = desk.ask_with_ids(1), desk.ask_with_ids(2, b"a third!")
    hosting._receive()
    assert hosting._jobs[name].state is JobState.WAITING
    assert hosting._jobs[name].without_room_since is not None
    assert hosting._jobs[later].without_room_since is None, "it was not tried"
    for entries in full:
        assert entries is not None
        directory.unpin(entries)
    until_answered(hosting, desk, name)
    assert isinstance(desk.answers[name], Scores)


def test_who_asks_for_many_texts_waits_for_a_step(worker: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    until_answered(worker, desk, desk.ask(0, TWO))
    monkeypatch.setattr("scorer_worker.worker.LIGHT_TEXTS", 2)
    many = [desk.ask(number) for number in range(1, 4)]
    assert [until_answered(worker, desk, name) for name in many] == [
        2,
        1,
        1,
    ]  # each read in one turn, scored in the next


def test_who_asks_for_many_texts_without_end_keeps_nobody_from_being_admitted(
    worker: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_answered(worker, desk, desk.ask(0, TWO))
    monkeypatch.setattr("scorer_worker.worker.LIGHT_TEXTS", 2)
    brings = desk.ask(1, {0: [unit(3)], 1: TWO[1], 2: TWO[2]}, client=b"another!", query=b"new")
    for number in range(2, 12):
        desk.ask(number)
        worker.turn()
    assert brings in desk.answers


def test_who_is_to_be_read_does_not_wait_until_all_that_were_read_have_room(
    worker: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorer_worker.worker.READ_SECONDS", 60.0)
    for number in range(12):
        desk.ask(number, {0: [unit(3)], 1: TWO[1], 2: TWO[2]}, query=b"%d" % number)
    worker.turn()
    assert worker.statistics()["jobs_waiting_for_room"] == 12
    monkeypatch.setattr("scorer_worker.worker.READ_SECONDS", 0.0)
    later = desk.ask(0, {0: [unit(3)], 1: TWO[1], 2: TWO[2]}, client=b"another!", query=b"new")
    assert until_answered(worker, desk, later) <= 6


def test_clients_take_turns_in_being_read(worker: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    until_answered(worker, desk, desk.ask(0, TWO))
    monkeypatch.setattr("scorer_worker.worker.LIGHT_TEXTS", 2)
    for number in range(1, 40):
        desk.ask(number)
    worker.turn()
    name = desk.ask(1, client=b"another!")
    assert until_answered(worker, desk, name) <= 4


def test_what_is_read_too_late_is_not_scored(worker: Worker, desk: Desk) -> None:
    name = desk.ask(0, TWO, seconds=-1.0)
    assert until_answered(worker, desk, name) == 1
    answer = desk.failures[name]
    assert answer is ErrorCode.DEADLINE_EXCEEDED
    assert worker.statistics()["expired"] == 1 and worker.statistics()["requests"] == 0


def test_what_is_missing_is_told_in_that_turn_too(worker: Worker, desk: Desk) -> None:
    others = [desk.ask(number, TWO) for number in range(5)]
    name = desk.ask(99)
    assert until_answered(worker, desk, name) == 1
    assert isinstance(desk.answers[name], Missing)
    assert desk.answers.keys().isdisjoint(others)


def test_a_turn_takes_one_step_and_does_not_wait_before_the_next(worker: Worker, desk: Desk) -> None:
    desk.ask(0, TWO)
    desk.ask(1, TWO)
    seen = []
    for _ in range(6):
        worker.turn()
        seen.append((worker.statistics()["requests"], worker.statistics()["store_insertions"]))
    # read, admit, read, admit: the second finds what the first has brought
    assert seen == [(1, 0), (1, 3), (2, 3), (2, 3), (2, 3), (2, 3)]
    assert [wait == 0 for wait in desk.waits] == [False, True, True, True, True, False]
    assert len(desk.answers) == 2


@pytest.mark.parametrize("event", [Cancelled((CLIENT, 1)), Gone(CLIENT)], ids=["cancelled", "gone"])
def test_a_request_that_was_not_read_yet_is_dropped(worker: Worker, desk: Desk, event: Event) -> None:
    desk.ask(0, TWO, client=b"another!")
    name = desk.ask(1, TWO)
    worker.turn()
    assert worker.statistics()["jobs"] == 2
    desk.events.append(event)
    until_answered(worker, desk, (b"another!", 0))
    assert worker.statistics()["jobs"] == 0
    assert worker.statistics()["requests"] == 1
    assert name not in desk.answers


def test_who_needs_no_room_does_not_wait_behind_who_does_but_if_that_one_is_stuck(
    worker: Worker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_answered(worker, desk, desk.ask(0, TWO))
    directory = worker._directory
    full = [
        directory.admit([], [NewEntry(bytes([number]) * 16, directory.max_job_rows, 0)]) for number in range(3)
    ]  # with what is in the store already there is no slab left
    assert all(full)
    rows = directory.max_job_rows - 2 * ROW_GRAIN
    large = desk.ask(1, {0: [unit(0)] * rows, 1: TWO[1], 2: TWO[2]}, query=b"long")
    for _ in range(5):
        worker.turn()
    assert large not in desk.answers
    cached = desk.ask(2)
    assert until_answered(worker, desk, cached) == 1
    monkeypatch.setattr("scorer_worker.worker.STUCK_SECONDS", 0.0)
    later = desk.ask(3)
    for _ in range(5):
        worker.turn()
    assert later not in desk.answers, "what it would hold could be in the way of who has waited so long"
    for entries in full:
        assert entries is not None
        directory.unpin(entries)
    until_answered(worker, desk, large)
    until_answered(worker, desk, later)
    directory.check_integrity()

"""Requests of every kind, many at a time: each is answered once and rightly, or dropped, and nothing stays held.

On an endpoint without a socket, with an encoder that has done a batch as soon as it has it. A key stands for one text,
whoever brings it, so every score is known.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch

from engine.encode_queue import EncodeQueue
from engine.encoder_thread import EncoderThread
from engine.text_rules import TextRules
from ipc.arrays import Buffer, FrameWriter
from ipc.messages import (
    KEY_BYTES,
    ArrayRef,
    Message,
    Missing,
    Score,
    Scores,
    SuppliedEmbeddings,
    SuppliedTokens,
)
from ipc.running import RequestName, RunningFile
from ipc.service import Cancelled, Endpoint, Gone
from scorer_worker.arena import Arena
from scorer_worker.batcher import Batcher
from scorer_worker.hosted_encoder import HostedEncoder
from scorer_worker.scorer import Scorer
from scorer_worker.worker import Worker
from tests.scorer_worker.running_worker import DIM
from tests.scorer_worker.test_ends import OpenDesk
from tests.scorer_worker.test_hosted_encoder import Instant

CLIENTS = (b"client_a", b"client_b", b"client_c")
STORE_ROWS = 2560  # a request may have a quarter of them, and some want nearly that
TURNS, LIMIT = 150, 30.0


def rows_of(text: int) -> int:
    return 1 + text * 7 % 37


def embeddings_of(text: int) -> list[list[float]]:
    """As `Instant` makes them of so many tokens: the number of rows, and which one it is."""
    return [[float(rows_of(text)), float(row)] + [0.0] * (DIM - 2) for row in range(rows_of(text))]


def score_of(query: int, document: int) -> float:
    last = rows_of(document) - 1
    return float(sum(rows_of(query) * rows_of(document) + row * last for row in range(rows_of(query))))


@dataclass(frozen=True)
class Asked:
    texts: Sequence[int]  # queries first; some twice
    num_queries: int
    pairs: Sequence[tuple[int, int]]  # (query, document), by place among them


class Frames(OpenDesk):
    """It keeps what came with an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: dict[RequestName, list[bytes]] = {}

    def answer(self, name: RequestName, message: Message, frames: Sequence[Buffer] = ()) -> None:
        super().answer(name, message, frames)
        self.frames[name] = [bytes(memoryview(frame)) for frame in frames]

    def ints(self, name: RequestName, ref: ArrayRef) -> list[int]:
        return array("i", self.frames[name][ref.frame - 1]).tolist()

    def floats(self, name: RequestName, ref: ArrayRef) -> list[float]:
        return array("f", self.frames[name][ref.frame - 1]).tolist()

    def ask_anything(self, number: int, choose: random.Random) -> tuple[RequestName, Asked]:
        """Few or many texts, some of them twice; all pairs or some; none, some or all supplied in either way."""
        num_queries, num_documents = choose.randint(1, 3), choose.randint(1, choose.choice([3, 12, 90]))
        pool = choose.choice([8, 60])
        texts = [choose.randrange(pool) for _ in range(num_queries + num_documents)]
        writer = FrameWriter()
        keys = writer.add_keys([(b"k%d" % text).ljust(KEY_BYTES, b".") for text in texts])
        pairs, ref = [(q, d) for q in range(num_queries) for d in range(num_documents)], None
        if choose.random() < 0.4:
            pairs = [choose.choice(pairs) for _ in range(choose.randint(1, 30))]
            ref = writer.add(array("i", [place for pair in pairs for place in pair]), "int32", [len(pairs), 2])
        share = choose.choice([0, 0.5, 0.95, 1, 1])
        supplied = [place for place in range(len(texts)) if choose.random() < share]
        ids = [place for place in supplied if choose.random() < 0.5]
        parts = supply(writer, texts, ids, [place for place in supplied if place not in ids], choose.random() < 0.5)
        client, seconds = choose.choice(CLIENTS), choose.choice([60.0, 60.0, 60.0, 0.02])
        message = Score(0, number, client, 0, num_queries, num_documents, keys, ref, parts)
        return self._come(number, message, writer, client, seconds), Asked(texts, num_queries, pairs)


def supply(
    writer: FrameWriter, texts: Sequence[int], ids: Sequence[int], values: Sequence[int], keep: bool
) -> list[SuppliedEmbeddings | SuppliedTokens]:
    parts: list[SuppliedEmbeddings | SuppliedTokens] = []
    if values:
        rows = [rows_of(texts[place]) for place in values]
        data = array("f", [x for place in values for row in embeddings_of(texts[place]) for x in row])
        which, lengths, tokens = writer.add_ints(values), writer.add_ints(rows), writer.add_ints(rows)
        ref = writer.add(data, "float32", [sum(rows), DIM])
        parts.append(SuppliedEmbeddings(which, lengths, tokens, ref, keep))
    if ids:
        rows = [rows_of(texts[place]) for place in ids]
        which, lengths, none = writer.add_ints(ids), writer.add_ints(rows), writer.add_ints([0] * len(ids))
        parts.append(SuppliedTokens("document", which, lengths, none, writer.add_ints([7] * sum(rows))))
    return parts


def assert_right(desk: Frames, name: RequestName, asked: Asked) -> None:
    answer = desk.answers[name]
    rows = [rows_of(text) for text in asked.texts]
    if isinstance(answer, Scores):
        documents = asked.texts[asked.num_queries :]
        scores = [score_of(asked.texts[query], documents[document]) for query, document in asked.pairs]
        assert desk.floats(name, answer.scores) == pytest.approx(scores, rel=1e-5)
        assert desk.ints(name, answer.rows) == desk.ints(name, answer.prompt_tokens) == rows
    elif isinstance(answer, Missing):
        places = desk.ints(name, answer.which)
        assert places and len(set(places)) == len(places)
        assert all(asked.texts.index(asked.texts[place]) == place for place in places), "a text's first place"
    else:
        assert name in desk.failures


@pytest.mark.parametrize("keep_entries", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_any_requests_are_answered_rightly_and_leave_nothing_behind(
    seed: int, keep_entries: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W1, W3, S1 to S4."""
    choose = random.Random(seed)
    monkeypatch.setattr("scorer_worker.worker.READ_SECONDS", [0.0, 0.0003, 60.0][seed % 3])
    arena = Arena(STORE_ROWS * DIM * 4, DIM, torch.float32, torch.device("cpu"))
    desk, thread = Frames(), cast(EncoderThread, Instant(DIM))
    batcher = Batcher(max_batch_pairs=64, max_batch_work=10**6, slice_work=10**5, wary_work=10**5)
    encoding, running = RunningFile(tmp_path / "encoding"), RunningFile(tmp_path / "running")
    hosted = HostedEncoder(EncodeQueue(1000), thread, arena, encoding, TextRules(1000, 1000, {}))
    worker = Worker(cast(Endpoint, desk), arena, Scorer(arena), batcher, running, hosted, keep_entries)
    asked: dict[RequestName, Asked] = {}
    for turn in range(TURNS):
        for number in range(choose.randint(0, 3)):
            name, what = desk.ask_anything(10 * turn + number, choose)
            asked[name] = what
        if asked and choose.random() < 0.15:
            desk.events.append(Cancelled(choose.choice(list(asked))))
        if choose.random() < 0.02:
            desk.events.append(Gone(choose.choice(CLIENTS)))
        worker.turn()
        held = [entry for job in worker._jobs.values() for entry in job.pinned]
        assert all(arena.directory.lookup(entry.key) is entry and arena.directory.pins(entry) for entry in held)
    end = time.monotonic() + LIMIT
    while worker.turn():
        assert time.monotonic() < end
    assert not worker._jobs and not len(worker._unread) and not len(worker._waiting) and not hosted._entries
    assert arena.directory.is_unheld
    arena.directory.check_integrity()
    kinds = {type(desk.answers[name]) for name in asked if name in desk.answers}
    assert {Scores, Missing} <= kinds
    for name, what in asked.items():
        if name in desk.answers:
            assert_right(desk, name, what)

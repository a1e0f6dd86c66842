"""A worker that hosts the encoder answers Encode as the engine does, beside the jobs that it scores."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
import torch

from engine.encode_requests import MAX_ANSWER_BYTES
from engine.encoder import EncodedTexts, Encoder
from engine.packing import PackedTexts
from engine.text_rules import TextRules
from ipc.arrays import ITEM_BYTES, FrameWriter
from ipc.client import ServiceClient
from ipc.errors import ServiceFailed
from ipc.messages import KEY_BYTES, MAX_TEXTS, Encode, Encoded, ErrorCode, FloatDType, Score, Scores, SuppliedTokens
from ipc.sockets import make_run_directory, remove_run_directory
from tests.scorer_worker.running_worker import CLIENT, DIM, LIMIT, RunningWorker, worker_and_client

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Gated:
    """An encoder that waits to be let on. A row is the token's id, scaled; there is no memory for more than `room`."""

    device: torch.device = CPU
    dim: int = DIM
    room: int = 20
    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1000))
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[int]] = field(default_factory=list)

    rules: TextRules = field(default_factory=lambda: TextRules(1000, 1000, {}))

    def encode(self, texts: PackedTexts) -> EncodedTexts:
        if len(texts.token_ids) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        self.entered.release()
        assert self.gate.acquire(timeout=LIMIT)
        self.batches.append(list(texts.lengths))
        return EncodedTexts(rows_of(texts.token_ids), list(texts.lengths))


def rows_of(token_ids: array[int]) -> torch.Tensor:
    """[n, DIM] float32."""
    return torch.tensor(token_ids.tolist(), dtype=torch.float32)[:, None] / torch.arange(1, DIM + 1)


@pytest.fixture
def directory() -> Iterator[Path]:
    path = make_run_directory()
    yield path
    remove_run_directory(path)


def key_of(name: str) -> bytes:
    return name.encode().ljust(KEY_BYTES, b".")


def encode_message(texts: dict[str, list[int]], reply: FloatDType = "float32") -> tuple[Encode, FrameWriter]:
    writer = FrameWriter()
    message = Encode(
        epoch=0,
        request_id=0,
        client=CLIENT,
        budget_ms=0,
        role="document",
        keys=writer.add_keys([key_of(name) for name in texts]),
        lengths=writer.add_ints(map(len, texts.values())),
        expansion=writer.add_ints([0] * len(texts)),
        token_ids=writer.add_ints(number for ids in texts.values() for number in ids),
        reply=reply,
    )
    return message, writer


async def embeddings_of(
    client: ServiceClient, texts: dict[str, list[int]], reply: FloatDType = "float32", timeout: float = LIMIT
) -> list[torch.Tensor]:
    """What the worker answers, by text."""
    message, writer = encode_message(texts, reply)
    answer, frames = await client.request(message, writer.frames, asyncio.get_running_loop().time() + timeout)
    assert isinstance(answer, Encoded)
    assert answer.embeddings.dtype == reply
    rows = frames[answer.rows.frame - 1].cast("i").tolist()
    data = frames[answer.embeddings.frame - 1]
    assert data.nbytes == sum(rows) * DIM * ITEM_BYTES[reply]
    return list(torch.split(torch.frombuffer(bytearray(data), dtype=DTYPES[reply]).view(-1, DIM), rows))


async def score(client: ServiceClient, texts: dict[str, list[int]]) -> list[float]:
    """The scores of a query and documents, all supplied as token ids."""
    writer = FrameWriter()
    keys = writer.add_keys([key_of(name) for name in texts])
    supplied = SuppliedTokens(
        role="document",
        which=writer.add_ints(range(len(texts))),
        lengths=writer.add_ints(map(len, texts.values())),
        expansion=writer.add_ints([0] * len(texts)),
        token_ids=writer.add_ints(number for ids in texts.values() for number in ids),
    )
    message = Score(0, 0, CLIENT, 0, 1, len(texts) - 1, keys, None, [supplied])
    answer, frames = await client.request(message, writer.frames, asyncio.get_running_loop().time() + LIMIT)
    assert isinstance(answer, Scores)
    return list(frames[answer.scores.frame - 1].cast("f"))


async def until_entered(encoder: Gated) -> None:
    assert await asyncio.to_thread(encoder.entered.acquire, True, LIMIT)


def encode_statistics(worker: RunningWorker) -> dict[str, float]:
    return {name: value for name, value in worker.worker.statistics().items() if name.startswith("encode_")}


async def wait_for(worker: RunningWorker, name: str, value: float) -> None:
    async with asyncio.timeout(LIMIT):
        while worker.worker.statistics()[name] != value:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("reply", ["float32", "float16", "bfloat16"])
def test_texts_come_back_in_order_and_in_the_dtype_asked_for(directory: Path, reply: FloatDType) -> None:
    texts = {"a": [3, 5], "b": [7], "c": [1, 2, 3]}

    async def test() -> None:
        async with worker_and_client(directory, encoder=cast(Encoder, Gated())) as (worker, client):
            found = await embeddings_of(client, texts, reply)
            for rows, ids in zip(found, texts.values(), strict=True):
                assert torch.equal(rows, rows_of(array("i", ids)).to(DTYPES[reply]))
            assert worker.directory.statistics().entries == 0  # H3
            assert encode_statistics(worker)["encode_answered"] == 1

    asyncio.run(test())


def test_a_text_is_encoded_once_for_a_job_and_for_who_asks_for_its_embeddings(directory: Path) -> None:
    encoder = Gated(gate=threading.Semaphore(0))

    async def test() -> None:
        async with worker_and_client(directory, encoder=cast(Encoder, encoder)) as (worker, client):
            first = asyncio.create_task(embeddings_of(client, {"x": [9]}))
            await until_entered(encoder)  # what comes now waits, and goes in one batch
            job = asyncio.create_task(score(client, {"q": [1], "a": [2, 3], "b": [4]}))
            await wait_for(worker, "jobs", 1)
            embeddings = asyncio.create_task(embeddings_of(client, {"c": [6], "a": [2, 3], "q": [1]}))
            await wait_for(worker, "encode_requests_waiting", 2)
            encoder.gate.release(1000)
            query = rows_of(array("i", [1]))
            expected = [float((query @ rows_of(array("i", [best])).T).max()) for best in (3, 4)]
            assert await job == pytest.approx(expected, rel=1e-5)
            assert torch.equal((await embeddings)[1], rows_of(array("i", [2, 3])))
            assert torch.equal((await first)[0], rows_of(array("i", [9])))
            assert [sorted(batch) for batch in encoder.batches] == [[1], [1, 1, 1, 2]]
            assert worker.directory.statistics().entries == 3
            worker.directory.check_integrity()

    asyncio.run(test())


def test_what_nobody_waits_for_is_not_encoded(directory: Path) -> None:
    encoder = Gated(gate=threading.Semaphore(0))

    async def test() -> None:
        async with worker_and_client(directory, encoder=cast(Encoder, encoder)) as (worker, client):
            first = asyncio.create_task(embeddings_of(client, {"x": [9]}))
            await until_entered(encoder)
            cancelled = asyncio.create_task(embeddings_of(client, {"y": [1, 1]}))
            await wait_for(worker, "encode_requests", 2)
            cancelled.cancel()
            with pytest.raises(ServiceFailed) as failed:
                await embeddings_of(client, {"z": [2, 2, 2]}, timeout=0.1)
            assert failed.value.code is ErrorCode.DEADLINE_EXCEEDED
            await wait_for(worker, "encode_requests_waiting", 1)
            encoder.gate.release(1000)
            await first
            assert len((await embeddings_of(client, {"y": [4]}))[0]) == 1
            assert encoder.batches == [[1], [1]]

    asyncio.run(test())


def test_only_who_asked_for_a_text_that_cannot_fit_is_told(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory, encoder=cast(Encoder, Gated())) as (worker, client):
            fine, too_long = await asyncio.gather(
                embeddings_of(client, {"a": [1] * 12}), embeddings_of(client, {"b": [2] * 21}), return_exceptions=True
            )
            assert isinstance(too_long, ServiceFailed) and too_long.code is ErrorCode.UNAVAILABLE
            assert isinstance(fine, list) and len(fine[0]) == 12
            assert encode_statistics(worker)["encode_requests_waiting"] == 0

    asyncio.run(test())


def test_a_wrong_text_is_refused_with_its_place(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory, encoder=cast(Encoder, Gated())) as (_, client):
            with pytest.raises(ServiceFailed, match="the model's vocabulary") as failed:
                await embeddings_of(client, {"a": [1], "b": [1000]})
            assert (failed.value.code, failed.value.which) == (ErrorCode.INVALID_REQUEST, 1)

    asyncio.run(test())


def test_an_encode_that_was_running_in_two_dead_workers_is_answered_so(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory, encoder=cast(Encoder, Gated())) as (worker, client):
            await embeddings_of(client, {"a": [1]})
            (identity,) = worker.worker._endpoint._peers
            worker.worker._running._suspects[identity, client._next_request_id] = 2
            with pytest.raises(ServiceFailed) as failed:
                await embeddings_of(client, {"a": [1]})
            assert failed.value.code is ErrorCode.WORKER_CRASHED
            assert len(await embeddings_of(client, {"a": [1]})) == 1

    asyncio.run(test())


def test_more_embeddings_than_a_message_holds_are_refused_before_they_are_made(directory: Path) -> None:
    encoder = Gated()

    async def test() -> None:
        async with worker_and_client(directory, encoder=cast(Encoder, encoder)) as (worker, client):
            most = MAX_ANSWER_BYTES // (4 * DIM)
            with pytest.raises(ServiceFailed, match=f"token_ids: {most + 1} of them") as failed:
                await embeddings_of(client, {"a": [1] * (most + 1)})
            assert failed.value.code is ErrorCode.INVALID_REQUEST
            assert encoder.batches == [] and encode_statistics(worker)["encode_requests"] == 0
            assert len((await embeddings_of(client, {"a": [1]}))[0]) == 1

    asyncio.run(test())


def test_a_key_that_names_a_long_text_again_and_again_makes_no_answer_above_the_limit(directory: Path) -> None:
    """Its second text has one id, but a key is encoded once: 65,536 times the first one's 40 rows are 80 MiB."""

    async def test() -> None:
        async with worker_and_client(directory, encoder=cast(Encoder, Gated(room=100))) as (worker, client):
            writer = FrameWriter()
            lengths = [40] + [1] * (MAX_TEXTS - 1)
            message = Encode(
                epoch=0,
                request_id=0,
                client=CLIENT,
                budget_ms=0,
                role="document",
                keys=writer.add_keys([key_of("a")] * MAX_TEXTS),
                lengths=writer.add_ints(lengths),
                expansion=writer.add_ints([0] * MAX_TEXTS),
                token_ids=writer.add_ints([1] * sum(lengths)),
            )
            with pytest.raises(ServiceFailed, match="keys: they name 83886080 bytes") as failed:
                await client.request(message, writer.frames, asyncio.get_running_loop().time() + LIMIT)
            assert failed.value.code is ErrorCode.INVALID_REQUEST
            assert encode_statistics(worker)["encode_requests_waiting"] == 0

    asyncio.run(test())


@pytest.mark.parametrize("is_shorter", [True, False])
def test_a_job_whose_key_names_another_text_that_is_being_encoded_gets_that_one(
    directory: Path, is_shorter: bool
) -> None:
    """Against the rule that a key names one text. The entry has the rows of what comes, not those that the job said."""
    encoder = Gated(gate=threading.Semaphore(0))
    running, said = ([1, 2, 3, 4, 5], [9, 9]) if is_shorter else ([1, 2], [9, 9, 9, 9, 9])

    async def test() -> None:
        async with worker_and_client(directory, encoder=cast(Encoder, encoder)) as (worker, client):
            by_value = asyncio.create_task(embeddings_of(client, {"a": running}))
            await until_entered(encoder)
            job = asyncio.create_task(score(client, {"q": [1], "a": said}))
            await wait_for(worker, "jobs", 1)
            encoder.gate.release(1000)
            assert torch.equal((await by_value)[0], rows_of(array("i", running)))
            expected = float((rows_of(array("i", [1])) @ rows_of(array("i", running)).T).max())
            assert await job == pytest.approx([expected], rel=1e-5)
            worker.directory.check_integrity()
            assert worker.worker.statistics()["store_used_rows"] == 1 + len(running)

    asyncio.run(test())


def test_a_suspect_that_is_refused_is_forgotten(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory, encoder=cast(Encoder, Gated())) as (worker, client):
            await embeddings_of(client, {"a": [1]})
            (identity,) = worker.worker._endpoint._peers
            worker.worker._running._suspects[identity, client._next_request_id] = 1
            assert worker.worker.statistics()["suspects"] == 1
            with pytest.raises(ServiceFailed, match="the model's vocabulary"):
                await embeddings_of(client, {"b": [1000]})
            assert worker.worker.statistics()["suspects"] == 0

    asyncio.run(test())

"""The worker over its real socket: every Score is answered once, by scores, by what is missing, or by what is wrong."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import msgspec
import pytest

from ipc.arrays import FrameWriter
from ipc.client import ServiceClient
from ipc.errors import ServiceFailed
from ipc.messages import (
    KEY_BYTES,
    MAX_ALIGNED_ROWS,
    Encode,
    ErrorCode,
    Missing,
    Score,
    Scores,
    SuppliedEmbeddings,
    SuppliedTokens,
)
from ipc.sockets import make_run_directory, remove_run_directory
from tests.scorer_worker.running_worker import CLIENT, DIM, LIMIT, worker_and_client


@pytest.fixture
def directory() -> Iterator[Path]:
    path = make_run_directory()
    yield path
    remove_run_directory(path)


Rows = list[list[float]]


def unit(place: int, scale: float = 1.0) -> list[float]:
    return [scale if index == place else 0.0 for index in range(DIM)]


def score_message(
    keys: list[bytes],
    num_queries: int,
    supplied: dict[int, Rows] | None = None,
    pairs: list[tuple[int, int]] | None = None,
    dim: int = DIM,
    keep: bool = True,
) -> tuple[Score, FrameWriter]:
    writer = FrameWriter()
    names = writer.add_keys([key.ljust(KEY_BYTES, b".") for key in keys])
    pairs_ref = None
    if pairs is not None:
        pairs_ref = writer.add(array("i", [i for pair in pairs for i in pair]), "int32", [len(pairs), 2])
    parts: list[SuppliedEmbeddings | SuppliedTokens] = []
    if supplied:
        rows = [len(text) for text in supplied.values()]
        values = array("f", [value for text in supplied.values() for row in text for value in row])
        parts.append(
            SuppliedEmbeddings(
                writer.add_ints(supplied),
                writer.add_ints(rows),
                writer.add_ints(rows),
                writer.add(values, "float32", [sum(rows), dim]),
                keep,
            )
        )
    return Score(0, 0, CLIENT, 0, num_queries, len(keys) - num_queries, names, pairs_ref, parts), writer


async def ask(
    client: ServiceClient, message: Score | Encode, writer: FrameWriter, timeout: float = LIMIT
) -> list[float]:
    """The scores; or the missing positions, negated less one."""
    answer, frames = await client.request(message, writer.frames, asyncio.get_running_loop().time() + timeout)
    if isinstance(answer, Missing):
        return [-1.0 - position for position in frames[answer.which.frame - 1].cast("i")]
    assert isinstance(answer, Scores)
    return list(frames[answer.scores.frame - 1].cast("f"))


TWO = {0: [unit(0), unit(1)], 1: [unit(0)], 2: [unit(0, 0.5), unit(1, 0.25)]}


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


def test_what_is_missing_is_named_and_what_was_supplied_stays(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory) as (worker, client):
            assert await ask(client, *score_message([b"q", b"a", b"b"], 1)) == [-1.0, -2.0, -3.0]
            assert await ask(client, *score_message([b"q", b"a", b"b"], 1, {1: TWO[1]})) == [-1.0, -3.0]
            assert await ask(client, *score_message([b"q", b"a", b"b"], 1, TWO)) == [1.0, 0.75]
            assert await ask(client, *score_message([b"q", b"b", b"a", b"b"], 1)) == [0.75, 1.0, 0.75]
            assert worker.worker.statistics()["jobs"] == 0
            worker.directory.check_integrity()

    run(test)


def test_pairs_choose_what_is_scored(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory) as (_, client):
            supplied = {0: [unit(0)], 1: [unit(1)], 2: [unit(0)], 3: [unit(1, 0.5)]}
            keys = [b"q", b"r", b"a", b"b"]
            assert await ask(client, *score_message(keys, 2, supplied)) == [1.0, 0.0, 0.0, 0.5]
            assert await ask(client, *score_message(keys, 2, pairs=[(1, 1), (0, 0), (1, 1)])) == [0.5, 1.0, 0.5]

    run(test)


def test_transient_entries_leave_nothing(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory) as (worker, client):
            assert await ask(client, *score_message([b"q", b"a", b"b"], 1, TWO, keep=False)) == [1.0, 0.75]
            assert worker.directory.statistics().entries == 0

    run(test)


@pytest.mark.parametrize(
    ("supplied", "dim", "message", "which"),
    [
        pytest.param({0: [unit(0)], 1: [unit(0, float("nan"))]}, DIM, "finite", 1, id="nan"),
        pytest.param({0: [unit(0, float("inf"))], 1: [unit(0)]}, DIM, "finite", 0, id="infinity"),
        pytest.param({0: [[1.0] * 4], 1: [[1.0] * 4]}, 4, "dim 4, expected 8", None, id="other-dim"),
    ],
)
def test_wrong_embeddings_are_refused_and_nothing_is_held(
    directory: Path, supplied: dict[int, Rows], dim: int, message: str, which: int | None
) -> None:
    async def test() -> None:
        async with worker_and_client(directory) as (worker, client):
            with pytest.raises(ServiceFailed, match=message) as failed:
                await ask(client, *score_message([b"q", b"a"], 1, supplied, dim=dim))
            assert failed.value.code is ErrorCode.INVALID_REQUEST
            assert which is None or failed.value.which == which
            assert worker.worker.statistics()["jobs"] == 0
            assert worker.directory.is_unheld
            assert await ask(client, *score_message([b"x", b"y", b"z"], 1, TWO)) == [1.0, 0.75]

    run(test)


def test_token_ids_without_an_encoder_are_refused(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory) as (_, client):
            message, writer = score_message([b"q", b"a"], 1)
            one = writer.add_ints([1])
            tokens = SuppliedTokens("query", writer.add_ints([0]), one, writer.add_ints([0]), one)
            message.supplied.append(tokens)
            with pytest.raises(ServiceFailed, match="no encoder"):
                await ask(client, message, writer)

    run(test)


def test_no_token_ids_are_no_complaint_without_an_encoder(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory) as (_, client):
            message, writer = score_message([b"q", b"a"], 1)
            none = writer.add_ints([])
            message.supplied.append(SuppliedTokens("document", none, none, none, none))
            assert await ask(client, message, writer) == [-1.0, -2.0]

    run(test)


def test_more_rows_than_a_quarter_of_the_store_are_refused(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory) as (_, client):
            with pytest.raises(ServiceFailed, match="--embedding-cache-size"):
                await ask(client, *score_message([b"q", b"a"], 1, {0: [unit(0)], 1: [unit(0)] * 2000}))

    run(test)


def test_many_texts_of_hardly_any_rows_are_counted_in_whole_grains(directory: Path) -> None:
    """Each takes 16 rows of room, so 301 of them never fit 4096: refused, and the worker lives."""

    async def test() -> None:
        async with worker_and_client(directory) as (worker, client):
            keys = [b"q", *(b"%d" % number for number in range(300))]
            with pytest.raises(ServiceFailed, match="--embedding-cache-size") as failed:
                await ask(client, *score_message(keys, 1, {number: [unit(0)] for number in range(301)}))
            assert failed.value.code is ErrorCode.INVALID_REQUEST
            few = {number: [unit(0)] for number in range(64)}
            assert await ask(client, *score_message(keys[:64], 1, few)) == [1.0] * 63
            worker.directory.check_integrity()

    run(test)


def test_jobs_wait_for_room_and_all_are_answered(directory: Path) -> None:
    """Twenty jobs of a fifth of the store each, at once."""

    async def test() -> None:
        async with worker_and_client(directory) as (worker, client):
            jobs = []
            for number in range(20):
                supplied = {0: [unit(0)], 1: [unit(number % DIM)] * 800}
                keys = [b"q", b"%d" % number]
                jobs.append(ask(client, *score_message(keys, 1, supplied)))
            assert await asyncio.gather(*jobs) == [[1.0 if number % DIM == 0 else 0.0] for number in range(20)]
            worker.directory.check_integrity()

    run(test)


def test_large_job_is_cut_into_slices_and_put_together(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory, rows=65_536) as (worker, client):
            supplied = {0: [unit(0)]} | {1 + number: [unit(0, number / 300)] for number in range(300)}
            keys = [b"q", *(b"d%d" % number for number in range(300))]
            for first in range(1, 301, 50):
                some = [b"q", *keys[first : first + 50]]
                await ask(
                    client, *score_message(some, 1, {0: supplied[0]} | {1 + i: supplied[first + i] for i in range(50)})
                )
            assert await ask(client, *score_message(keys[:], 1)) == pytest.approx(
                [number / 300 for number in range(300)]
            )
            assert worker.worker.counters["batches"] >= 300 / 64

    run(test)


async def align(
    client: ServiceClient, message: Score, writer: FrameWriter
) -> tuple[list[float], list[int], list[float]]:
    """Scores, document rows and similarities."""
    message = msgspec.structs.replace(message, want_alignment=True)
    answer, frames = await client.request(message, writer.frames, asyncio.get_running_loop().time() + LIMIT)
    assert isinstance(answer, Scores) and answer.alignment is not None
    return (
        list(frames[answer.scores.frame - 1].cast("f")),
        list(frames[answer.alignment.document_rows.frame - 1].cast("i")),
        list(frames[answer.alignment.similarities.frame - 1].cast("f")),
    )


def test_alignment_comes_with_the_scores_of_who_wants_it(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory) as (worker, client):
            assert await ask(client, *score_message([b"q", b"a", b"b"], 1, TWO)) == [1.0, 0.75]
            assert worker.worker.counters["aligned_pairs"] == 0
            keys = [b"q", b"a", b"b", b"none"]
            found = await align(client, *score_message(keys, 1, {3: []}))
            assert found == ([1.0, 0.75, 0.0], [0, 0, 0, 1], [1.0, 0.0, 0.5, 0.25])
            assert worker.worker.counters["aligned_pairs"] == 3
            pairs = await align(client, *score_message([b"q", b"b", b"a", b"b"], 2, pairs=[(1, 1), (0, 0)]))
            assert pairs == ([0.3125, 1.0], [0, 1, 0, 0], [0.25, 0.0625, 1.0, 0.0])

    run(test)


def test_alignment_is_put_together_from_slices_beside_who_only_scores(directory: Path) -> None:
    """300 pairs in slices of some, because each counts for its overhead; a small Score is not kept waiting by them."""

    async def test() -> None:
        async with worker_and_client(directory, rows=65_536) as (worker, client):
            keys = [b"q", *(b"d%d" % number for number in range(300))]
            supplied = {0: [unit(0)]} | {1 + i: [unit(1), unit(0, i / 300)] for i in range(300)}
            await ask(client, *score_message(keys, 1, supplied))
            before = worker.worker.counters["batches"]
            (scores, rows, similarities), small = await asyncio.gather(
                align(client, *score_message(keys, 1)), ask(client, *score_message(keys[:3], 1))
            )
            assert scores == similarities == pytest.approx([number / 300 for number in range(300)])
            assert rows == [0] + [1] * 299  # of equal similarities the first
            assert small == pytest.approx([0.0, 1 / 300])
            assert worker.worker.counters["batches"] - before >= 300

    run(test)


def test_alignment_of_too_many_rows_is_refused_and_nothing_is_held(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory) as (worker, client):
            message, writer = score_message(
                [b"q", b"a"], 1, {0: [unit(0)] * 64, 1: [unit(0)]}, pairs=[(0, 0)] * (MAX_ALIGNED_ROWS // 64 + 1)
            )
            with pytest.raises(ServiceFailed, match=f"want_alignment: .* at most {MAX_ALIGNED_ROWS}") as failed:
                await align(client, message, writer)
            assert failed.value.code is ErrorCode.INVALID_REQUEST
            assert worker.worker.statistics()["jobs"] == 0 and worker.directory.is_unheld
            worker.directory.check_integrity()

    run(test)


def test_request_that_was_running_in_two_dead_workers_is_answered_so(directory: Path) -> None:
    """No query of death: the client's identity and next request id are known, so the file of the dead can be
    written.
    """

    async def test() -> None:
        async with worker_and_client(directory) as (worker, client):
            assert await ask(client, *score_message([b"q", b"a", b"b"], 1, TWO)) == [1.0, 0.75]
            (identity,) = worker.worker._endpoint._peers
            name = identity, client._next_request_id
            worker.worker._running._suspects[name] = 2
            with pytest.raises(ServiceFailed) as failed:
                await ask(client, *score_message([b"q", b"a"], 1))
            assert failed.value.code is ErrorCode.WORKER_CRASHED
            assert await ask(client, *score_message([b"q", b"a"], 1)) == [1.0]

    run(test)


def test_a_job_that_is_refused_leaves_no_suspect(directory: Path) -> None:
    """It is what a request has become that was running in a worker that died; refused, it has ended."""

    async def test() -> None:
        async with worker_and_client(directory) as (worker, client):
            message, writer = score_message([b"q", b"a"], 1, {0: [[1.0]], 1: [[1.0]]}, dim=1)
            with pytest.raises(ServiceFailed, match="not 8 wide"):
                await ask(client, msgspec.structs.replace(message, deaths=1), writer)
            assert worker.worker.statistics()["suspects"] == 0

    run(test)


def test_encode_is_refused_by_a_worker_without_encoder(directory: Path) -> None:
    async def test() -> None:
        async with worker_and_client(directory) as (_, client):
            writer = FrameWriter()
            keys, one = writer.add_keys([b"k" * KEY_BYTES]), writer.add_ints([1])
            message = Encode(0, 0, CLIENT, 0, "query", keys, one, writer.add_ints([0]), one)
            with pytest.raises(ServiceFailed, match="engine"):
                await ask(client, message, writer)

    run(test)

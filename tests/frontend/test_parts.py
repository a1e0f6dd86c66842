"""R1: how a ranking task is cut into messages, on random tasks."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.encoding import PART_TEXTS
from frontend.parts import PART_BYTES, PART_IDS, UNCUT, VALUE_PART_BYTES, Part, split
from frontend.ranking import EmbeddingsInput, Input, RankingTask, TextInput
from frontend.task_texts import TaskTexts
from ipc.messages import KEY_BYTES, Limits, ModelSpec, TextSpec

DIM = 128
GRAIN = 16


def spec() -> ModelSpec:
    return ModelSpec("m", DIM, TextSpec(32, expansion="fixed", expansion_length=32), TextSpec(512))


inputs = st.one_of(
    (st.integers(0, 3) | st.integers(0, 700)).map(lambda size: TextInput("x" * size, b"k" * KEY_BYTES)),
    st.integers(1, 400).map(lambda rows: EmbeddingsInput(bytes(rows * DIM * 4), "float32", rows, DIM)),
)
few_kinds = st.lists(inputs, min_size=1, max_size=3)


@st.composite
def tasks(draw: st.DrawFn) -> RankingTask:
    """Of few texts, repeated, so that parts become full."""
    kinds = draw(few_kinds)
    count = draw(st.sampled_from([1, 5, 300, 1500]))
    documents: list[Input] = [kinds[place % len(kinds)] for place in range(count)]
    queries: list[Input] = draw(st.lists(inputs, min_size=1, max_size=3))
    pairs = None
    if len(queries) > 1 or draw(st.booleans()):
        pairs = [(place % len(queries), (place * 7) % count) for place in range(count)]
    return RankingTask(queries, documents, pairs, b"c" * 8, 0.0, 32, 512)


def cut(texts: TaskTexts, supply: set[int], limits: Limits) -> list[Part]:
    async def run() -> list[Part]:
        await texts.name()
        return await split(texts, range(texts.num_pairs), supply | texts.by_value, limits)

    return asyncio.run(run())


@given(
    tasks(), st.booleans(), st.sets(st.integers(0, 1500)), st.sampled_from([4096, 65_536]), st.sampled_from([7, 256])
)
def test_parts_stay_within_the_limits_and_hold_every_pair_once(
    task: RankingTask, sends_ids: bool, chosen: set[int], max_job_rows: int, part_pairs: int
) -> None:
    texts = TaskTexts(task, spec(), DIM, sends_ids)
    supply = {text for text in chosen if text < len(texts)}
    limits = Limits(max_job_rows, 2**30, 2**20, row_grain=GRAIN, part_pairs=part_pairs)
    parts = cut(texts, supply, limits)
    assert sorted(position for part in parts for position in part.pairs) == list(range(texts.num_pairs))
    for part in parts:
        named = {text for position in part.pairs for text in texts.pair(position)}
        assert named & (supply | texts.by_value) <= part.supply  # of a few queries, others may go along
        assert 1 <= len(part.pairs) <= (part_pairs if texts.num_pairs > UNCUT * part_pairs else texts.num_pairs)
        if len(part.pairs) > 1:
            rows = [max(GRAIN, -(-texts.max_rows(text) // GRAIN) * GRAIN) for text in named]
            assert sum(rows) <= max_job_rows
            assert_room(texts, part)


def assert_room(texts: TaskTexts, part: Part) -> None:
    """What is supplied with it fits."""
    values = [text for text in part.supply if text in texts.by_value]
    encoded = part.supply - set(values)
    assert len([text for text in encoded if text >= texts.num_queries]) <= PART_TEXTS
    assert texts.supplied_bytes(values) <= VALUE_PART_BYTES
    if texts.sends_ids:
        assert sum(texts.max_rows(text) for text in encoded) <= PART_IDS
    else:
        assert texts.supplied_bytes(encoded) <= PART_BYTES


@pytest.mark.parametrize("supply", [set(), {0}])
def test_pairs_that_would_be_two_parts_are_one(supply: set[int]) -> None:
    """R1"""
    limits = Limits(2**20, 2**30, 2**20, row_grain=GRAIN, part_pairs=10)
    for count, sizes in ((20, [20]), (21, [10, 10, 1])):
        documents = [TextInput("x", place.to_bytes(KEY_BYTES, "little")) for place in range(count)]
        task = RankingTask([TextInput("q", b"q" * KEY_BYTES)], documents, None, b"c" * 8, 0.0, 32, 512)
        parts = cut(TaskTexts(task, spec(), DIM, True), supply, limits)
        assert [len(part.pairs) for part in parts] == sizes


def test_pairs_that_would_be_two_parts_are_cut_where_their_rows_are_too_many() -> None:
    """R1"""
    documents = [TextInput("x" * 1000, place.to_bytes(KEY_BYTES, "little")) for place in range(20)]
    task = RankingTask([TextInput("q", b"q" * KEY_BYTES)], documents, None, b"c" * 8, 0.0, 32, 512)
    texts = TaskTexts(task, spec(), DIM, True)
    rows = -(-texts.longest // GRAIN) * GRAIN
    limits = Limits(15 * rows, 2**30, 2**20, row_grain=GRAIN, part_pairs=10)
    parts = cut(texts, set(), limits)
    assert [len(part.pairs) for part in parts] == [14, 6]


@pytest.mark.parametrize("sends_ids", [False, True])
def test_many_short_texts_are_supplied_some_at_a_time(sends_ids: bool) -> None:
    """To read and to queue a thousand of them would keep a service from everybody else."""
    documents = [TextInput("x", place.to_bytes(KEY_BYTES, "little")) for place in range(1000)]
    task = RankingTask([TextInput("q", b"q" * KEY_BYTES)], documents, None, b"c" * 8, 0.0, 32, 512)
    limits = Limits(65_536, 2**30, 2**20, row_grain=GRAIN, part_pairs=1024)
    parts = cut(TaskTexts(task, spec(), DIM, sends_ids), set(range(1001)), limits)
    assert [len(part.pairs) for part in parts] == [PART_TEXTS - 1] * 7 + [1000 - 7 * (PART_TEXTS - 1)]
    assert all(0 in part.supply for part in parts)  # the query

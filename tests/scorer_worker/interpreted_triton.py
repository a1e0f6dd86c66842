"""Cases of the Triton kernel on a CPU; `test_triton.py` runs them, with TRITON_INTERPRET=1.

bfloat16 is not here: the interpreter multiplies its bits as if they were integers. Nor is the order in which items of a
pair arrive: the interpreter runs them one after the other. `test_triton_cuda.py` has both.
"""

from __future__ import annotations

import functools
import random
from array import array
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer_worker.arena import Arena
from scorer_worker.kernels import triton_packed
from scorer_worker.kernels.reference import Reference
from scorer_worker.kernels.row_copier import RowCopier
from scorer_worker.kernels.triton_packed import TritonPacked, choose_configs
from scorer_worker.pairs import PairGroup
from scorer_worker.store import Entry, NewEntry

# What the interpreter says of rows that were never written, which an item of an empty text reads and does not use.
pytestmark = pytest.mark.filterwarnings("ignore:(All-NaN|invalid value|overflow)")


class Texts:
    """Texts of these lengths in an arena, in any order."""

    def __init__(self, lengths: Sequence[int], dim: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> None:
        rows = max(8192, 6 * sum(lengths))
        self.arena = Arena(rows * dim * dtype.itemsize, dim, dtype, torch.device("cpu"))
        self.arena.rows.fill_(float("nan"))  # a row that nobody wrote would show
        entries: dict[int, Entry] = {}
        for place in random.Random(seed).sample(range(len(lengths)), len(lengths)):
            admitted = self.arena.directory.admit([], [NewEntry(place.to_bytes(16, "little"), lengths[place], 0)])
            assert admitted is not None
            generator = torch.Generator().manual_seed(place)
            rows_of_text = torch.randn(lengths[place], dim, generator=generator)
            self.arena.write(admitted[0], torch.nn.functional.normalize(rows_of_text, dim=1))
            entries[place] = admitted[0]
        self.entries = [entries[place] for place in range(len(lengths))]
        self.kernel = TritonPacked(self.arena.rows)

    def groups(self, plan: Sequence[tuple[int, Sequence[int]]]) -> list[PairGroup]:
        return [PairGroup(self.entries[query], [self.entries[d] for d in documents]) for query, documents in plan]

    def check(self, plan: Sequence[tuple[int, Sequence[int]]]) -> list[float]:
        groups = self.groups(plan)
        scores = list(self.kernel(groups))
        assert scores == pytest.approx(list(Reference(self.arena.rows)(groups)), abs=5e-6, rel=2e-6)
        return scores


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [16, 17, 48, 96, 100, 128, 384])
def test_any_dim(dim: int, dtype: torch.dtype) -> None:
    texts = Texts([7, 1, 15, 16, 17, 180, 0, 70], dim, dtype)
    texts.check([(0, [1, 2, 3, 4, 5, 6]), (7, [0, 5]), (6, [0])])


def test_wide_embeddings_do_not_hold_the_query() -> None:
    assert not choose_configs(1024, 2)[0].hold_query
    Texts([7, 33, 70], 1024).check([(0, [1, 2]), (2, [0, 1])])


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([1, 1], id="single-rows"),
        pytest.param([32, 0, 5, 0], id="documents-without-rows"),
        pytest.param([0, 5, 6], id="query-without-rows"),
        pytest.param([0, 5, 1500], id="query-without-rows-cut"),
        pytest.param([1030, 200, 0, 3], id="long-query"),
        pytest.param([20, 200, 2500, 0, 1024, 1025], id="long-document"),
        pytest.param([70, 200, 2500], id="long-query-long-document"),
        pytest.param([8, *range(1, 70)], id="every-remainder-of-a-grain"),
    ],
)
def test_any_lengths(lengths: list[int]) -> None:
    texts = Texts(lengths, 48)
    scores = texts.check([(0, list(range(1, len(lengths))))])
    assert all(score == 0 for score, rows in zip(scores, lengths[1:], strict=True) if not rows or not lengths[0])


def test_no_pairs() -> None:
    texts = Texts([3, 4], 16)
    assert list(texts.kernel([])) == []
    assert texts.check([(0, []), (1, [0]), (0, [])]) != []


def test_negative_similarities_are_not_beaten_by_padding() -> None:
    texts = Texts([1, 3], 16)
    query, document = texts.entries
    row = texts.arena.rows[query.start].clone()
    texts.arena.rows[document.start : document.start + 16] = -row
    assert texts.check([(0, [1])]) == pytest.approx([-1.0], abs=1e-3)


def test_long_queries_are_computed_alike_beside_short_ones_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of 64 rows beside much that waits for memory, in blocks of 128 by themselves."""
    used: list[int] = []
    launch = triton_packed._Program.launch

    def recorded(program: triton_packed._Program, *arguments: object) -> None:
        used.append(program.config.block_q)
        launch(program, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(triton_packed._Program, "launch", recorded)
    texts = Texts([200, 5, 300, 40, 3000], 32)
    beside = texts.check([(0, [3]), (1, [4, 4, 4, 4, 2])])
    alone = texts.check([(0, [3])])
    assert used == [64, 128]
    assert beside[0] == alone[0]


def test_chunks_of_any_size_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts([20, 0, 64, 1000, 1025, 2500], 16)
    whole = texts.check([(0, [1, 2, 3, 4, 5])])
    for rows in (64, 192, 4096):
        monkeypatch.setattr(triton_packed, "CHUNK", rows)
        assert texts.check([(0, [1, 2, 3, 4, 5])]) == whole


@pytest.mark.parametrize(
    ("rows", "least_items", "chunk"),
    [
        pytest.param(100_000, 64, 1024, id="fewer-than-run-at-a-time"),
        pytest.param(524_288, 64, 1152, id="a-few-more"),
        pytest.param(2_000_000, 64, 1024, id="many-more"),
        pytest.param(524_288, 600, 1024, id="more-pairs-than-run-at-a-time"),
    ],
)
def test_items_that_would_just_exceed_what_runs_at_a_time_are_larger(rows: int, least_items: int, chunk: int) -> None:
    assert triton_packed._chunk_rows(rows, least_items, at_a_time=528) == chunk


def test_scores_are_returned_in_the_order_of_their_groups() -> None:
    """Though long queries are scored first."""
    texts = Texts([200, 5, 1, 2, 3], 16)
    groups = texts.groups([(1, [2]), (0, [2, 3]), (1, []), (1, [3, 4]), (0, [4])])
    scores = array("f", [10, 11, 12, 20, 21, 22])
    assert list(triton_packed._in_order(scores, groups)) == [20, 10, 11, 21, 22, 12]


def test_calls_larger_than_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_packed, "LAUNCH_PAIRS", 5)
    texts = Texts([4, *range(1, 18), 1100], 16)
    texts.check([(0, range(1, 4)), (1, range(2, 19)), (2, [1]), (18, [1, 2, 3])])


def test_scratch_and_tables_grow() -> None:
    texts = Texts([4, 100, 7], 16)
    texts.kernel._scratch = torch.full((1,), float("-inf"))
    texts.kernel._tables = triton_packed._Pinned(8, torch.int32, torch.device("cpu"))
    texts.kernel._scores = triton_packed._Pinned(1, torch.float32, torch.device("cpu"))
    for _ in range(2):
        texts.check([(1, [0, 2]), (0, [1, 2])])


@settings(max_examples=15)
@given(plan=st.lists(st.tuples(st.integers(0, 8), st.lists(st.integers(0, 12), max_size=4)), min_size=1, max_size=3))
def test_score_is_bitwise_independent_of_the_batch(plan: list[tuple[int, list[int]]]) -> None:
    """Sums are in one order and maxima lose nothing, however a batch is cut.

    The products of these embeddings are exact: what the interpreter multiplies with gives other bits for other shapes.
    Their rows differ in size, so that the sum of maxima is not.
    """
    texts = _exact_texts()
    scores = iter(texts.kernel(texts.groups(plan)))
    for query, documents in plan:
        for document in documents:
            assert next(scores) == texts.kernel(texts.groups([(query, [document])]))[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("dim", "count"), [(1, 1), (48, 7), (100, 8), (128, 300), (384, 0)])
def test_rows_are_copied_and_no_others(dim: int, count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    arena = torch.randn(1000, dim, generator=generator).to(dtype)
    embeddings = torch.randn(50, dim, generator=generator)
    targets = torch.randperm(1000, generator=generator)[:count]
    sources = torch.randint(50, (count,), generator=generator)
    expected = arena.clone()
    expected[targets] = embeddings[sources].to(dtype)
    RowCopier(arena)(torch.stack([targets, sources]), embeddings)
    assert torch.equal(arena, expected)


@functools.cache
def _exact_texts() -> Texts:
    texts = Texts([1, 5, 31, 32, 33, 64, 65, 130, 200, 0, 3, 40, 1030], 48)
    generator = torch.Generator().manual_seed(0)
    for entry in texts.entries:
        rows = torch.randint(-8, 9, (entry.rows, 48), generator=generator).half()
        sizes = 2.0 ** torch.randint(-8, 9, (entry.rows, 1), generator=generator)
        filled = -(-entry.rows // 16) * 16
        texts.arena.rows[entry.start : entry.start + filled] = 1
        texts.arena.rows[entry.start : entry.start + entry.rows] = rows * sizes
        if entry.rows:
            texts.arena.rows[entry.start + entry.rows : entry.start + filled] = rows[-1] * sizes[-1]
    return texts

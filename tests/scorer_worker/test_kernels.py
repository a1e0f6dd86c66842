"""Every kernel computes what `reference` does, and bitwise the same for a pair whatever else is in the call (P4)."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer_worker.arena import Arena, as_tensor, is_finite
from scorer_worker.kernels import make_kernel, torch_packed
from scorer_worker.scorer import PairGroup, Scorer
from scorer_worker.store import Entry, NewEntry

FAST = ["torch_packed"]


def normalised(rows: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=-1)


class Filled:
    """An arena with some texts in it, far apart and in any order."""

    def __init__(self, lengths: list[int], dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        rows = max(8192, 6 * sum(lengths))
        self.arena = Arena(rows * dim * dtype.itemsize, dim, dtype, torch.device("cpu"))
        self.arena.rows.fill_(float("nan"))  # a row that nobody wrote would show
        order = list(range(len(lengths)))
        random.Random(seed).shuffle(order)
        entries: dict[int, Entry] = {}
        for place in order:
            admitted = self.arena.directory.admit([], [NewEntry(place.to_bytes(16, "little"), lengths[place], 0)])
            assert admitted is not None
            self.arena.write(admitted[0], normalised(lengths[place], dim, seed + place))
            entries[place] = admitted[0]
        self.entries = [entries[place] for place in range(len(lengths))]

    def score(self, kernel: str, groups: list[tuple[int, list[int]]]) -> list[float]:
        pairs = [PairGroup(self.entries[query], [self.entries[d] for d in documents]) for query, documents in groups]
        return list(Scorer(self.arena, kernel).score(pairs))


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("dim", [16, 17, 96, 128, 384, 1024])
def test_any_dim(kernel: str, dim: int) -> None:
    texts = Filled([7, 1, 15, 16, 17, 180], dim)
    groups = [(0, [1, 2, 3, 4, 5]), (1, [0, 5])]
    assert texts.score(kernel, groups) == pytest.approx(texts.score("reference", groups), abs=5e-6)


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([1, 1], id="single-rows"),
        pytest.param([32, 0, 5, 0], id="documents-without-rows"),
        pytest.param([0, 5, 6], id="query-without-rows"),
        pytest.param([1030, 200, 9000, 3], id="long-query-long-document"),
        pytest.param([8, *range(1, 70)], id="every-remainder-of-a-grain"),
    ],
)
def test_any_lengths(kernel: str, lengths: list[int]) -> None:
    texts = Filled(lengths, 48)
    groups = [(0, list(range(1, len(lengths))))]
    expected = texts.score("reference", groups)
    assert texts.score(kernel, groups) == pytest.approx(expected, abs=1e-4, rel=1e-5)
    assert [expected[i] for i, rows in enumerate(lengths[1:]) if rows == 0 or lengths[0] == 0] == [0.0] * sum(
        rows == 0 or lengths[0] == 0 for rows in lengths[1:]
    )


@pytest.mark.parametrize("kernel", FAST)
def test_half_precision_store_accumulates_in_fp32(kernel: str) -> None:
    texts = Filled([40, 100, 200], 128, torch.float16)
    groups = [(0, [1, 2])]
    assert texts.score(kernel, groups) == pytest.approx(texts.score("reference", groups), abs=5e-6)


def test_negative_similarities_are_not_beaten_by_padding() -> None:
    """The rows that fill a document's last grain repeat a row of its own; zeros would win here."""
    texts = Filled([1, 3], 16)
    row = normalised(1, 16, 9)
    query, document = texts.entries
    texts.arena.rows[query.start : query.start + 16] = row
    texts.arena.rows[document.start : document.start + 16] = -row
    assert texts.score("torch_packed", [(0, [1])]) == pytest.approx([-1.0])


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), dim=st.sampled_from([16, 64, 100, 128, 384]), data=st.data())
def test_score_is_bitwise_independent_of_the_batch(seed: int, dim: int, data: st.DataObject) -> None:
    """Alone, in another order, with other queries and documents around it, elsewhere in the arena: the same bits."""
    choose = random.Random(seed)
    lengths = [choose.randrange(1, 64) for _ in range(3)] + [choose.randrange(1, 300) for _ in range(12)]
    texts = Filled(lengths, dim, seed=7)
    documents = list(range(3, 15))
    together = texts.score("torch_packed", [(query, documents) for query in range(3)])
    query, document = choose.randrange(3), choose.choice(documents)
    expected = together[query * len(documents) + documents.index(document)]
    alone = texts.score("torch_packed", [(query, [document])])[0]
    others = data.draw(st.permutations(documents))[: data.draw(st.integers(1, 12))]
    mixed = texts.score("torch_packed", [((query + 1) % 3, others), (query, [*others, document])])[-1]
    moved = Filled(list(reversed(lengths)), dim, seed=8)
    for place, entry in enumerate(moved.entries):
        moved.arena.rows[entry.start : entry.start + -(-entry.rows // 16) * 16] = torch.cat(
            [texts_rows(texts, len(lengths) - 1 - place), padding(texts, len(lengths) - 1 - place)]
        )
    elsewhere = moved.score("torch_packed", [(len(lengths) - 1 - query, [len(lengths) - 1 - document])])[0]
    assert alone == expected == mixed == elsewhere


def test_large_calls_reduced_in_steps_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document may end in another step than it began."""
    texts = Filled([70, *range(1, 100), 3000], 32)
    groups = [(0, list(range(1, 101)))]
    whole = texts.score("torch_packed", groups)
    for elements in (70, 700, 9000):
        monkeypatch.setattr(torch_packed, "MAX_MAXIMA", elements)
        assert texts.score("torch_packed", groups) == whole


def texts_rows(texts: Filled, place: int) -> torch.Tensor:
    entry = texts.entries[place]
    return texts.arena.rows[entry.start : entry.start + entry.rows]


def padding(texts: Filled, place: int) -> torch.Tensor:
    rows = texts_rows(texts, place)
    return rows[-1:].expand(-len(rows) % 16, -1)


def test_unknown_kernel_is_an_error() -> None:
    with pytest.raises(KeyError):
        make_kernel(torch.empty(16, 4), "no such kernel")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, True), (float("nan"), False), (float("inf"), False), (-float("inf"), False)]
)
def test_values_that_are_not_finite_are_found(dtype: str, value: float, expected: bool) -> None:
    rows = torch.ones(5, 7, dtype={"float32": torch.float32, "float16": torch.float16}[dtype])
    rows[3, 2] = value
    assert is_finite(as_tensor(memoryview(bytearray(rows.numpy().tobytes())), dtype, 5, 7)) is expected


def test_large_finite_values_are_finite() -> None:
    """Their sum is not, but each of them is."""
    assert is_finite(torch.full((64, 64), 3e38))

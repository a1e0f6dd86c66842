"""What a query row is said to have matched is what scored: `reference` computes it, and `Aligner` the same."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer_worker.kernels import alignment
from scorer_worker.kernels.alignment import Aligner
from scorer_worker.kernels.reference import Reference
from scorer_worker.pairs import AlignedRows, PairGroup
from scorer_worker.store import Entry
from tests.scorer_worker.test_kernels import Filled

Groups = list[tuple[int, list[int]]]


def groups_of(texts: Filled, groups: Groups) -> list[PairGroup]:
    return [PairGroup(texts.entries[query], [texts.entries[d] for d in documents]) for query, documents in groups]


def check(texts: Filled, groups: Groups) -> AlignedRows:
    """Against the reference and against the scores; rows that are equal but for rounding may change places."""
    together = groups_of(texts, groups)
    pairs = [PairGroup(group.query, [document]) for group in together for document in group.documents]
    found, reference = Aligner(texts.arena.rows)(together), Reference(texts.arena.rows)
    expected = reference.align(together)
    assert found.similarities.tolist() == pytest.approx(expected.similarities.tolist(), abs=2e-6)
    start = 0
    for pair, score in zip(pairs, reference(pairs), strict=True):
        query, document = rows_of(texts, pair.query), rows_of(texts, pair.documents[0])
        own = slice(start, start + (len(query) if len(document) else 0))
        start = own.stop
        assert sum(found.similarities[own]) == pytest.approx(score, abs=1e-4)
        for row, place, other in zip(query, found.document_rows[own], expected.document_rows[own], strict=False):
            assert float(row @ document[place]) == pytest.approx(float(row @ document[other]), abs=2e-6)
    assert start == len(found.document_rows) == len(expected.document_rows)
    return found


def rows_of(texts: Filled, text: Entry) -> torch.Tensor:
    return texts.arena.rows[text.start : text.start + text.rows].float()


@pytest.mark.parametrize("dim", [16, 17, 128, 384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_any_dim_and_dtype(dim: int, dtype: torch.dtype) -> None:
    check(Filled([7, 1, 15, 16, 17, 180], dim, dtype), [(0, [1, 2, 3, 4, 5]), (1, [0, 5])])


@pytest.mark.parametrize(
    ("lengths", "entries"),
    [
        pytest.param([3, 1], 3, id="one-row"),
        pytest.param([4, 0, 5, 0], 4, id="documents-without-rows"),
        pytest.param([0, 5, 6], 0, id="query-without-rows"),
        pytest.param([8, *range(1, 40)], 8 * 39, id="every-remainder-of-a-grain"),
    ],
)
def test_a_pair_has_an_entry_for_each_query_row_unless_its_document_has_none(lengths: list[int], entries: int) -> None:
    texts = Filled(lengths, 48)
    assert len(check(texts, [(0, list(range(1, len(lengths))))]).document_rows) == entries


def test_nothing_to_align_is_nothing() -> None:
    assert check(Filled([1], 16), []) == AlignedRows()


def test_texts_longer_than_a_block_are_aligned_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Filled([70, 200, 31], 32)
    whole = check(texts, [(0, [1, 2])])
    monkeypatch.setattr(alignment, "QUERY_BLOCK", 16)
    monkeypatch.setattr(alignment, "BLOCK_GRAINS", 2)
    assert check(texts, [(0, [1, 2])]).document_rows == whole.document_rows


@pytest.mark.parametrize("block", [1, 512])
@pytest.mark.parametrize("kind", [Reference, Aligner])
def test_of_equal_rows_the_first_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: type[Reference] | type[Aligner], block: int
) -> None:
    """Also where the equal ones lie in different blocks, and never the row that pads a document's last grain."""
    monkeypatch.setattr(alignment, "BLOCK_GRAINS", block)
    texts = Filled([2, 29], 16)
    query, document = texts.entries
    axis = torch.eye(16)
    texts.arena.rows[query.start : query.start + 2] = axis[:2]
    places = [5, 3, 0, 4, 4, 0, 2, 6, 0, 0, 3, 2, 0, 4, 4, 2]  # which axis each row of the document lies on
    places += [0, 4, 1, 0, 1, 1, 0, 4, 4, 0, 1, 0, 1]
    places += places[-1:] * 3  # the last grain is filled with the last row
    texts.arena.rows[document.start : document.start + 32] = axis[places]
    pairs = groups_of(texts, [(0, [1])])
    aligner = kind(texts.arena.rows)
    found = aligner.align(pairs) if isinstance(aligner, Reference) else aligner(pairs)
    assert found.document_rows.tolist() == [2, 18]
    assert found.similarities.tolist() == [1.0, 1.0]


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), dim=st.sampled_from([16, 100, 128]))
def test_alignment_of_a_pair_is_the_same_whatever_else_is_in_the_call(seed: int, dim: int) -> None:
    choose = random.Random(seed)
    texts = Filled([choose.randrange(0, 64) for _ in range(3)] + [choose.randrange(0, 100) for _ in range(6)], dim)
    groups = [(query, choose.sample(range(3, 9), choose.randrange(1, 7))) for query in range(3)]
    aligner = Aligner(texts.arena.rows)
    together = aligner(groups_of(texts, groups))
    alone = AlignedRows()
    for query, documents in groups:
        for document in documents:
            alone.extend(aligner(groups_of(texts, [(query, [document])])))
    assert alone == together


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_same_on_cuda(dtype: torch.dtype) -> None:
    texts = Filled([600, 1, 40, 2100, 0, 180], 128, dtype)
    groups = groups_of(texts, [(0, [1, 2, 3, 4, 5]), (2, [3])])
    expected = Reference(texts.arena.rows).align(groups)
    found = Aligner(texts.arena.rows.cuda())(groups)
    assert found.similarities.tolist() == pytest.approx(expected.similarities.tolist(), abs=2e-6)
    differ = sum(a != b for a, b in zip(found.document_rows, expected.document_rows, strict=True))
    assert differ <= len(found.document_rows) // 1000  # rows that are equal but for rounding

"""Products of few shapes, whose results are those of the rows that were asked for."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.linear import multiply
from scorer_worker.arena import Arena
from scorer_worker.kernels import grain_products, torch_packed
from scorer_worker.kernels.grain_products import GrainProducts, few_product, sizes_up_to
from scorer_worker.scorer import PairGroup, Scorer
from scorer_worker.store import ROW_GRAIN, NewEntry

DIM = 24


@given(st.integers(1, 5000))
def test_sizes_grow_by_a_quarter_at_most(most: int) -> None:
    sizes = sizes_up_to(most)
    assert sizes == sorted(set(sizes)) and sizes[0] == min(1, most) and sizes[-1] == most
    assert all(after <= max(before + 1, 1.25 * before) for before, after in itertools.pairwise(sizes))


@given(
    rows=st.integers(1, 70), places=st.lists(st.integers(0, 39), min_size=1, max_size=30), seed=st.integers(0, 2**32)
)
def test_what_is_added_changes_nothing(rows: int, places: list[int], seed: int) -> None:
    arena = torch.randn(40 * ROW_GRAIN, DIM, generator=torch.Generator().manual_seed(seed))
    products = GrainProducts(arena, 30)
    product = products(products.query(ROW_GRAIN, rows), torch.tensor(places))
    for place, each in zip(places, product, strict=True):
        grain = arena[place * ROW_GRAIN : (place + 1) * ROW_GRAIN]
        expected = grain @ arena[ROW_GRAIN : ROW_GRAIN + rows].T
        assert torch.allclose(each[:, :rows], expected, atol=1e-4)


@pytest.mark.parametrize("dim", [16, 24, 96, 128, 384, 1024])
def test_a_few_grains_give_the_same_bits_as_many(dim: int) -> None:
    arena = torch.randn(200 * ROW_GRAIN, dim, generator=torch.Generator().manual_seed(dim))
    products, multiply_few = GrainProducts(arena, 200), few_product(arena)
    for rows in (1, 16, 17, 32, 48, 130):
        query = products.query(ROW_GRAIN, rows)
        whole = products(query, torch.arange(200))
        for count in (1, 2, 3, 5, 10, 14, 16, 56, 64):
            few = multiply_few(products.gather(torch.arange(count)), query)
            assert torch.equal(few.view(count, ROW_GRAIN, -1), whole[:count])


def test_traffic_of_any_shape_is_multiplied_in_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new one is compiled, which takes longer than to compute it, and kept."""
    shapes: set[tuple[int, int]] = set()

    def remembering(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        shapes.add((rows.shape[0], weight.shape[0]))
        return multiply(rows, weight)

    monkeypatch.setattr(grain_products, "multiply", remembering)
    monkeypatch.setattr(torch_packed, "few_product", lambda arena: remembering)
    choose = random.Random(5)
    arena = Arena(2**24, DIM, torch.float32, torch.device("cpu"))
    lengths = [choose.randrange(1, 40) for _ in range(20)] + [choose.randrange(1, 300) for _ in range(100)]
    texts = [NewEntry(bytes([number]) * 16, length, 0) for number, length in enumerate(lengths)]
    entries = arena.directory.admit([], texts)
    assert entries is not None
    for entry in entries:
        arena.write(entry, torch.ones(entry.rows, DIM))
    scorer = Scorer(arena)
    for _ in range(300):
        query, documents = choose.choice(entries[:20]), choose.sample(entries[20:], choose.randrange(1, 90))
        scorer.score([PairGroup(query, documents)])
        scorer.align([PairGroup(query, documents)])
    assert {columns for _, columns in shapes} == {16, 32, 48}
    assert len(shapes) <= 3 * 40

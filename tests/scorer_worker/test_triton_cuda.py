"""The Triton kernel on a CUDA device: what its interpreter cannot show (`test_triton.py` has the rest)."""

from __future__ import annotations

import random

import pytest
import torch

from scorer_worker.arena import Arena
from scorer_worker.kernels import make_kernel
from scorer_worker.kernels.triton_packed import TritonPacked
from scorer_worker.pairs import PairGroup
from scorer_worker.store import Entry, NewEntry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda", 0)
TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def make_arena(rows: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Normalised rows, made on the device."""
    arena = torch.empty(rows, dim, dtype=dtype, device=CUDA)
    generator = torch.Generator(CUDA).manual_seed(0)
    for first in range(0, rows, 2**20):
        part = arena[first : first + 2**20]
        some = torch.randn(part.shape, device=CUDA, generator=generator)
        part.copy_(torch.nn.functional.normalize(some, dim=1))
    return arena


def place(arena: torch.Tensor, start: int, rows: int) -> Entry:
    """An entry at this row, its last grain filled up as `Arena.write` does it."""
    end = start + rows
    arena[end : end + -rows % 16] = arena[end - 1].clone() if rows else float("nan")
    return Entry(start.to_bytes(16, "little"), start, rows, -(-rows // 16) * 16, rows, True, 0, 0)


def scattered(arena: torch.Tensor, lengths: list[int], choose: random.Random) -> list[Entry]:
    """Entries of these lengths, in any order over all of the arena."""
    gaps = (len(arena) - sum(-(-rows // 16) * 16 for rows in lengths)) // (len(lengths) + 1) // 16
    entries: dict[int, Entry] = {}
    row = 0
    for which in choose.sample(range(len(lengths)), len(lengths)):
        row += 16 * choose.randrange(gaps + 1)
        entries[which] = place(arena, row, lengths[which])
        row += -(-lengths[which] // 16) * 16
    return [entries[which] for which in range(len(lengths))]


def exact(arena: torch.Tensor, groups: list[PairGroup]) -> list[float]:
    """The scores in float64."""

    def rows(entry: Entry) -> torch.Tensor:
        return arena[entry.start : entry.start + entry.rows].double()

    return [
        float((rows(group.query) @ rows(document).T).amax(1).sum()) if group.query.rows and document.rows else 0.0
        for group in groups
        for document in group.documents
    ]


@pytest.mark.parametrize(
    ("dim", "dtype"),
    [
        *((dim, "float16") for dim in (16, 17, 48, 64, 96, 100, 128, 256, 384, 512, 768, 1024)),
        *((dim, "bfloat16") for dim in (96, 128, 768)),
        *((dim, "float32") for dim in (96, 128, 384)),
    ],
)
def test_any_dim_and_dtype(dim: int, dtype: str) -> None:
    arena = make_arena(2**15, dim, TORCH_DTYPES[dtype])
    lengths = [1, 16, 31, 32, 33, 64, 65, 200, 0, 15, 17, 63, 64, 129, 500, 1024, 1025, 3000]
    texts = scattered(arena, lengths, random.Random(dim))
    groups = [PairGroup(query, texts) for query in texts[:9]]
    scores = make_kernel(arena)(groups)
    # A text against itself: what the tensor cores cut off adds up, since every product is as large as it can be.
    assert list(scores) == pytest.approx(exact(arena, groups), abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_error_against_float64(dtype: str) -> None:
    arena = make_arena(2**17, 128, TORCH_DTYPES[dtype])
    texts = scattered(arena, [32, 1024, *range(100, 500)], random.Random(0))
    kernel = make_kernel(arena)
    for query, allowed in ((texts[0], 5e-6), (texts[1], 1e-4)):
        groups = [PairGroup(query, texts[2:])]
        errors = [abs(ours - true) for ours, true in zip(kernel(groups), exact(arena, groups), strict=True)]
        print(f"{dtype}, {query.rows} rows: {max(errors):.2g}")
        assert max(errors) <= allowed


@pytest.mark.parametrize("dim", [96, 128, 384])
def test_a_thousand_batches_score_a_pair_the_same_bits(dim: int) -> None:
    choose = random.Random(dim)
    arena = make_arena(2**19, dim, torch.float16)
    queries = [0, 7, 20, 32, 33, 50, 64, 65, 128, 300, 1030]
    lengths = [*queries, *(choose.randrange(0, 700) for _ in range(300)), 1024, 1025, 5000, 20000]
    texts = scattered(arena, lengths, choose)
    kernel = make_kernel(arena)
    alone: dict[tuple[int, int], float] = {}
    for _ in range(1000):
        plan = [
            (query, choose.sample(range(len(queries), len(texts)), choose.randrange(1, choose.choice([3, 30, 300]))))
            for query in choose.choices(range(len(queries)), k=choose.randrange(1, 9))
        ]
        scores = iter(kernel([PairGroup(texts[query], [texts[d] for d in documents]) for query, documents in plan]))
        for query, documents in plan:
            for document in documents:
                score = next(scores)
                assert alone.setdefault((query, document), score) == score, (lengths[query], lengths[document])
    for query, document in choose.sample(sorted(alone), 300):
        assert kernel([PairGroup(texts[query], [texts[document]])])[0] == alone[query, document]


def test_arena_of_more_than_2_to_the_31_elements() -> None:
    """6 GiB: offsets in elements and in bytes need 64 bits."""
    dim = 128
    arena = torch.empty(6 * 2**30 // (2 * dim), dim, dtype=torch.float16, device=CUDA)
    assert arena.numel() > 2**31
    last = len(arena) - 4096
    some = make_arena(4096, dim, torch.float16)
    for first in (0, last):
        arena[first : first + 4096] = some
    kernel = make_kernel(arena)
    for query, document in ((0, 1024), (40, 1024), (0, 3000), (0, 300), (300, 1024), (300, 20)):
        low = PairGroup(place(arena, 64, query or 32), [place(arena, 1024, document)])
        high = PairGroup(place(arena, last + 64, query or 32), [place(arena, last + 1024, document)])
        crossed = PairGroup(low.query, high.documents)
        scores = kernel([low, high, crossed])
        assert scores[0] == scores[1] == scores[2] == pytest.approx(exact(arena, [high])[0], abs=1e-5, rel=1e-6)


def test_more_pairs_than_one_launch_takes() -> None:
    arena = make_arena(2**19, 64, torch.float16)
    choose = random.Random(1)
    texts = scattered(arena, [20, 50, 200, *(choose.randrange(0, 100) for _ in range(6000))], choose)
    groups = [PairGroup(query, texts[3:]) for query in (*texts[:3], texts[0], texts[2], texts[2])]
    scores = list(make_kernel(arena)(groups))
    assert scores == pytest.approx(exact(arena, groups), abs=5e-5)
    assert scores[:6000] == scores[18000:24000]
    assert scores[12000:18000] == scores[24000:30000] == scores[30000:]


@pytest.mark.parametrize(("dim", "dtype"), [(40, "float16"), (64, "bfloat16"), (96, "float16"), (128, "float16")])
def test_long_queries_have_the_bits_of_blocks(dim: int, dtype: str) -> None:
    """Of any lengths, in a kernel of their own where the device has one, and in blocks of 128 rows."""
    choose = random.Random(dim)
    arena = make_arena(2**18, dim, TORCH_DTYPES[dtype])
    queries = [129, 200, 256, 257, 511, 1024, 1025, 2100]
    lengths = [*queries, 0, 1, 63, 64, 127, 128, 129, 255, 256, 257, 5000, *(choose.randrange(700) for _ in range(60))]
    texts = scattered(arena, lengths, choose)
    kernel, blocks = TritonPacked(arena), TritonPacked(arena)
    assert kernel._long is not None or torch.cuda.get_device_capability() != (9, 0)
    blocks._long = None
    for _ in range(20):
        groups = [
            PairGroup(query, choose.sample(texts[8:], choose.randrange(1, 60)))
            for query in choose.sample(texts, choose.randrange(1, 9))
        ]
        assert list(kernel(groups)) == list(blocks(groups))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_batch_is_written_where_its_entries_are(dtype: str) -> None:
    """Far apart in an arena of more than 2^31 elements, and nothing beside them is touched."""
    dim = 128
    arena = Arena(3 * 2**30 * TORCH_DTYPES[dtype].itemsize, dim, TORCH_DTYPES[dtype], CUDA)
    arena.rows.zero_()
    choose = random.Random(0)
    entries = []
    for number, rows in enumerate([1, 16, 17, 300, 0, 5, 2000, 32]):
        gap_rows = arena.directory.max_job_rows if number < 3 else 64
        gap = arena.directory.admit([], [NewEntry(b"gap %012d" % number, gap_rows, 0)])
        new = arena.directory.admit([], [NewEntry(number.to_bytes(16, "little"), rows, 0)])
        assert gap and new
        entries += new
    assert max(entry.start for entry in entries) * dim > 2**31
    firsts = [choose.randrange(1000) for _ in entries]
    embeddings = torch.nn.functional.normalize(torch.randn(3000, dim, device=CUDA), dim=1)
    arena.copy_batch(entries, firsts, embeddings)
    expected = torch.zeros_like(arena.rows)
    for entry, first in zip(entries, firsts, strict=True):
        if entry.rows:
            own = embeddings[first : first + entry.rows].to(arena.rows.dtype)
            filled = torch.cat([own, own[-1:].expand(-entry.rows % 16, dim)])
            expected[entry.start : entry.start + len(filled)] = filled
    assert torch.equal(arena.rows, expected)

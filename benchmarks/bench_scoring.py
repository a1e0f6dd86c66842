"""MaxSim on a CPU through the real store: 1000 ragged documents x 32 query rows, scattered after churn and together.

    python -m benchmarks.bench_scoring

Every variant is checked against the reference before it is timed. FLOPs count real rows only: 2 * 32 * rows * dim.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measuring import interleave, parser, spread, timed, write
from engine.allocator import keep_freed_memory
from engine.linear import Linear, multiply
from scorer_worker.arena import Arena
from scorer_worker.scorer import PairGroup, Scorer
from scorer_worker.store import Entry, NewEntry

DOCUMENTS, QUERY_ROWS, MEAN_ROWS = 1000, 32, 184
ARENA_BYTES = 2**30
CHURN = 3  # times that the store's whole content is replaced
GEMM = 3000
PAGE_ROWS = 16
VLLM_BATCH = 128  # documents that a padded scorer takes at a time


def main() -> None:
    arguments = parser(__doc__ or "", "scoring-cpu")
    arguments.add_argument("--dims", type=int, nargs="+", default=[128, 384])
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    keep_freed_memory()  # as the worker does
    results = {f"dim_{dim}": measure(dim, options.runs, options.seed) for dim in options.dims}
    write(options.out, {"threads": options.threads, **results})


def measure(dim: int, runs: int, seed: int) -> dict[str, Any]:
    choose = random.Random(seed)
    torch.manual_seed(seed)
    lengths = [round(choose.uniform(0.5, 1.5) * MEAN_ROWS) for _ in range(DOCUMENTS)]
    texts = [torch.nn.functional.normalize(torch.randn(rows, dim), dim=1) for rows in [QUERY_ROWS, *lengths]]
    scattered, churn_seconds = place(texts, dim, choose, churned=True)
    together, _ = place(texts, dim, choose, churned=False)
    query, documents = texts[0], texts[1:]
    left, right = torch.randn(GEMM, GEMM), torch.randn(GEMM, GEMM)
    product = torch.empty(GEMM, GEMM)
    pages = Pages(documents, dim, choose)
    variants: dict[str, Callable[[], Any]] = {
        "ours_scattered": scattered,
        "ours_together": together,
        "pages_of_16_rows": lambda: pages.score(query),
        "padded_like_vllm": lambda: padded(query, documents),
        "cat_and_segment_reduce": lambda: cat_segments(query, documents, lengths),
        "matmul_per_document": lambda: per_document(query, documents),
    }
    expected = torch.stack([(query @ document.T).amax(1).sum() for document in documents])
    for name, variant in variants.items():
        error = (torch.as_tensor(variant()) - expected).abs().max().item()
        assert error < 1e-4, f"{name}: off by {error}"
    packed = Linear(right, None)
    seconds = interleave(
        {
            "sgemm_mkl": timed(lambda: torch.mm(left, right, out=product)),
            "sgemm_onednn": timed(lambda: packed(left)),
            **{name: timed(variant) for name, variant in variants.items()},
        },
        runs,
    )
    flops = 2 * QUERY_ROWS * sum(lengths) * dim
    rates = {n: 2 * GEMM**3 / spread(seconds[n])["median"] / 1e9 for n in ("sgemm_mkl", "sgemm_onednn")}
    blas, onednn = rates["sgemm_mkl"], rates["sgemm_onednn"]
    table = {}
    for name in variants:
        rate = flops / spread(seconds[name])["median"] / 1e9
        shares = {"share_of_sgemm": rate / blas, "share_of_onednn": rate / onednn}
        table[name] = {"ms": spread(seconds[name], 1e3), "gflops": rate, **shares}
    baseline = table["padded_like_vllm"]["ms"]["median"]  # type: ignore[index]
    return {
        "documents": DOCUMENTS,
        "document_rows": sum(lengths),
        "sgemm_gflops": rates,
        "churn_seconds": churn_seconds,
        "variants": table,
        "scattered_over_padded_like_vllm": baseline / table["ours_scattered"]["ms"]["median"],  # type: ignore[index]
    }


def place(texts: list[torch.Tensor], dim: int, choose: random.Random, churned: bool) -> tuple[Callable[[], Any], float]:
    """The texts in a real arena, among others that came and went; and the call that scores them."""
    arena = Arena(ARENA_BYTES, dim, torch.float32, torch.device("cpu"))
    directory = arena.directory
    noise = torch.nn.functional.normalize(torch.randn(512, dim), dim=1)
    count = 0

    def add(rows: torch.Tensor) -> Entry:
        nonlocal count
        count += 1
        admitted = directory.admit([], [NewEntry(count.to_bytes(16, "little"), len(rows), len(rows))])
        assert admitted is not None
        arena.write(admitted[0], rows)
        return admitted[0]

    def add_noise() -> int:
        rows = choose.randrange(20, 512)
        directory.unpin([add(noise[:rows])])
        return rows

    started = time.perf_counter()
    written = 0
    while churned and written < CHURN * directory.capacity_rows:
        written += add_noise()
    churn_seconds = time.perf_counter() - started
    entries = []
    for text in texts:
        entries.append(add(text))
        if churned:
            add_noise()
    directory.check_integrity()
    scorer = Scorer(arena)
    groups = [PairGroup(entries[0], entries[1:])]
    return lambda: scorer.score(groups), churn_seconds


class Pages:
    """The other store (decision 0001): documents in pages of 16 rows that lie anywhere, gathered page by page."""

    def __init__(self, documents: list[torch.Tensor], dim: int, choose: random.Random) -> None:
        counts = [-(-len(document) // PAGE_ROWS) for document in documents]
        total = ARENA_BYTES // (4 * dim * PAGE_ROWS)
        self._arena = torch.zeros(total, PAGE_ROWS, dim)
        self._dim = dim
        places = iter(choose.sample(range(total), sum(counts)))
        self._table = []
        for document, count in zip(documents, counts, strict=True):
            pages = [next(places) for _ in range(count)]
            padded_document = torch.cat([document, document[-1:].expand(count * PAGE_ROWS - len(document), -1)])
            self._arena[pages] = padded_document.view(count, PAGE_ROWS, dim)
            self._table.append(pages)
        self._places = torch.tensor([page for pages in self._table for page in pages])
        self._owner = torch.repeat_interleave(torch.tensor(counts))
        self._scratch = torch.empty(256, PAGE_ROWS * dim)

    def score(self, query: torch.Tensor) -> torch.Tensor:
        flat = self._arena.view(len(self._arena), -1)
        maxima = torch.empty(len(self._places), len(query))
        for start in range(0, len(self._places), 256):
            some = self._places[start : start + 256]
            rows = torch.index_select(flat, 0, some, out=self._scratch[: len(some)])
            products = multiply(rows.view(-1, self._dim), query)
            torch.amax(products.view(len(some), PAGE_ROWS, -1), 1, out=maxima[start : start + len(some)])
        best = torch.full((len(self._table), len(query)), float("-inf"))
        best.scatter_reduce_(0, self._owner[:, None].expand_as(maxima), maxima, "amax")
        return best.sum(1)


def padded(query: torch.Tensor, documents: list[torch.Tensor]) -> torch.Tensor:
    """The shape of vLLM's batched scorer (compute_maxsim_score_batched): pad to the longest of a batch, one bmm, mask,
    max, sum. Own code after its description."""
    scores = []
    for start in range(0, len(documents), VLLM_BATCH):
        some = documents[start : start + VLLM_BATCH]
        longest = max(len(document) for document in some)
        batch = torch.zeros(len(some), longest, query.shape[1])
        mask = torch.zeros(len(some), longest, dtype=torch.bool)
        for index, document in enumerate(some):
            batch[index, : len(document)] = document
            mask[index, : len(document)] = True
        similarity = torch.bmm(query.expand(len(some), -1, -1), batch.transpose(1, 2))
        similarity = similarity.masked_fill(~mask[:, None], float("-inf"))
        scores.append(similarity.amax(2).sum(1))
    return torch.cat(scores)


def cat_segments(query: torch.Tensor, documents: list[torch.Tensor], lengths: list[int]) -> torch.Tensor:
    products = torch.cat(documents) @ query.T
    return torch.segment_reduce(products, "max", lengths=torch.tensor(lengths)).sum(1)


def per_document(query: torch.Tensor, documents: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(document @ query.T).amax(0).sum() for document in documents])


if __name__ == "__main__":
    main()

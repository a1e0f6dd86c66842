"""Batches as CUDA graphs: one call for what are some hundred launches, which take a small batch longer than computing.

Also where the device is the slower one it pays: a host that launches holds Python's lock most of the time, and whoever
wants to score meanwhile waits for it.

A graph has fixed shapes, so a batch is filled up to the next of its sizes with a text of its own that nobody reads.
All are captured at start. Graphs share the memory of what they compute in between, as one is replayed after the other.
A batch that is larger than the largest, or of very many and very short texts, is launched in the usual way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.encode_queue import MAX_BATCH_TEXTS
from engine.packing import DeviceLengths, PackedBatch

TOKENS_PER_TEXT = 32  # a batch of more and shorter texts is launched in the usual way, unless it is a small one
TOKENS_PER_SHORT_TEXT = 8  # in a batch of at most SHORT_TEXTS: room for more costs attention an empty program each
SHORT_TEXTS = MAX_BATCH_TEXTS
FEW_TEXTS = 8
SMALLEST = (64, 128)  # tokens; the next sizes are multiples of STEP
STEP = 256  # a batch is filled up with half of it on average: less than a hundredth of a full one

Forward = Callable[[PackedBatch], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Graph:
    """One size: where its inputs are read and its output is written."""

    graph: torch.cuda.CUDAGraph
    rows: torch.Tensor  # [3, size] int64: token ids, positions, which rows are keys
    ends: torch.Tensor  # [2, most texts + 2] int32: where each text's rows and keys end
    output: torch.Tensor  # [size, dim]


class GraphedBatches:
    """The graphs of one encoder.

    Args:
        forward: from a batch on the device to its rows; must be the same launches whatever the lengths are.
        device: CUDA. Capturing happens on the current stream's thread; nothing else may use the device meanwhile.
        max_tokens: of a batch that has a graph.
    """

    def __init__(self, forward: Forward, device: torch.device, max_tokens: int) -> None:
        pool = torch.cuda.graph_pool_handle()
        self._sizes = sizes_up_to(max_tokens)
        # the largest first: the smaller ones find room in what it has taken
        self._graphs = {size: _capture(forward, size, device, pool) for size in reversed(self._sizes)}

    def takes(self, lengths: Sequence[int]) -> bool:
        """Whether there is a graph for a batch of such texts."""
        total = sum(lengths)
        return total <= self._sizes[-1] and len(lengths) <= _most_texts(self._size_for(total))

    def _size_for(self, tokens: int) -> int:
        return self._sizes[bisect_left(self._sizes, tokens)]

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """
        Args:
            batch: one that is taken, on the CPU.

        Returns:
            [total_tokens, dim], on the device.
        """
        total = batch.cu_seqlens[-1]
        size = self._size_for(total)
        graph = self._graphs[size]
        # pinned memory comes from a cache that waits for copies out of it: the next batch does not overwrite this one
        rows = torch.zeros(3, size, dtype=torch.int64, pin_memory=True)
        rows[0, :total], rows[1, :total] = batch.token_ids, batch.position_ids
        keys = _keys_of(batch)
        rows[2, : len(keys)] = keys
        graph.rows.copy_(rows, non_blocking=True)
        graph.ends.copy_(_ends_of(batch, size, graph.ends.shape[1]), non_blocking=True)
        graph.graph.replay()
        return graph.output[:total].clone()  # the next replay writes there again


def sizes_up_to(max_tokens: int) -> list[int]:
    """Tokens of the graphs' batches, ascending; the last is `max_tokens` or a little more."""
    return [*SMALLEST, *range(STEP, max_tokens + STEP, STEP)]


def _most_texts(size: int) -> int:
    return max(FEW_TEXTS, size // TOKENS_PER_TEXT, min(SHORT_TEXTS, size // TOKENS_PER_SHORT_TEXT))


def _capture(forward: Forward, size: int, device: torch.device, pool: Any) -> _Graph:
    rows = torch.zeros(3, size, dtype=torch.int64, device=device)
    ends = torch.full((2, _most_texts(size) + 2), size, dtype=torch.int32, device=device)
    ends[:, 0] = 0
    lengths = DeviceLengths(ends[0], ends[1], rows[2], size, size)
    batch = PackedBatch(rows[0], rows[1], [size], [0, size], [size], lengths)
    for _ in range(2):  # what is loaded or chosen at first use must not be captured
        forward(batch)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        output = forward(batch)
    graph.replay()  # the first replay brings a graph to the device, for which everybody else there would wait
    return _Graph(graph, rows, ends, output)


def _keys_of(batch: PackedBatch) -> torch.Tensor:
    """The rows that are attended to."""
    if list(batch.attended) == list(batch.lengths):
        return torch.arange(batch.cu_seqlens[-1])
    return torch.from_numpy(np.flatnonzero(batch.position_ids.numpy() < np.repeat(batch.attended, batch.lengths)))


def _ends_of(batch: PackedBatch, size: int, width: int) -> torch.Tensor:
    """[2, width] int32, pinned. After the texts comes one that fills the batch up, has no keys and is not read;
    after it come texts without rows."""
    pinned = torch.empty(2, width, dtype=torch.int32, pin_memory=True)
    ends = pinned.numpy()
    count = len(batch.lengths)
    ends[0, : count + 1] = batch.cu_seqlens
    ends[0, count + 1 :] = size
    ends[1, 0] = 0
    np.cumsum(batch.attended, out=ends[1, 1 : count + 1])
    ends[1, count + 1 :] = ends[1, count]
    return pinned

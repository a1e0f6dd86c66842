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
from engine.packing import DeviceLengths, Numbers, PackedBatch, PackedNumbers
from engine.pinned import pinned

TOKENS_PER_TEXT = 32  # a batch of more and shorter texts is launched in the usual way, unless it is a small one
TOKENS_PER_SHORT_TEXT = 8  # in a batch of at most SHORT_TEXTS: room for more costs attention an empty program each
SHORT_TEXTS = MAX_BATCH_TEXTS
FEW_TEXTS = 8
SMALLEST = (64, 128)  # tokens; the next sizes are multiples of STEP
ROW_INPUTS = 4
STEP = 256  # a batch is filled up with half of it on average: less than a hundredth of a full one

Forward = Callable[[PackedBatch], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Graph:
    """One size: where its inputs are read and its output is written."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor  # int64, of `_rows_of` and `_ends_of`
    kept: torch.Tensor  # [size], of these: the rows that are wanted of a batch, if not all of them are
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

    def __call__(self, numbers: PackedNumbers, kept: Numbers | None = None) -> torch.Tensor:
        """
        Args:
            numbers: of a batch that is taken.
            kept: which of its rows are wanted, [n]; None: all of them.

        Returns:
            [n, dim] or [total_tokens, dim], on the device.
        """
        total = int(numbers.cu_seqlens[-1])
        size = self._size_for(total)
        graph = self._graphs[size]
        inputs, values = pinned(tuple(graph.inputs.shape), torch.int64)
        _write_rows(_rows_of(values, size), numbers, kept)
        _write_ends(_ends_of(values, size, np.int32), numbers, size)
        graph.inputs.copy_(inputs, non_blocking=True)
        graph.graph.replay()
        # a copy: the next replay writes there again
        return graph.output[:total].clone() if kept is None else graph.output.index_select(0, graph.kept[: len(kept)])


def sizes_up_to(max_tokens: int) -> list[int]:
    """Tokens of the graphs' batches, ascending; the last is `max_tokens` or a little more."""
    return [*SMALLEST, *range(STEP, max_tokens + STEP, STEP)]


def _most_texts(size: int) -> int:
    return max(FEW_TEXTS, size // TOKENS_PER_TEXT, min(SHORT_TEXTS, size // TOKENS_PER_SHORT_TEXT))


def _capture(forward: Forward, size: int, device: torch.device, pool: Any) -> _Graph:
    inputs = torch.zeros(ROW_INPUTS * size + _most_texts(size) + 2, dtype=torch.int64, device=device)
    rows, ends = _rows_of(inputs, size), _ends_of(inputs, size, torch.int32)
    ends[:, 1:] = size
    lengths = DeviceLengths(ends[0], ends[1], rows[2], size, size)
    batch = PackedBatch(rows[0], rows[1], [size], [0, size], [size], lengths)
    for _ in range(2):  # what is loaded or chosen at first use must not be captured
        forward(batch)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        output = forward(batch)
    graph.replay()  # the first replay brings a graph to the device, for which everybody else there would wait
    return _Graph(graph, inputs, rows[3], output)


def _rows_of(inputs: Any, size: int) -> Any:
    """[ROW_INPUTS, size] int64: token ids, positions, which rows are keys, which are kept."""
    return inputs[: ROW_INPUTS * size].reshape(ROW_INPUTS, size)


def _ends_of(inputs: Any, size: int, int32: Any) -> Any:
    """[2, most texts + 2] int32: where each text's rows and keys end.

    Args:
        int32: of the library that `inputs` is of.
    """
    return inputs[ROW_INPUTS * size :].view(int32).reshape(2, -1)


def _write_rows(rows: Any, numbers: PackedNumbers, kept: Numbers | None) -> None:
    total = len(numbers.token_ids)
    rows[0, :total], rows[1, :total] = numbers.token_ids, numbers.position_ids
    rows[:2, total:] = 0
    keys = numbers.keys
    if keys is None:
        keys = np.arange(total)
    rows[2, : len(keys)] = keys
    rows[2, len(keys) :] = 0
    if kept is not None:
        rows[3, : len(kept)] = kept  # what follows is not read


def _write_ends(ends: Any, numbers: PackedNumbers, size: int) -> None:
    """After the texts comes one that fills the batch up, has no keys and is not read; after it texts without rows."""
    after = len(numbers.lengths) + 1
    ends[0, :after], ends[1, :after] = numbers.cu_seqlens, numbers.cu_keys
    ends[0, after:], ends[1, after:] = size, ends[1, after - 1]

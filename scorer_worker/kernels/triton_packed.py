"""MaxSim in one fused kernel: the fast one on CUDA. This is its host side; `triton_maxsim` says how it computes.

A call is one launch, unless it is very large. The table of a launch is the `place` of each document and each query,
joined, or where pairs are cut into several work items a record of each item, made without a loop over pairs. It lies in
pinned memory, and the device reads it there: that costs it 2 us for a small call, where a copy costs it 9 to 25 and the
host 20. The device writes the scores to pinned memory itself, and a call waits once, at its end.

Configurations are fixed, chosen offline by dimension, type and the launch's longest query; which one computes a pair
does not change the bits of its score. On a Hopper GPU longer queries have a kernel of their own, `gluon_packed`, which
runs beside the launch of the others. All are compiled when the kernel is made, none later; a launch goes around
Triton's dispatch, which takes longer than a small kernel.

Under Triton's interpreter (TRITON_INTERPRET=1 before triton is imported) the same code runs on a CPU, for tests.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
from triton.runtime import driver

from scorer_worker.kernels.triton_maxsim import maxsim_items
from scorer_worker.pairs import PLACE_BYTES, PairGroup

if TYPE_CHECKING:
    from scorer_worker.kernels.gluon_packed import LongQueries

SHORT, MEDIUM, LONG = range(3)  # classes of launches, by their longest query
SHORT_ROWS, MEDIUM_ROWS = 32, 64
LONG_ROWS = 128  # of a query that is not yet one for `gluon_packed`
GLUON_KNOWN = ((3, 6),)  # versions of Triton with which tests passed on a device; Gluon is an experiment of theirs
Numbers = np.ndarray[Any, np.dtype[np.int32 | np.int64]]
CHUNK = 1024  # document rows of an item, where as many items do not just exceed what runs at a time
TILE = 64  # document rows that a chunk is a multiple of: BLOCK_D of all configurations
RECORD_BYTES = 32  # of an item's record
SHARED_BESIDE = 1024  # bytes of shared memory that a program takes beside its own
WHOLE_ROWS = 2048  # of a document that stays one item, where there are MANY_PAIRS to keep the device busy beside it
MANY_PAIRS = 512
STRIDE = 32  # of pairs whose items follow each other, where pairs are cut
LAUNCH_PAIRS = 16_384  # each further launch cost an H100 8 us, by hand: it runs dry between two
SCRATCH_ROWS = 2**22  # query rows of a launch with a long query, over all its pairs: 16 MiB of maxima
BALANCE = 90  # products of rows with long queries, to a document row of other pairs, that hide behind memory
HELD_COLUMNS = 256  # of a query block that stays in shared memory, where it leaves room for enough programs
HELD_COLUMNS_LONG = 384  # of a larger block, which would be read again more often


@dataclass(frozen=True, slots=True)
class Config:
    """How items are computed; but for the warps, constants of `maxsim_items`, which says what they mean."""

    dim: int
    block_k: int
    k_steps: int
    hold_query: bool
    block_q: int
    block_d: int = 64
    query_on_m: bool = False
    is_cut: bool = False
    precision: str = "ieee"
    stages: int = 3
    num_warps: int = 4

    @property
    def constants(self) -> tuple[Any, ...]:
        return (
            *(self.dim, self.block_k, self.k_steps, self.hold_query, self.block_q, self.block_d),
            *(self.query_on_m, self.is_cut, self.precision, self.stages),
        )


def choose_configs(dim: int, itemsize: int) -> list[Config]:
    """The configurations of SHORT, MEDIUM and LONG launches."""
    block_k = _block_k(dim, itemsize)
    short = Config(dim, block_k, -(-dim // block_k), itemsize == 2 and dim <= HELD_COLUMNS, SHORT_ROWS)
    medium = replace(short, block_q=MEDIUM_ROWS)
    if itemsize == 4:  # without tensor cores, so that it is fp32: a store on CUDA is fp16 unless one asks for this
        return [short, medium, medium]
    stages = 3 if dim <= HELD_COLUMNS else 2 if dim <= HELD_COLUMNS_LONG else 3
    num_warps = 4 if dim <= 128 else 8
    held = dim <= HELD_COLUMNS_LONG
    long = replace(short, block_q=128, query_on_m=True, num_warps=num_warps, hold_query=held, stages=stages)
    return [short, medium, long]


def _block_k(dim: int, itemsize: int) -> int:
    """Columns multiplied at a time: a power of two, with little padding and few steps."""
    sizes = (16, 32, 64, 128) if itemsize == 2 else (16, 32)
    return min(sizes, key=lambda size: (-(-dim // size) * (size + 8), -size))


class TritonPacked:
    """The contract is `Reference`'s.

    Args:
        arena: [rows, dim] float16, bfloat16 or float32, on CUDA.
    """

    def __init__(self, arena: torch.Tensor) -> None:
        self._arena = arena
        self._on_device = arena.device.type == "cuda"
        self._tables = _Pinned(2**18, torch.int32, arena.device)
        self._used = 0  # bytes of the tables, by launches of this call
        self._outgrown: list[_Pinned] = []  # what a launch of this call may still read
        self._scores = _Pinned(2**14, torch.float32, arena.device)
        self._stream: torch.cuda.Stream | None = None
        self._scratch = torch.full((SCRATCH_ROWS,), float("-inf"), device=arena.device)
        self._arrivals = torch.zeros(LAUNCH_PAIRS, dtype=torch.int32, device=arena.device)
        self._addresses = [tensor.data_ptr() for tensor in (arena, self._scratch, self._arrivals)]
        self._moved: Sequence[PairGroup] | None = None  # the groups of this call, where they are scored in other order
        self._whole: list[_Program] = []  # of each class: every pair is one item
        self._cut: list[_Program] = []  # of each class: a pair may be several
        self._long: LongQueries | None = None
        self._warm_up(choose_configs(arena.shape[1], arena.element_size()))

    def __call__(self, groups: Sequence[PairGroup]) -> Sequence[float]:
        """See `Reference.__call__`."""
        return self.finish(self.start(groups))

    def start(self, groups: Sequence[PairGroup]) -> int:
        """Launch what computes the scores of these pairs. `finish` comes next.

        Returns:
            The number of pairs.
        """
        num_pairs = sum([len(group.documents) for group in groups])
        self._used = 0
        if num_pairs > len(self._scores.tensor):
            self._scores = _Pinned(2 * num_pairs, torch.float32, self._arena.device)
        stream = self._current_stream()
        longest = max([group.query.rows for group in groups], default=0)
        if self._long is None or stream is None or longest <= LONG_ROWS:
            self._moved = None
            self._start(groups, 0, stream)
        else:
            self._moved = groups
            self._start_apart(self._long, groups, stream)
        return num_pairs

    def finish(self, num_pairs: int) -> Sequence[float]:
        """Wait for what was started, and return its scores."""
        if num_pairs:
            self._wait()
        scores = array("f", self._scores.bytes[: 4 * num_pairs].tobytes())
        return scores if self._moved is None else _in_order(scores, self._moved)

    def _start(self, groups: Sequence[PairGroup], first: int, stream: torch.cuda.Stream | None) -> None:
        """Launch what computes the scores of these pairs; they go to `first` and on."""
        for launch in _launches(groups):
            first += self._launch(launch, first, stream)

    def _start_apart(self, long: LongQueries, groups: Sequence[PairGroup], stream: torch.cuda.Stream) -> None:
        """As `_start`, long queries first and beside the others: they wait for products, the others for memory."""
        of_long = [group for group in groups if _is_long(group)]
        others = [group for group in groups if not _is_long(group)]
        num_long = sum([len(group.documents) for group in of_long])
        first = 0
        with long.beside(stream) if others else nullcontext(stream) as side:
            for launch in _launches(of_long):
                records, share, tiles = long.cut(launch)
                table = self._write_table(records)
                long.launch(self._tables.address + table, self._scores.address + 4 * first, share, tiles, side)
                first += sum([len(group.documents) for group in launch])
            self._start(others, num_long, stream)

    def _warm_up(self, configs: list[Config]) -> None:
        """Compile and load every configuration, by scoring a pair without rows."""
        self._tables.bytes[:RECORD_BYTES] = bytes(RECORD_BYTES)  # a table of one pair
        pointers = self._pointers_within(self._tables.tensor, 0, 0)
        self._whole = [_Program(config, pointers) for config in configs[:LONG]]
        self._cut = [_Program(replace(config, is_cut=True), pointers) for config in configs]
        if _has_gluon(self._arena):
            from scorer_worker.kernels.gluon_packed import make_long_queries

            self._long = make_long_queries(
                self._arena, self._tables.tensor, self._scores.tensor, LAUNCH_PAIRS, SCRATCH_ROWS
            )
        self._wait()

    def _launch(self, groups: Sequence[PairGroup], first: int, stream: torch.cuda.Stream | None) -> int:
        """Start what computes the scores of these pairs; they go to `first` and on.

        Returns:
            The number of pairs.
        """
        documents = b"".join([group.places for group in groups])
        queries = b"".join([group.query.place * len(group.documents) for group in groups])
        longest = max([group.query.rows for group in groups])
        d_rows = np.frombuffer(documents, np.int32)[1::2]
        num_pairs = num_items = len(d_rows)
        chunk = CHUNK
        if longest <= MEDIUM_ROWS and d_rows.max() <= (CHUNK if num_pairs < MANY_PAIRS else WHOLE_ROWS):
            program = self._whole[SHORT if longest <= SHORT_ROWS else MEDIUM]
            table = self._write_table(documents, queries)
        else:
            q_rows = np.frombuffer(queries, np.int32)[1::2]
            program = self._cut[SHORT if longest <= SHORT_ROWS else _class_of_cut(d_rows, q_rows)]
            places = np.frombuffer(documents, np.int64), np.frombuffer(queries, np.int64)
            records, pairs, scratch_rows, chunk = _cut(places, program.config.block_q, program.at_a_time)
            num_items = len(pairs)
            self._reserve_scratch(scratch_rows)
            table = self._write_records(records, pairs)
        program.launch(num_items, self._pointers(table, num_pairs, first), chunk, stream)
        return num_pairs

    def _write_table(self, *parts: bytes) -> int:
        """A table of these parts, one after the other: where it is, in bytes."""
        table = place = self._reserve_table(sum([len(part) for part in parts]))
        for part in parts:
            self._tables.bytes[place : place + len(part)] = part
            place += len(part)
        return table

    def _write_records(self, records: Numbers, which: Numbers) -> int:
        """A table of these records: where it is, in bytes. Without an array between, whose pages cost more than it."""
        table = self._reserve_table(RECORD_BYTES * len(which))
        target = np.frombuffer(self._tables.bytes, np.int64, 4 * len(which), table).reshape(-1, 4)
        np.take(records, which, axis=0, out=target, mode="clip")  # "raise" would make a copy
        return table

    def _reserve_table(self, size: int) -> int:
        start = -(-self._used // RECORD_BYTES) * RECORD_BYTES  # so that a record is read in one piece
        if start + size > len(self._tables.bytes):
            self._outgrown.append(self._tables)
            self._tables = _Pinned((start + size) // 2, torch.int32, self._arena.device)  # twice as large as needed
            start = 0
        self._used = start + size
        return start

    def _pointers(self, table: int, num_pairs: int, first: int) -> list[torch.Tensor | int]:
        """The tensor arguments of `maxsim_items`: addresses, or under the interpreter tensors."""
        if not self._on_device:
            return self._pointers_within(self._tables.tensor[table // 4 :], num_pairs, first)
        arena, *others = self._addresses
        documents = self._tables.address + table
        return [arena, documents, documents + 8 * num_pairs, documents, *others, self._scores.address + 4 * first]

    def _pointers_within(self, table: torch.Tensor, num_pairs: int, first: int) -> list[torch.Tensor | int]:
        others = (self._scratch, self._arrivals, self._scores.tensor[first:])
        return [self._arena, table, table[2 * num_pairs :], table.view(torch.int64), *others]

    def _reserve_scratch(self, rows: int) -> None:
        if rows > len(self._scratch):  # one pair with a query of a million rows
            self._scratch = torch.full((rows,), float("-inf"), device=self._arena.device)
            self._addresses[1] = self._scratch.data_ptr()

    def _current_stream(self) -> torch.cuda.Stream | None:
        """torch's, by way of what is ten times as fast as torch where it has not changed."""
        if not self._on_device:
            return None
        raw = driver.active.get_current_stream(self._arena.device.index)
        if self._stream is None or self._stream.cuda_stream != raw:
            self._stream = torch.cuda.current_stream(self._arena.device)
        return self._stream

    def _wait(self) -> None:
        stream = self._current_stream()
        if stream is not None:
            stream.synchronize()
        self._outgrown.clear()


class _Program:
    """`maxsim_items`, compiled for one configuration and loaded.

    Args:
        pointers: arguments for one item, which is computed.
    """

    def __init__(self, config: Config, pointers: Sequence[torch.Tensor | int]) -> None:
        self.config = config
        self._constants = config.constants
        self._options = {"num_warps": config.num_warps}
        self._compiled: Any = maxsim_items[(1,)](*pointers, CHUNK, *self._constants, **self._options)
        self.at_a_time = 0 if self._compiled is None else _at_a_time(self._compiled)

    def launch(
        self, num_items: int, pointers: list[torch.Tensor | int], chunk: int, stream: torch.cuda.Stream | None
    ) -> None:
        if stream is None:  # under Triton's interpreter, which compiles nothing
            maxsim_items[(num_items,)](*pointers, chunk, *self._constants, **self._options)
        else:
            self._compiled[(num_items, 1, 1)](*pointers, chunk, *self._constants, stream=stream.cuda_stream)


def _at_a_time(compiled: Any) -> int:
    """How many programs the device has room for, by the shared memory that they take."""
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    shared = device.shared_memory_per_multiprocessor // (compiled.metadata.shared + SHARED_BESIDE)
    return int(device.multi_processor_count * shared)


def _has_gluon(arena: torch.Tensor) -> bool:
    """Whether `gluon_packed` runs here, and takes rows like these."""
    if arena.device.type != "cuda" or tuple(map(int, triton.__version__.split(".")[:2])) not in GLUON_KNOWN:
        return False
    is_hopper = torch.cuda.get_device_capability(arena.device) == (9, 0)
    return is_hopper and arena.element_size() == 2 and 32 < arena.shape[1] <= 128 and arena.shape[1] % 8 == 0


class _Pinned:
    """Memory that the host and the device read and write; on a CPU, just memory.

    Args:
        size: elements.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = torch.zeros(size, dtype=dtype, pin_memory=device.type == "cuda")
        self.bytes = memoryview(self.tensor.numpy()).cast("B")  # type: ignore[arg-type] # numpy 2 on Python 3.11
        self.address = self.tensor.data_ptr()


def _launches(groups: Sequence[PairGroup]) -> Iterator[Sequence[PairGroup]]:
    """The same pairs in the same order, in parts of what one launch takes."""
    longest = max([group.query.rows for group in groups], default=0)
    most = LAUNCH_PAIRS if longest <= MEDIUM_ROWS else min(LAUNCH_PAIRS, max(1, SCRATCH_ROWS // longest))
    num_pairs = sum([len(group.documents) for group in groups])
    if num_pairs <= most:  # nearly always
        if num_pairs:
            yield groups
        return
    part: list[PairGroup] = []
    room = most
    groups = [group for group in groups if group.documents]
    for group in groups:
        while len(group.documents) > room:
            head, group = _cut_group(group, room)
            yield [*part, head]
            part, room = [], most
        part.append(group)
        room -= len(group.documents)
    if part:
        yield part


def _cut_group(group: PairGroup, count: int) -> tuple[PairGroup, PairGroup]:
    """The first `count` pairs, and the others."""
    end = PLACE_BYTES * count
    head = PairGroup(group.query, group.documents[:count], group.places[:end])
    return head, PairGroup(group.query, group.documents[count:], group.places[end:])


def _is_long(group: PairGroup) -> bool:
    return group.query.rows > LONG_ROWS


def _in_order(scores: array[float], groups: Sequence[PairGroup]) -> array[float]:
    """Of these groups, in their order, from those of the long ones and then those of the others."""
    places = {True: 0, False: sum([len(group.documents) for group in groups if _is_long(group)])}
    ordered: array[float] = array("f")
    for group in groups:
        place = places[_is_long(group)]
        places[_is_long(group)] = end = place + len(group.documents)
        ordered.extend(scores[place:end])
    return ordered


def _class_of_cut(d_rows: Numbers, q_rows: Numbers) -> int:
    """MEDIUM or LONG. Blocks of 64 query rows multiply at half the rate of longer ones, but side by side with pairs of
    short queries, for which the tensor cores wait for memory, they cost next to nothing."""
    is_long = q_rows > MEDIUM_ROWS
    products = np.dot(q_rows[is_long].astype(np.int64), d_rows[is_long])
    return MEDIUM if products <= BALANCE * int(d_rows[~is_long].sum()) else LONG


def _chunk_rows(rows: int, least_items: int, at_a_time: int) -> int:
    """Of an item, where there are this many rows of documents, counted once for each query block. Items that just
    exceed what runs at a time would leave most of the device idle for as long again, so they are larger there."""
    if least_items >= at_a_time:
        return CHUNK
    fitting = -(-rows // ((at_a_time - least_items) * TILE)) * TILE
    return fitting if CHUNK < fitting <= 2 * CHUNK else CHUNK


def _cut(places: tuple[Numbers, Numbers], block_q: int, at_a_time: int) -> tuple[Numbers, Numbers, int, int]:
    """The items of pairs. Pairs that lie together (of one long query, say) are spread over the launch, so that those
    that compute much run beside those that read much.

    Args:
        places: [pairs] of documents and of queries, as `Entry.place` has them, in one number.
        at_a_time: items that the device has room for.

    Returns:
        Records, as `maxsim_items` takes them, each once; which of them is each item's; the rows of scratch they need;
        and the most rows of a chunk.
    """
    order = _spread(len(places[0]))
    documents, queries = places[0][order], places[1][order]
    d_rows, q_rows = documents >> 32, queries >> 32
    q_blocks = np.maximum((q_rows + (block_q - 1)) // block_q, 1)
    chunk = _chunk_rows(int(d_rows.dot(q_blocks)), int(q_blocks.sum()), at_a_time)
    counts = q_blocks * np.maximum((d_rows + (chunk - 1)) // chunk, 1)
    ends = counts.cumsum()
    scratch_rows = q_rows * (counts > 1)
    scratch_ends = scratch_rows.cumsum()
    records = np.empty((len(order), 4), np.int64)
    records[:, 0] = documents
    records[:, 1] = queries
    records[:, 2] = order | (ends - counts) << 32
    records[:, 3] = scratch_ends - scratch_rows
    return records, np.arange(len(order)).repeat(counts), int(scratch_ends[-1]), chunk


@lru_cache(maxsize=16)
def _spread(count: int) -> Numbers:
    """Numbers below `count`, in STRIDE rows read column by column."""
    order = np.arange(-(-count // STRIDE) * STRIDE).reshape(-1, STRIDE).T.ravel()
    return order[order < count]

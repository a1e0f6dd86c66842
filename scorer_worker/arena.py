"""The rows themselves: one tensor on the device, allocated once, and how embeddings get into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scorer_worker.store import ROW_GRAIN, Entry, StoreDirectory, slab_rows_for


class Arena:
    """Embeddings by row, with the directory that says whose they are.

    Args:
        cache_bytes: size of the arena.
        dim: width of an embedding.
        dtype: float32 on a CPU, float16 on CUDA.
        device: where the rows live.

    Raises:
        TooLarge: `cache_bytes` is too small for this `dim`.
    """

    def __init__(self, cache_bytes: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        row_bytes = dim * dtype.itemsize
        total_rows = cache_bytes // row_bytes
        self.directory = StoreDirectory(total_rows, slab_rows_for(total_rows, row_bytes))
        # empty, not zeros: the system gives memory when a row is first written, so an idle store costs next to nothing
        self.rows = torch.empty(self.directory.capacity_rows, dim, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        return self.rows.numel() * self.rows.element_size()

    def write(self, entry: Entry, embeddings: torch.Tensor) -> None:
        """Fill a reserved entry.

        Its extent's last grain is padded with the last row again, so that the maximum over whole grains is the maximum
        over the document, and kernels need no mask.

        Args:
            embeddings: [entry.rows, dim], any float dtype, finite.
        """
        end = entry.start + entry.rows
        self.rows[entry.start : end] = embeddings
        padding = -entry.rows % ROW_GRAIN
        if entry.rows and padding:
            self.rows[end : end + padding] = embeddings[-1]
        self.directory.fill(entry)

    def write_batch(self, entries: Sequence[Entry], embeddings: torch.Tensor) -> None:
        """Fill reserved entries with the embeddings of a batch, in one pass on a device where each launch costs.

        Args:
            embeddings: [sum of the entries' rows, dim], one entry after the other, on the arena's device.
        """
        if self.rows.device.type == "cpu":
            rows = torch.split(embeddings, [entry.rows for entry in entries])
            for entry, own in zip(entries, rows, strict=True):
                self.write(entry, own)
            return
        places, sources = _padded_places(entries)
        if len(places):
            embeddings.record_stream(torch.cuda.current_stream())  # made on the encoder's
            where = torch.stack([places, sources]).pin_memory().to(self.rows.device, non_blocking=True)
            self.rows[where[0]] = embeddings[where[1]].to(self.rows.dtype)
        for entry in entries:
            self.directory.fill(entry)


def _padded_places(entries: Sequence[Entry]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the arena, padding included, and for each the row of the batch that belongs there: [n] int64 each."""
    starts = torch.tensor([entry.start for entry in entries])
    rows = torch.tensor([entry.rows for entry in entries])
    padded = (rows + (ROW_GRAIN - 1)) // ROW_GRAIN * ROW_GRAIN
    owner = torch.repeat_interleave(padded)
    within = torch.arange(len(owner)) - (torch.cumsum(padded, 0) - padded)[owner]
    first = torch.cumsum(rows, 0) - rows
    return starts[owner] + within, first[owner] + torch.minimum(within, rows[owner] - 1)


def as_tensor(data: memoryview, dtype: str, rows: int, dim: int) -> torch.Tensor:
    """A [rows, dim] view of received bytes, without a copy. Read-only by agreement."""
    if not rows:
        return torch.empty(0, dim, dtype=_DTYPES[dtype])
    return torch.frombuffer(data, dtype=_DTYPES[dtype]).view(rows, dim)


def is_finite(embeddings: torch.Tensor) -> bool:
    """Whether there is neither NaN nor infinity in it.

    The sum of finite values of sane size is finite, and one pass of it is the cheapest check; only where it is not,
    every element is looked at.
    """
    total = embeddings.sum(dtype=torch.float32)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(embeddings).all())


_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

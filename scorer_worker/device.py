"""The device that this process owns, and what depends on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ipc.settings import Device, StoreDType
from scorer_worker.store import ROW_GRAIN


class DeviceError(Exception):
    """The device cannot be had. One line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class DeviceTraits:
    """What one launch may hold: large enough to fill the device, small enough that the next request waits briefly."""

    batch_work: int  # multiply-adds in one launch
    slice_work: int  # of one client's turn
    wary_work: int  # in one launch of larger jobs while small ones keep coming
    read_rows: int  # query rows whose products take as long as it takes to bring a document's row to them
    aligned_pair_work: int  # multiply-adds that take as long as what a pair's alignment costs beside its product
    part_pairs: int  # see `Limits`: reading and answering a message costs the control thread a fifth of a us for each

    def pair_work(self, query_rows: float, document_rows: float, dim: int) -> int:
        """What scoring a pair of about so many rows costs, in multiply-adds."""
        return int((query_rows + self.read_rows) * (document_rows + ROW_GRAIN / 2) * dim)


TRAITS = {
    # about 3.5 ms of two cores; a call by itself costs 0.1 ms. 1.4 to 1.9 * 10**11 a second (docs/numbers.md), of which
    # gathering and reducing take 40 % beside a query of 32 rows
    "cpu": DeviceTraits(
        batch_work=5 * 10**8,
        slice_work=25 * 10**7,
        wary_work=10**8,
        read_rows=24,
        aligned_pair_work=10**6,
        part_pairs=256,
    ),
    # about 2 ms
    "cuda": DeviceTraits(
        batch_work=4 * 10**11,
        slice_work=10**11,
        wary_work=10**11,
        read_rows=0,
        aligned_pair_work=10**9,
        part_pairs=512,
    ),
}


def open_device(name: Device) -> torch.device:
    """The device, ready to use. On CUDA this process's current stream becomes one of high priority: scoring is short
    and somebody waits for it, encoding fills the device.

    Raises:
        DeviceError: there is no such device here.
    """
    if name != "cuda":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = "torch sees no CUDA device" if built else f"torch {torch.__version__} is a build without CUDA"
        raise DeviceError(f"--device cuda: {reason}; give --device cpu, or install what is missing")
    device = torch.device("cuda", 0)
    try:
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=-1))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise DeviceError(f"--device cuda: {str(error).splitlines()[0]}") from None
    return device


def store_dtype(name: StoreDType, device: torch.device) -> torch.dtype:
    """What embeddings are stored in; `auto` is float32 on a CPU, float16 on CUDA, where scoring costs by the byte."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return torch.float32 if name == "float32" else torch.float16

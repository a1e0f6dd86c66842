"""The device that this process owns, and what depends on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ipc.settings import Device, StoreDType


class DeviceError(Exception):
    """The device cannot be had. One line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class DeviceTraits:
    """What one launch may hold: large enough to fill the device, small enough that the next request waits briefly."""

    batch_work: int  # multiply-adds in one launch
    slice_work: int  # of one client's turn
    aligned_pair_work: int  # multiply-adds that take as long as a small pair's alignment: all overhead


TRAITS = {
    "cpu": DeviceTraits(batch_work=4 * 10**9, slice_work=10**9, aligned_pair_work=10**6),  # about 0.1 s of two cores
    "cuda": DeviceTraits(batch_work=4 * 10**11, slice_work=10**11, aligned_pair_work=10**10),  # about 2 ms
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

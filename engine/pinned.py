"""Numbers on their way to a CUDA device, without waiting for it.

torch hands Python's lock over in each of its calls, and where another thread is busy it has the lock back only after
the switch interval. So numpy writes them, all into one piece of pinned memory, and they go to the device in one copy.
Pinned memory comes from torch's cache, which waits for copies out of it: who takes a piece overwrites nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """Pinned memory with any content: as a tensor to copy from, and as an array to write to."""
    tensor = torch.empty(shape, dtype=dtype, pin_memory=True)
    return tensor, tensor.numpy()


def on_device(values: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """The same numbers on a CUDA device. The host does not wait; the current stream does."""
    tensor, array = pinned(values.shape, _DTYPES[values.dtype])
    array[...] = values
    return tensor.to(device, non_blocking=True)


_DTYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64}

"""MaxSim kernels. All compute the same; `reference` says what. A new one is a file here and a row in `_KERNELS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from scorer_worker.kernels.reference import Reference
from scorer_worker.kernels.torch_packed import TorchPacked


class Kernel(Protocol):
    """MaxSim of many (query, document) pairs; the contract is `reference.Reference.__call__`."""

    def __call__(
        self,
        q: torch.Tensor,
        cu_seqlens_q: list[int],
        d_start: list[int],
        d_rows: list[int],
        cu_pairs: list[int],
    ) -> torch.Tensor: ...


_KERNELS: dict[str, Callable[[torch.Tensor], Kernel]] = {"reference": Reference, "torch_packed": TorchPacked}


def make_kernel(arena: torch.Tensor, name: str | None = None) -> Kernel:
    """The kernel of this name, or the fastest one for the arena's device, bound to the arena.

    Raises:
        KeyError: no kernel has this name.
    """
    return _KERNELS[name or "torch_packed"](arena)

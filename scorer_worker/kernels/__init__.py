"""MaxSim kernels. All compute the same; `reference` says what. A new one is a file here and a row in `_KERNELS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from scorer_worker.kernels.reference import Reference
from scorer_worker.kernels.torch_packed import TorchPacked
from scorer_worker.pairs import PairGroup


class Kernel(Protocol):
    """MaxSim of many (query, document) pairs; the contract is `reference.Reference.__call__`."""

    def __call__(self, groups: Sequence[PairGroup]) -> Sequence[float]: ...


def _triton_packed(arena: torch.Tensor) -> Kernel:
    # Triton is no part of torch for a CPU, and takes half a second to import.
    from scorer_worker.kernels.triton_packed import TritonPacked

    return TritonPacked(arena)


_KERNELS: dict[str, Callable[[torch.Tensor], Kernel]] = {
    "reference": Reference,
    "torch_packed": TorchPacked,
    "triton_packed": _triton_packed,
}
_FASTEST = {"cpu": "torch_packed", "cuda": "triton_packed"}


def make_kernel(arena: torch.Tensor, name: str | None = None) -> Kernel:
    """The kernel of this name, or the fastest one for the arena's device, bound to the arena and ready: nothing is
    compiled after this.

    Raises:
        KeyError: no kernel has this name.
    """
    return _KERNELS[name or _FASTEST[arena.device.type]](arena)

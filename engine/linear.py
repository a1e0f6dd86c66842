"""Linear layers, with weights laid out once for the fastest matrix product that this machine has.

On CPUs torch's own float32 product is MKL's, which does not use all of the vector unit on processors of other makers.
oneDNN, which torch also brings, does, and takes weights in a layout of its own: 410 against 158 GFLOP/s for this
encoder's shapes on two cores of an AMD EPYC with AVX-512. The operators are those that torch's own compiler writes into
its programs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn import functional

PACKED_FOR_ROWS = 1024  # a hint to oneDNN; any number of rows works


class Linear:
    """activation(x @ weight.T + bias); GELU is the exact one, with erf.

    Args:
        weight: [out, in]; its dtype is that of the rows. Not kept where a packed copy is.
        bias: [out], or None.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Literal["none", "gelu"] = "none"
    ) -> None:
        self._bias = bias
        self._activation = activation
        self._is_packed = _can_pack(weight)
        self._weight = _pack(weight) if self._is_packed else weight

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, in] -> [n, out]"""
        if self._is_packed:
            product: torch.Tensor = _linear_pointwise(rows, self._weight, self._bias, self._activation, [], "none")
            return product
        product = functional.linear(rows, self._weight, self._bias)
        return functional.gelu(product) if self._activation == "gelu" else product


def multiply(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows @ weight.T, for a weight that is used a few times only: the same product, nothing packed.

    Args:
        rows: [n, in]
        weight: [out, in], same dtype and device.

    Returns:
        [n, out]
    """
    if not _can_pack(weight):
        return functional.linear(rows, weight)
    product: torch.Tensor = _linear_pointwise(rows, weight, None, "none", [], "none")
    return product


def _can_pack(weight: torch.Tensor) -> bool:
    # smaller dtypes go to oneDNN without our help
    return _HAS_ONEDNN and weight.is_cpu and weight.dtype == torch.float32


def _has_onednn() -> bool:
    operators = ("_linear_pointwise", "_reorder_linear_weight")
    return bool(torch._C._has_mkldnn) and all(hasattr(torch.ops.mkldnn, name) for name in operators)


_HAS_ONEDNN = _has_onednn()  # the operators are private to torch: a torch without them takes the public way
_linear_pointwise: Any = torch.ops.mkldnn._linear_pointwise.default if _HAS_ONEDNN else None  # looked up once: 5 us


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
    return packed

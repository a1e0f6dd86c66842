"""Layer normalisation over the last dimension (Ba et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Over the last dimension."""

    weight: torch.Tensor  # [hidden]
    bias: torch.Tensor | None  # [hidden]
    epsilon: float

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)

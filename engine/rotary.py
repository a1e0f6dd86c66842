"""Rotary positions (Su et al. 2021): queries and keys turned by angles that grow with their position."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Rotation:
    """Queries and keys turned by their positions: the first half of a head with the second."""

    cos: torch.Tensor  # [total_tokens, 1, 1, head_dim / 2]
    sin: torch.Tensor

    def __call__(self, qkv: torch.Tensor) -> torch.Tensor:
        """[total_tokens, 3, num_heads, head_dim] -> the same, values as they were."""
        first, second = qkv[:, :2].chunk(2, -1)
        turned = torch.cat([first * self.cos - second * self.sin, second * self.cos + first * self.sin], -1)
        return torch.cat([turned, qkv[:, 2:]], 1)


class RotaryTable:
    """Cosine and sine of every position, computed once.

    Args:
        length: positions.
        head_dim: even.
    """

    def __init__(self, length: int, head_dim: int, base: float, like: torch.Tensor) -> None:
        frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)  # [length, head_dim / 2]
        self._cos, self._sin = angles.cos().to(like), angles.sin().to(like)

    def at(self, position_ids: torch.Tensor) -> Rotation:
        """The rotation of rows at these positions, [total_tokens]."""
        return Rotation(self._cos[position_ids][:, None, None], self._sin[position_ids][:, None, None])

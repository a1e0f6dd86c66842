"""Texts of a batch, one after the other without padding."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from engine.encode_queue import QueuedText


@dataclass(frozen=True, slots=True)
class PackedTexts:
    """The token ids of a batch. Roles may be mixed."""

    roles: Sequence[str]  # [n]
    token_ids: array[int]  # [total_tokens] int32
    lengths: Sequence[int]  # [n], expansion rows included
    expansion: Sequence[int]  # [n]: how many of the last ids of each text are expansion rows

    @classmethod
    def of(cls, texts: Sequence[QueuedText]) -> PackedTexts:
        """The batch that holds these texts, in their order."""
        token_ids = array("i")
        for text in texts:
            token_ids.frombytes(text.token_ids.tobytes())
        return cls(
            roles=[text.role for text in texts],
            token_ids=token_ids,
            lengths=[len(text.token_ids) for text in texts],
            expansion=[text.expansion for text in texts],
        )

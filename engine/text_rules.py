"""What a text of token ids may be, and which of its rows are scored: for whoever queues texts, before they are encoded.

In numpy on the CPU, where the ids come from: a loop over the ids of a long text would hold Python's lock, and one over
the texts of a message takes some microseconds of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ipc.messages import Role

Ids = Any  # int32, with the buffer protocol: a memoryview or an array
Table = np.ndarray[Any, np.dtype[np.bool_]]


class TextRules:
    """The rules of one model.

    Args:
        vocab_size: ids are below it.
        max_positions: ids of a text.
        skipped: ids whose rows are not scored, by role.
    """

    def __init__(self, vocab_size: int, max_positions: int, skipped: Mapping[Role, Sequence[int]]) -> None:
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self._tables = {role: self._table(ids) for role, ids in skipped.items()}

    def skip_table(self, role: Role) -> Table | None:
        """[vocab_size]: whether an id's rows are skipped; None where none is. A look-up is a hundredth of a search."""
        return self._tables.get(role)

    def check(self, token_ids: Ids, expansion: int = 0) -> str | None:
        """What is wrong with one text, naming field and rule; None if nothing is.

        Args:
            expansion: how many of the last ids are expansion rows.
        """
        if not 1 <= len(token_ids) <= self.max_positions:
            return f"token_ids: {len(token_ids)} ids, expected 1 to {self.max_positions}"
        if not 0 <= expansion < len(token_ids):
            return (
                f"expansion: {expansion} rows of a text of {len(token_ids)} ids, expected at least one id before them"
            )
        # unsigned, one pass finds negative ones too
        if int(np.frombuffer(token_ids, np.uint32).max()) < self.vocab_size:
            return None
        ids = np.frombuffer(token_ids, np.int32)
        wrong = int(ids[(ids < 0) | (ids >= self.vocab_size)][0])
        return f"token_ids: {wrong}, expected 0 to {self.vocab_size - 1}, the model's vocabulary"

    def are_fine(self, token_ids: Ids, lengths: Sequence[int] | Ids) -> bool:
        """Whether `check` would pass all of these, in a few steps for all of them. False says nothing.

        Args:
            token_ids: of all texts, one after the other.
            lengths: [n], of each; they come to as many ids.
        """
        if not len(lengths):
            return True
        if not len(token_ids):
            return False
        sizes = np.asarray(lengths)
        if int(sizes.min()) < 1 or int(sizes.max()) > self.max_positions:
            return False
        return int(np.frombuffer(token_ids, np.uint32).max()) < self.vocab_size

    def num_rows(self, role: Role, token_ids: Ids) -> int:
        """How many rows of a text that `check` passes are scored: all but those of skipped tokens."""
        table = self._tables.get(role)
        if table is None:
            return len(token_ids)
        return len(token_ids) - int(np.count_nonzero(table.take(np.frombuffer(token_ids, np.int32))))

    def rows_of(self, role: Role, token_ids: Ids, lengths: Sequence[int] | Ids) -> list[int]:
        """`num_rows` of each text, in a few steps for all of them. Of a text that `check` does not pass, any number.

        Args:
            token_ids, lengths: as for `are_fine`.
        """
        table = self._tables.get(role)
        if table is None or not len(token_ids):
            return list(lengths)
        skipped = np.concatenate([[0], table.take(np.frombuffer(token_ids, np.int32), mode="clip").cumsum()])
        sizes = np.asarray(lengths)
        ends = sizes.cumsum()
        rows: list[int] = (sizes - (skipped[ends] - skipped[ends - sizes])).tolist()
        return rows

    def _table(self, token_ids: Sequence[int]) -> Table | None:
        if not token_ids:
            return None
        table = np.zeros(self.vocab_size, np.bool_)
        table[list(token_ids)] = True
        return table

"""Candidates that are asked about again: the very same list of documents keeps its names.

Agents, evaluations and search as you type put query after query to one set of documents. To compare a list with one
that is remembered costs a tenth of naming each text anew; to find that it is another one costs next to nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from frontend.ranking import Input, TextInput

LEAST_DOCUMENTS = 16  # of a list that is worth remembering
MOST_LISTS = 4
MOST_BYTES = 2**21  # of the texts of one list


@dataclass(frozen=True, slots=True)
class NamedDocuments:
    """A list of texts with their names."""

    rules: Hashable  # everything but the text that decides a name
    texts: Sequence[object]  # as they were decoded
    inputs: Sequence[Input]
    text_bytes: int


class RepeatedDocuments:
    """The last few lists. Wrong never: a list is found only where every text is equal, under equal rules."""

    def __init__(self) -> None:
        self._lists: deque[NamedDocuments] = deque(maxlen=MOST_LISTS)

    def find(self, rules: Hashable, texts: Sequence[object]) -> NamedDocuments | None:
        """The names that these texts have got before."""
        under_rules = [known for known in self._lists if known.rules == rules]
        for known in [known for known in under_rules if known.texts is texts] or under_rules:
            if known.texts is texts or known.texts == texts:
                self._lists.remove(known)
                self._lists.append(known)
                return known
        return None

    def add(self, documents: NamedDocuments) -> None:
        """Remember a list, if it is one of texts alone, and of a size that pays."""
        is_large_enough = len(documents.texts) >= LEAST_DOCUMENTS and documents.text_bytes <= MOST_BYTES
        if is_large_enough and all(isinstance(each, TextInput) for each in documents.inputs):
            self._lists.append(documents)

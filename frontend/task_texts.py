"""The texts of one ranking task, queries first and then documents: their names, and how much of each there may be."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence

from frontend.encoding import TokenizedText
from frontend.errors import invalid
from frontend.ranking import EmbeddingsInput, Input, RankingTask, TextInput
from frontend.turns import in_turns
from ipc.arrays import ITEM_BYTES
from ipc.messages import KEY_BYTES, Limits, ModelSpec, Role

ID_BYTES = 512  # that a token id counts in the byte budget: 65,536 of them are on their way from one process


class TaskTexts:
    """A text is a number: its place among the queries and documents.

    Args:
        spec: the model's; None where only embeddings by value are served.
        dim: of the model's embeddings.
        sends_ids: token ids are supplied, not embeddings.
        fingerprint: of the model that they are encoded with; None: of the one that the task's keys are of.
    """

    def __init__(
        self,
        task: RankingTask,
        spec: ModelSpec | None,
        dim: int,
        sends_ids: bool,
        fingerprint: bytes | None = None,
    ) -> None:
        self.task = task
        self.inputs: Sequence[Input] = [*task.queries, *task.documents]
        self.num_queries = len(task.queries)
        self.num_pairs = len(task.documents) if task.pairs is None else len(task.pairs)
        self.keys: list[bytes] = []  # of each text, once `name` has been awaited
        self.by_value: set[int] = set()  # the texts that are embeddings; likewise
        self.tokenized: dict[int, TokenizedText] = {}
        self.sends_ids = sends_ids
        self._dim = dim
        self._other_model = fingerprint if fingerprint != task.fingerprint else None
        self._lengths = _lengths(spec)

    def __len__(self) -> int:
        return len(self.inputs)

    async def name(self) -> None:
        """Note the key of each text; embeddings by value get a name nobody else has."""
        prefix = secrets.token_bytes(KEY_BYTES - 4)
        async for some in in_turns(self.inputs):
            for text in some:
                if isinstance(text, TextInput):
                    self.keys.append(text.key if self._other_model is None else _rename(text.key, self._other_model))
                else:
                    self.by_value.add(len(self.keys))
                    self.keys.append(prefix + len(self.keys).to_bytes(4, "little"))

    def check_values(self, limits: Limits) -> None:
        """
        Raises:
            RequestFailed: embeddings by value have not the model's width, or one text of a pair alone is more than half
                of what a job may hold; names the field.
        """
        most = limits.max_job_rows // 2 // limits.row_grain * limits.row_grain
        for text in sorted(self.by_value):
            value = self.inputs[text]
            assert isinstance(value, EmbeddingsInput)
            field = self.field(text)
            if value.dim != self._dim:
                raise invalid(
                    f"{field}.embeddings: shape [{value.rows}, {value.dim}], this server's dim is {self._dim}", field
                )
            if value.rows > most:
                raise invalid(f"{field}.embeddings: {value.rows} rows, at most {most}", field)

    def role(self, text: int) -> Role:
        return "query" if text < self.num_queries else "document"

    def field(self, text: int) -> str:
        """The field a user would recognise."""
        return self.task.name_of(text)

    def pair(self, position: int) -> tuple[int, int]:
        """The texts of a pair of the task."""
        query, document = self.task.texts_of(position)
        return query, self.num_queries + document

    def string(self, text: int) -> str:
        """What a text says that is no embeddings."""
        value = self.inputs[text]
        assert isinstance(value, TextInput)
        return value.text

    def few(self, most: int) -> list[int]:
        """The texts that are worth remembering: of a request of at most so many all, of a larger one its queries."""
        count = len(self) if len(self) <= most else self.num_queries
        return [text for text in range(count) if text not in self.by_value]

    @property
    def longest(self) -> int:
        """The most rows that a text can become."""
        return max(max(lengths) for lengths in self._lengths.values())

    def max_rows(self, text: int) -> int:
        """An upper bound of the rows of a text: exact once it is tokenised."""
        value = self.inputs[text]
        if isinstance(value, EmbeddingsInput):
            return value.rows
        if text in self.tokenized:
            return len(self.tokenized[text].token_ids)
        longest, least = self._lengths[self.role(text)]
        return max(min(longest, 4 * len(value.text) + 8), least)

    def supplied_bytes(self, texts: Iterable[int]) -> int:
        """What supplying these holds in memory beyond the request's body."""
        return sum(self.num_bytes(text) for text in texts)

    def num_bytes(self, text: int) -> int:
        """The same of one text."""
        value = self.inputs[text]
        if isinstance(value, EmbeddingsInput):
            return value.rows * value.dim * ITEM_BYTES[value.dtype]
        if self.sends_ids:  # the worker has work with each of them
            return self.max_rows(text) * ID_BYTES
        return self.max_rows(text) * self._dim * ITEM_BYTES["float32"]


def _rename(key: bytes, fingerprint: bytes) -> bytes:
    """Another model makes other embeddings of the text that this key names: they must not be taken for the first's."""
    return hashlib.blake2b(key, digest_size=KEY_BYTES, key=fingerprint).digest()


def _lengths(spec: ModelSpec | None) -> dict[Role, tuple[int, int]]:
    """For each role the most tokens of a text, and the fewest rows that one becomes."""
    if spec is None:
        return {"query": (0, 0), "document": (0, 0)}
    return {
        "query": (spec.query.max_length, spec.query.expansion_length),
        "document": (spec.document.max_length, spec.document.expansion_length),
    }

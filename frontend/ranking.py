"""What the routes ask of the reranker, and what they get back. No HTTP, no wire."""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec

from frontend.embedding import EmbeddingResult, EmbeddingTask
from frontend.tokenizer import StatelessTokenizer
from ipc.messages import FloatDType, ModelSpec, Role, SelfCheck

T = TypeVar("T")


class TextInput(msgspec.Struct, frozen=True, gc=False):  # a thousand of them to a request: cheaper than a dataclass
    """A text and the 16-byte name of its embeddings."""

    text: str
    key: bytes


@dataclass(frozen=True, slots=True)
class EmbeddingsInput:
    """A client's own token embeddings: [rows, dim], little-endian, row by row."""

    embeddings: bytes | memoryview
    dtype: FloatDType
    rows: int
    dim: int


Input = TextInput | EmbeddingsInput


@dataclass(frozen=True, slots=True)
class RankingTask:
    """Pairs to score."""

    queries: Sequence[Input]
    documents: Sequence[Input]
    pairs: Sequence[tuple[int, int]] | None  # None: the one query with every document
    client: bytes  # 8 bytes: whose turn it is
    deadline: float  # of time.monotonic()
    query_length: int  # effective limits in tokens
    document_length: int
    truncation: bool = True  # False: a text that is too long fails the request
    fingerprint: bytes | None = None  # of the model that its texts' keys are of
    query_field: str = "query"  # the fields' names in the user's request
    document_field: str = "documents"
    # told how many more bytes of its texts must be encoded, before they are tokenised; may refuse them (ServiceFailed)
    on_missing: Callable[[int], None] = lambda num_bytes: None
    # asked, once the scores are known, which pairs to align; may refuse (RequestFailed)
    choose_aligned: Callable[[RankingResult], Awaitable[Sequence[int]]] | None = None

    def texts_of(self, pair: int) -> tuple[int, int]:
        """The places of a pair's texts among the queries and the documents."""
        return (0, pair) if self.pairs is None else self.pairs[pair]

    def name_of(self, text: int) -> str:
        """The user's name of a text: queries are counted first, then documents."""
        if text >= len(self.queries):
            return f"{self.document_field}[{text - len(self.queries)}]"
        return self.query_field if self.pairs is None else f"{self.query_field}[{text}]"


@dataclass(slots=True)
class Timings:
    """Seconds spent for one request. Parts run side by side, so they may add up to more than the whole."""

    tokenize: float = 0.0
    encode: float = 0.0
    worker: float = 0.0  # Score round trips, of which:
    queue: float = 0.0
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class PairAlignment:
    """Which document row each query row of one pair matched; empty where the document has no rows."""

    document_rows: Sequence[int]
    similarities: Sequence[float]


@dataclass(frozen=True, slots=True)
class RankingResult:
    """Raw MaxSim scores in pair order, and what the texts were made of."""

    scores: array[float]
    query_rows: Sequence[int]  # scored rows of each query
    query_prompt_tokens: Sequence[int]
    document_prompt_tokens: Sequence[int]
    encoded_tokens: int = 0  # by the engine, for this request
    timings: Timings = field(default_factory=Timings)
    document_rows: Sequence[int] = ()  # scored rows of each document
    alignments: Mapping[int, PairAlignment] = field(default_factory=dict)  # of the pairs that the task chose
    tokenizer: StatelessTokenizer | None = None  # that made the rows; None: there were no texts


class Ranker(Protocol):
    """What the routes need of a reranker."""

    @property
    def spec(self) -> ModelSpec | None: ...
    @property
    def fingerprint(self) -> bytes | None: ...
    @property
    def tokenizer(self) -> StatelessTokenizer | None: ...
    @property
    def self_check(self) -> SelfCheck | None: ...
    @property
    def has_encoder(self) -> bool: ...
    @property
    def is_ready(self) -> bool: ...
    async def wait_model(self, deadline: float) -> None:
        """See `Reranker.wait_model`."""

    async def score(self, task: RankingTask) -> RankingResult: ...
    async def embed(self, task: EmbeddingTask, write: Callable[[EmbeddingResult], T]) -> tuple[EmbeddingResult, T]: ...
    async def statistics(self) -> dict[str, dict[str, float]]: ...
    def special_tokens(self, role: Role) -> int: ...

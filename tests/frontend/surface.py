"""The HTTP application around a ranker of a simple kind, and a client of it."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import httpx
from starlette.types import ASGIApp
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from frontend.admission import Admission
from frontend.app import create_app
from frontend.app_config import AppConfig
from frontend.embedding import EmbeddingResult, EmbeddingTask
from frontend.encoding import EncodedText
from frontend.metrics import Metrics
from frontend.ranking import (
    EmbeddingsInput,
    Input,
    PairAlignment,
    RankingResult,
    RankingTask,
    TextInput,
    Timings,
)
from frontend.tokenizer import StatelessTokenizer
from ipc.messages import FloatDType, ModelSpec, Role, SelfCheck, TextSpec

T = TypeVar("T")
LIMIT = 10.0  # seconds that anything here may take
SPEC = ModelSpec("the-model", 4, TextSpec(max_length=32), TextSpec(max_length=180))
SELF_CHECK = SelfCheck(24, 2e-6, 1e-3, "float32", "cpu", 1_700_000_000)
WORDS = ["[UNK]", "[CLS]", "[SEP]", "one", "three", "heart", "hearts", ","]


def _word_tokenizer() -> bytes:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.add_special_tokens(WORDS[:3])
    return tokenizer.to_str().encode()


TOKENIZER_JSON = _word_tokenizer()
RERANK_PATHS = ["/rerank", "/v1/rerank", "/v2/rerank"]
SCORE_PATHS = ["/score", "/v1/score"]
QUERY = "three hearts"
DOCUMENTS = ["one heart", "three hearts, hearts", "", "three hearts"]
SCORES = [0.0, 2.0, 0.0, 3.0]  # of DOCUMENTS, by WordRanker


class WordRanker:
    """A ranker of a simple kind: each word of the query that the document has scores 1, equal texts 1 more.

    Embeddings score their number of rows. Every query has `rows` scored rows; a text has as many tokens as characters.
    """

    def __init__(self, spec: ModelSpec | None = SPEC, rows: int = 4) -> None:
        self.spec = spec
        self.query_rows = rows
        self.aligned: Sequence[int] = ()
        self.self_check = SELF_CHECK if spec is not None else None
        self.fingerprint = b"f" * 16 if spec is not None else None
        self.tokenizer = StatelessTokenizer(spec, TOKENIZER_JSON) if spec is not None else None
        self.has_encoder = spec is not None
        self.is_ready = True
        self.tasks: list[RankingTask] = []
        self.embedding_tasks: list[EmbeddingTask] = []
        self.failure: Exception | None = None
        self.may_answer: asyncio.Event | None = None  # None: at once
        self.cancelled = 0

    def special_tokens(self, role: Role) -> int:
        return 3

    async def statistics(self) -> dict[str, dict[str, float]]:
        return {"worker": {"store_hits": 7.0}, "engine": {"encoded_texts": 3.0}}

    async def wait_model(self, deadline: float) -> None:
        """It is known from the start, or never."""

    async def score(self, task: RankingTask) -> RankingResult:
        self.tasks.append(task)
        if self.failure is not None:
            raise self.failure
        texts = [text for text in (*task.queries, *task.documents) if isinstance(text, TextInput)]
        task.on_missing(sum(len(text.text.encode()) for text in texts))  # its store is always empty
        if self.may_answer is not None:
            try:
                await self.may_answer.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        pairs = task.pairs if task.pairs is not None else [(0, i) for i in range(len(task.documents))]
        result = RankingResult(
            scores=array("f", (score_of(task.queries[q], task.documents[d]) for q, d in pairs)),
            query_rows=[self.query_rows] * len(task.queries),
            query_prompt_tokens=[tokens_of(query) for query in task.queries],
            document_prompt_tokens=[tokens_of(document) for document in task.documents],
            timings=Timings(tokenize=0.001, score=0.002),
            document_rows=[len(self.rows_of("document", document)) for document in task.documents],
            tokenizer=self.tokenizer,
        )
        if task.choose_aligned is None:
            return result
        self.aligned = chosen = await task.choose_aligned(result)
        alignments = {pair: self.align(task.queries[pairs[pair][0]], task.documents[pairs[pair][1]]) for pair in chosen}
        return replace(result, alignments=alignments)

    def rows_of(self, role: Role, text: Input) -> list[str]:
        """The token of each row; of embeddings nobody knows them."""
        if isinstance(text, EmbeddingsInput):
            return ["?"] * (text.rows if role == "document" else self.query_rows)
        assert self.tokenizer is not None
        (located,) = self.tokenizer.locate(role, [text.text], 180)
        return list(located.tokens)

    def align(self, query: Input, document: Input) -> PairAlignment:
        """A token matches the first one like it, with 1; others the first row of the document, with a quarter."""
        there = self.rows_of("document", document)
        tokens = self.rows_of("query", query)
        rows = [there.index(token) if token in there else 0 for token in tokens]
        return PairAlignment(
            rows, [1.0 if there[row] == token else 0.25 for token, row in zip(tokens, rows, strict=True)]
        )

    async def embed(self, task: EmbeddingTask, write: Callable[[EmbeddingResult], T]) -> tuple[EmbeddingResult, T]:
        """Each token of a text, or its character, is a row of four ascending numbers."""
        self.embedding_tasks.append(task)
        if self.failure is not None:
            raise self.failure
        texts = [embeddings_of(value, task.dtype) for value in task.inputs]
        tokens = sum(text.rows for text in texts)
        result = EmbeddingResult(texts, 4, task.dtype, tokens, tokens, 0.001, 0.002)
        return result, await asyncio.to_thread(write, result)


def embeddings_of(value: str | Sequence[int], dtype: FloatDType) -> EncodedText:
    ids = [ord(letter) for letter in value] if isinstance(value, str) else list(value)
    packed = [struct.pack("<f", token + place / 8) for token in ids for place in range(4)]
    if dtype == "float16":
        packed = [struct.pack("<e", *struct.unpack("<f", four)) for four in packed]
    if dtype == "bfloat16":
        packed = [four[2:] for four in packed]
    return EncodedText(memoryview(b"".join(packed)), len(ids))


def score_of(query: Input, document: Input) -> float:
    if isinstance(document, EmbeddingsInput):
        first = struct.unpack_from("<f", document.embeddings)[0]
        return float(document.rows) if first < 1e30 else math.inf
    if isinstance(query, EmbeddingsInput):
        return float(query.rows)
    shared = sum(word in document.text.split() for word in query.text.split())
    return float(shared + (query.text == document.text))


def tokens_of(text: Input) -> int:
    return len(text.text) if isinstance(text, TextInput) else 0


def embeddings(rows: int, dim: int = 4, value: float = 0.5) -> dict[str, object]:
    data = struct.pack(f"<{rows * dim}f", *[value] * (rows * dim))
    return {"embeddings": {"data": base64.b64encode(data).decode(), "shape": [rows, dim], "dtype": "float32"}}


class Surface:
    """The application around a ranker, and a client of it."""

    def __init__(
        self, ranker: WordRanker | None = None, max_bodies: int = 2**26, is_draining: bool = False, **config: Any
    ) -> None:
        self.ranker = ranker or WordRanker()
        self.admission = Admission(max_bodies)
        self.is_draining = is_draining
        self.metrics = Metrics(0)
        self.app: ASGIApp = create_app(
            AppConfig(**config), self.ranker, self.admission, b"s" * 32, lambda: self.is_draining, self.metrics
        )

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            async with self.client() as client, asyncio.timeout(LIMIT):
                return await client.request(method, path, **arguments)

        return asyncio.run(run())

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=("10.0.0.1", 1))
        return httpx.AsyncClient(transport=transport, base_url="http://server")

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        return self.request("POST", path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def rerank(self, path: str = "/rerank", **fields: Any) -> httpx.Response:
        return self.post(path, {"query": QUERY, "documents": DOCUMENTS, **fields})


def indices(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [result["index"] for result in response.json()["results"]]


def message_of(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    message = response.json()["message"]
    assert isinstance(message, str)
    return message

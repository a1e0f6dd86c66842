"""From a ranking task to its scores: the Score / Missing loop.

A `Score` asks by names only. What is `Missing` is tokenised, encoded by the engine, and supplied with the next one;
clients' own embeddings are supplied with the first. So documents seen before cost no tokenising, no encoding and no
transfer, and eviction, a restarted worker, an empty cache and the first request are one code path. The first retry
supplies what was missing, the second supplies every text, so three `Score`s suffice.

Where the worker hosts the encoder, a few texts that were not asked for here lately, as a query nearly always is, go
with the first `Score` as token ids: it is cheaper to send them in vain than to hear that they are missing.

    R1  Requests are cut into parts: at most `max_job_rows` rows, each text in whole grains of the store, `part_pairs`
        pairs, and PART_BYTES of supplied embeddings or PART_IDS token ids each. Scores are independent per pair, so
        the cut is not visible.
    R2  All parts of this process together hold at most the byte budget in what they supply; one request has at most
        two in flight.
    R3  A text is tokenised at most once, a query encoded at most once, per request.

Alignment is asked for when the scores are known, of the pairs that will be shown: a second `Score` of these alone,
whose texts the store has by then (decision 0008). It is never refused for want of room to encode.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar, get_args

from frontend.byte_budget import ByteBudget
from frontend.embedding import Embedder, EmbeddingResult, EmbeddingTask
from frontend.encoding import EncodedText, TokenizedText, concatenate, encode, tokenise
from frontend.errors import invalid
from frontend.keys import bytes_of
from frontend.ranking import EmbeddingsInput, PairAlignment, RankingResult, RankingTask, TextInput, Timings
from frontend.recent_keys import RecentKeys
from frontend.run_all import run_all
from frontend.tokenizer import StatelessTokenizer
from frontend.turns import end_turn, in_turns
from ipc.arrays import ITEM_BYTES, FrameWriter
from ipc.client import Frames, Service, ServiceClient
from ipc.errors import ServiceFailed
from ipc.messages import (
    KEY_BYTES,
    Encoded,
    ErrorCode,
    FloatDType,
    Limits,
    Missing,
    ModelSpec,
    Role,
    Score,
    Scores,
    SelfCheck,
    SuppliedEmbeddings,
    SuppliedTokens,
)

PART_BYTES = 4 * 2**20  # of encoded embeddings in one Score: a second or so of a CPU engine's work
PART_IDS = 16_384  # token ids in one Score, for a worker that encodes: on CUDA, what it encodes at once by default
ID_BYTES = 512  # that a token id counts in the byte budget: 65,536 of them are on their way from one process
VALUE_PART_BYTES = 16 * 2**20  # of a client's own embeddings in one Score
BUDGET_BYTES = 32 * 2**20
PARTS_IN_FLIGHT = 2  # of one request: one is encoded while another is scored
ATTEMPTS = 3
FEW_TEXTS = 4  # that are supplied before they are missed
RECENT_KEYS = 16_384


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Model:
    """The model as this process knows it."""

    fingerprint: bytes
    spec: ModelSpec
    tokenizer: StatelessTokenizer


@dataclass(slots=True)
class _Part:
    """Some of a task's pairs, and the texts that are supplied with them."""

    pairs: Sequence[int]  # positions in the task's pairs
    supply: set[int] = field(default_factory=set)  # texts: queries first, then documents
    deaths: int = 0  # of workers in which it was running; see ipc.running


class Reranker:
    """Scores ranking tasks with the help of the worker and the engine."""

    def __init__(self, worker: ServiceClient, engine: ServiceClient | None, threads: int) -> None:
        self.worker = worker
        self.engine = engine
        self.tokenized_texts = 0
        self.encoded_tokens = 0
        self._executor = ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="tokenise")
        self._budget = ByteBudget(BUDGET_BYTES)
        self._embedder = Embedder(engine or worker, self._executor)
        self.recent = RecentKeys(RECENT_KEYS)
        self._model: _Model | None = None
        self._has_model = asyncio.Event()
        self._building: asyncio.Task[None] | None = None

    def take_model(self, service: Service) -> None:
        """The service with the encoder has announced its model: build the tokenizer, off the event loop."""
        if service.spec is not None:
            self._building = asyncio.create_task(self._build_model(service, service.spec), name="build tokenizer")

    async def _build_model(self, service: Service, spec: ModelSpec) -> None:
        loop = asyncio.get_running_loop()
        tokenizer = await loop.run_in_executor(self._executor, StatelessTokenizer, spec, service.tokenizer)
        self._model = _Model(service.ready.fingerprint, spec, tokenizer)
        self._has_model.set()
        self.recent.clear()

    async def wait_model(self, deadline: float) -> None:
        """Until the model is known, or there is none to wait for: a process that has just started is asked at once.

        Args:
            deadline: on the event loop's clock.

        Raises:
            ServiceFailed: UNAVAILABLE, it was not there in time.
        """
        loop = asyncio.get_running_loop()
        if self._model is not None:
            return
        if self.engine is None:
            await self.worker.wait_ready(max(0.0, deadline - loop.time()))
        if not self.has_encoder:
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._has_model.wait()
        except TimeoutError:
            raise ServiceFailed(ErrorCode.UNAVAILABLE, "the encoder is not ready", 1000) from None

    def close(self) -> None:
        """Stop the tokenising threads."""
        if self._building is not None:
            self._building.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def spec(self) -> ModelSpec | None:
        """The model's spec; None where only embeddings by value are served, or before the encoder was there."""
        return self._model.spec if self._model else None

    @property
    def fingerprint(self) -> bytes | None:
        return self._model.fingerprint if self._model else None

    @property
    def tokenizer(self) -> StatelessTokenizer | None:
        """The model's; None without an encoder, or before it was there."""
        return self._model.tokenizer if self._model else None

    @property
    def self_check(self) -> SelfCheck | None:
        """What the encoder's self-check found; None without an encoder, or before it was there."""
        service = (self.engine or self.worker).service
        return service.ready.self_check if service is not None else None

    def special_tokens(self, role: Role) -> int:
        """Special tokens and markers of a text; 0 before the encoder was there."""
        return self._model.tokenizer.special_tokens(role) if self._model else 0

    @property
    def dim(self) -> int | None:
        """Width of an embedding; None before the worker was there."""
        return self.worker.service.ready.dim if self.worker.service else None

    @property
    def has_encoder(self) -> bool:
        """Whether this server is meant to take texts (its encoder may be away just now)."""
        return self.engine is not None or (self.worker.service is not None and self.worker.service.ready.hosts_encoder)

    @property
    def is_ready(self) -> bool:
        """Whether everything a request may need is there, and worker and engine speak of the same model."""
        service = self.worker.service
        if service is None or not self.worker.is_ready:
            return False
        if not self.has_encoder:
            return True
        if self._model is None or (self.engine is not None and not self.engine.is_ready):
            return False
        return self._model.fingerprint == service.ready.fingerprint

    async def statistics(self) -> dict[str, dict[str, float]]:
        """Counters of the services that answer, by service."""
        clients = [client for client in (self.worker, self.engine) if client is not None]
        answers = await asyncio.gather(*(client.statistics(1.0) for client in clients), return_exceptions=True)
        return {
            client.name: answer
            for client, answer in zip(clients, answers, strict=True)
            if not isinstance(answer, BaseException)
        }

    async def score(self, task: RankingTask) -> RankingResult:
        """The raw MaxSim scores of a task's pairs.

        Raises:
            RequestFailed: the request is at fault; the message names the field.
            ServiceFailed: the services could not answer in time, or at all.
        """
        return await _Ranking(self, task).run()

    async def embed(self, task: EmbeddingTask, write: Callable[[EmbeddingResult], T]) -> tuple[EmbeddingResult, T]:
        """Token embeddings by value, and what `write` makes of them; see `Embedder.embed`."""
        model = self._model
        if model is None:
            raise ServiceFailed(ErrorCode.UNAVAILABLE, "the encoder is not ready", 1000)
        return await self._embedder.embed(task, model.tokenizer, model.spec.dim, write)


class _Ranking:
    """One task on its way."""

    def __init__(self, reranker: Reranker, task: RankingTask) -> None:
        self._reranker = reranker
        self._worker = reranker.worker
        self._engine = reranker.engine
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + task.deadline - time.monotonic()
        self._texts = [*task.queries, *task.documents]
        self._num_queries = len(task.queries)
        self._keys: list[bytes] = []  # of each text
        self._scores = array("f", bytes(4 * self._num_pairs))
        self._rows = [0] * len(self._texts)
        self._prompt_tokens = [0] * len(self._texts)
        self._lengths = _lengths(reranker.spec)
        self._tokenized: dict[int, TokenizedText] = {}
        self._queries: dict[int, EncodedText] = {}
        self._query_lock = asyncio.Lock()
        self._parallel = asyncio.Semaphore(PARTS_IN_FLIGHT)
        self._timings = Timings()
        self._encoded_tokens = 0
        self._is_aligning = False
        self._alignments: dict[int, PairAlignment] = {}

    async def run(self) -> RankingResult:
        service = await self._wait_worker()
        by_value = await self._name_texts()
        self._check(service, by_value)
        await end_turn(len(self._texts))
        new = self._new_texts(service)
        if new:
            self._tell_missing(new)
        await self._prepare(new)
        await end_turn(len(self._texts))
        parts = await self._split(range(self._num_pairs), by_value | new, service)
        await run_all([self._score_part(part, 1) for part in parts])
        self._reranker.recent.add(self._keys[text] for text in self._few_texts())
        queries = self._num_queries
        result = RankingResult(
            scores=self._scores,
            query_rows=self._rows[:queries],
            query_prompt_tokens=self._prompt_tokens[:queries],
            document_prompt_tokens=self._prompt_tokens[queries:],
            encoded_tokens=self._encoded_tokens,
            timings=self._timings,
            document_rows=self._rows[queries:],
        )
        if self._task.choose_aligned is None:
            return result
        chosen = await self._task.choose_aligned(result)
        await self._align(chosen, by_value)
        alignments = {position: self._alignments[position] for position in chosen}
        return replace(result, encoded_tokens=self._encoded_tokens, alignments=alignments)

    async def _name_texts(self) -> set[int]:
        """Note the key of each text; embeddings by value get a name nobody else has.

        Returns:
            The texts that are embeddings by value.
        """
        prefix = secrets.token_bytes(KEY_BYTES - 4)
        by_value: set[int] = set()
        async for some in in_turns(self._texts):
            for text in some:
                if isinstance(text, TextInput):
                    self._keys.append(text.key)
                else:
                    by_value.add(len(self._keys))
                    self._keys.append(prefix + len(self._keys).to_bytes(4, "little"))
        return by_value

    async def _align(self, pairs: Sequence[int], by_value: set[int]) -> None:
        """Have the worker align pairs whose scores are known."""
        self._is_aligning = True
        parts = await self._split(sorted(pairs), by_value, await self._wait_worker())
        await run_all([self._score_part(part, 1) for part in parts])

    def _few_texts(self) -> list[int]:
        """The texts that are worth remembering: all of a small request, of a large one its queries."""
        count = len(self._texts) if len(self._texts) <= FEW_TEXTS else self._num_queries
        return [text for text in range(count) if isinstance(self._texts[text], TextInput)]

    def _new_texts(self, service: Service) -> set[int]:
        """Texts to supply at once: a few, that were not asked for lately."""
        if self._engine is not None or not service.ready.hosts_encoder or self._reranker.spec is None:
            return set()
        new = {text for text in self._few_texts() if self._keys[text] not in self._reranker.recent}
        return new if len(new) <= FEW_TEXTS else set()

    @property
    def _num_pairs(self) -> int:
        return len(self._task.documents) if self._task.pairs is None else len(self._task.pairs)

    def _pair(self, position: int) -> tuple[int, int]:
        """The pair's texts, as positions in `_texts`."""
        if self._task.pairs is None:
            return 0, self._num_queries + position
        query, document = self._task.pairs[position]
        return query, self._num_queries + document

    def _name(self, text: int) -> str:
        """The field a user would recognise."""
        return self._task.name_of(text)

    async def _wait_worker(self) -> Service:
        return await self._worker.wait_ready(max(0.0, self._deadline - self._loop.time()))

    def _check(self, service: Service, by_value: Iterable[int]) -> None:
        """Embeddings by value have the model's width, and every single pair fits the store."""
        dim, limits = service.ready.dim, service.ready.limits
        most = limits.max_job_rows // 2 // limits.row_grain * limits.row_grain  # of one of the two texts of a pair
        for index in sorted(by_value):
            text = self._texts[index]
            assert isinstance(text, EmbeddingsInput)
            name = self._name(index)
            if text.dim != dim:
                raise invalid(f"{name}.embeddings: shape [{text.rows}, {text.dim}], this server's dim is {dim}", name)
            if text.rows > most:
                raise invalid(f"{name}.embeddings: {text.rows} rows, at most {most}", name)

    # --- one part -------------------------------------------------------------------------------------------------

    async def _score_part(self, part: _Part, attempt: int) -> None:
        """Have the worker score the part; supply what it lacks, in smaller parts where that is much."""
        missing = await self._ask(part)
        if attempt == 1 and not self._is_aligning:
            self._tell_missing(missing)
        if not missing:
            return
        if attempt == ATTEMPTS:
            raise ServiceFailed(ErrorCode.UNAVAILABLE, "the embedding store was replaced while scoring", 100)
        supply = part.supply | missing
        if attempt == ATTEMPTS - 1:
            supply = {text for position in part.pairs for text in self._pair(position)}
        await self._prepare(supply)
        parts = await self._split(part.pairs, supply, await self._wait_worker())
        for smaller in parts:
            smaller.deaths = part.deaths
        await run_all([self._score_part(smaller, attempt + 1) for smaller in parts])

    def _tell_missing(self, missing: set[int]) -> None:
        """
        Raises:
            ServiceFailed: OVERLOADED, there is no room to encode them.
        """
        texts = [text for i in missing if isinstance(text := self._texts[i], TextInput)]
        self._task.on_missing(sum(len(bytes_of(text.text)) for text in texts))

    async def _ask(self, part: _Part) -> set[int]:
        """Send one Score.

        Returns:
            The texts that are missing; empty: the part's scores are there.
        """
        async with self._parallel, self._reranker._budget.hold(self._supplied_bytes(part.supply)):
            message, writer, order = await self._build_score(part)
            started = time.monotonic()
            try:
                answer, frames = await self._worker.request(message, writer.frames, self._deadline)
            except ServiceFailed as error:
                raise self._explain(error, order) from None
            self._timings.worker += time.monotonic() - started
        match answer:
            case Scores() if self._is_aligning:
                self._record_alignment(part, order, answer, frames)
                return set()
            case Scores():
                self._record(part, order, answer, frames)
                return set()
            case Missing():
                part.deaths = answer.deaths
                which = frames[answer.which.frame - 1].cast("i")
                missing_keys = {self._keys[order[position]] for position in which}
                return {text for text in order if self._keys[text] in missing_keys}
            case Encoded():
                raise ServiceFailed(ErrorCode.INTERNAL, "the worker answered a Score with Encoded")

    async def _build_score(self, part: _Part) -> tuple[Score, FrameWriter, list[int]]:
        """The message, its frames, and which text stands at each position of its key frame."""
        if self._task.pairs is None:
            pairs, queries = [], [0]
            documents = [1 + position for position in part.pairs]
        else:
            pairs = [self._pair(position) for position in part.pairs]
            queries = list(dict.fromkeys([query for query, _ in pairs]))
            documents = list(dict.fromkeys([document for _, document in pairs]))
        order = queries + documents
        writer = FrameWriter()
        keys = writer.add_keys([self._keys[text] for text in order])
        pairs_ref = None
        if self._task.pairs is not None and (len(queries) > 1 or len(documents) != len(pairs)):
            place_q = {text: place for place, text in enumerate(queries)}
            place_d = {text: place for place, text in enumerate(documents)}
            flat = array("i", (place for q, d in pairs for place in (place_q[q], place_d[d])))
            pairs_ref = writer.add(flat, "int32", [len(pairs), 2])
        supplied = await self._supply(part.supply, order, writer)
        message = Score(
            epoch=0,
            request_id=0,
            client=self._task.client,
            budget_ms=0,
            num_queries=len(queries),
            num_documents=len(documents),
            keys=keys,
            pairs=pairs_ref,
            supplied=supplied,
            deaths=part.deaths,
            want_alignment=self._is_aligning,
        )
        return message, writer, order

    def _record(self, part: _Part, order: list[int], answer: Scores, frames: Frames) -> None:
        scores = frames[answer.scores.frame - 1].cast("f")
        rows = frames[answer.rows.frame - 1].cast("i")
        prompt_tokens = frames[answer.prompt_tokens.frame - 1].cast("i")
        if len(scores) != len(part.pairs) or len(rows) != len(order):
            raise ServiceFailed(ErrorCode.INTERNAL, "the worker answered with another number of scores")
        if len(part.pairs) == self._num_pairs:
            self._scores = array("f", scores)
        else:
            for position, score in zip(part.pairs, scores, strict=True):
                self._scores[position] = score
        if len(order) == len(self._texts) and order == sorted(order):
            self._rows, self._prompt_tokens = rows.tolist(), prompt_tokens.tolist()
        else:
            for place, text in enumerate(order):
                self._rows[text] = rows[place]
                self._prompt_tokens[text] = prompt_tokens[place]
        self._timings.score += answer.score_us / 1e6
        self._timings.queue += answer.queue_us / 1e6

    def _record_alignment(self, part: _Part, order: list[int], answer: Scores, frames: Frames) -> None:
        rows = dict(zip(order, frames[answer.rows.frame - 1].cast("i"), strict=True))
        if answer.alignment is None:
            raise ServiceFailed(ErrorCode.INTERNAL, "the worker answered without an alignment")
        document_rows = frames[answer.alignment.document_rows.frame - 1].cast("i")
        similarities = frames[answer.alignment.similarities.frame - 1].cast("f")
        start = 0
        for position in part.pairs:
            query, document = self._pair(position)
            end = start + (rows[query] if rows[document] else 0)
            alignment = PairAlignment(document_rows[start:end].tolist(), similarities[start:end].tolist())
            self._alignments[position] = alignment
            start = end
        if start != len(document_rows) or any(
            max(self._alignments[position].document_rows, default=-1) >= rows[self._pair(position)[1]]
            for position in part.pairs
        ):
            raise ServiceFailed(ErrorCode.INTERNAL, "the worker answered with another alignment")
        self._timings.score += answer.score_us / 1e6
        self._timings.queue += answer.queue_us / 1e6

    def _explain(self, error: ServiceFailed, order: list[int]) -> Exception:
        """An error about one of the message's texts, in the words of the user's request."""
        if error.code is not ErrorCode.INVALID_REQUEST or error.which is None or error.which >= len(order):
            return error
        name = self._name(order[error.which])
        return invalid(f"{name}.{error.message}", name)

    # --- what is supplied -----------------------------------------------------------------------------------------

    async def _prepare(self, supply: set[int]) -> None:
        """Tokenise the texts that will be supplied."""
        texts = [i for i in sorted(supply) if i not in self._tokenized and isinstance(self._texts[i], TextInput)]
        queries = [i for i in texts if i < self._num_queries]
        await self._tokenise("query", queries)
        await self._tokenise("document", [i for i in texts if i >= self._num_queries])

    async def _tokenise(self, role: Role, texts: list[int]) -> None:
        if not texts:
            return
        model = self._reranker._model
        if model is None:
            raise ServiceFailed(ErrorCode.UNAVAILABLE, "the encoder is not ready", 1000)
        task = self._task
        limit = task.query_length if role == "query" else task.document_length
        started = time.monotonic()
        made = await tokenise(
            self._reranker._executor,
            model.tokenizer,
            role,
            [self._text(i) for i in texts],
            limit,
            task.truncation,
            [self._name(i) for i in texts],
        )
        self._tokenized.update(zip(texts, made, strict=True))
        self._reranker.tokenized_texts += len(texts)
        self._timings.tokenize += time.monotonic() - started

    def _text(self, index: int) -> str:
        text = self._texts[index]
        assert isinstance(text, TextInput)
        return text.text

    async def _encode(self, role: Role, texts: list[int]) -> dict[int, EncodedText]:
        """Have the engine encode tokenised texts of one role."""
        assert self._engine is not None
        if not texts:
            return {}
        tokens = [self._tokenized[text] for text in texts]
        count = sum(len(entry.token_ids) for entry in tokens)
        keys = [self._keys[text] for text in texts]
        started = time.monotonic()
        encoded = await encode(self._engine, role, tokens, keys, self._task.client, self._deadline)
        self._timings.encode += time.monotonic() - started
        self._encoded_tokens += count
        self._reranker.encoded_tokens += count
        return dict(zip(texts, encoded, strict=True))

    async def _supply(
        self, supply: set[int], order: list[int], writer: FrameWriter
    ) -> list[SuppliedEmbeddings | SuppliedTokens]:
        """What goes with a Score for the texts of `supply`; equal texts go once."""
        place_of = {self._keys[text]: place for place, text in reversed(list(enumerate(order))) if text in supply}
        texts = [order[place] for place in sorted(place_of.values())]
        places = {text: place_of[self._keys[text]] for text in texts}
        supplied: list[SuppliedEmbeddings | SuppliedTokens] = []
        by_value = [i for i in texts if isinstance(self._texts[i], EmbeddingsInput)]
        supplied += self._supply_values(by_value, places, writer)
        named = [i for i in texts if isinstance(self._texts[i], TextInput)]
        if not named:
            return supplied
        queries = [i for i in named if i < self._num_queries]
        documents = [i for i in named if i >= self._num_queries]
        if self._engine is None:
            if queries:
                supplied.append(self._supply_tokens("query", queries, places, writer))
            if documents:
                supplied.append(self._supply_tokens("document", documents, places, writer))
            return supplied
        # side by side: the engine has them in one batch, and a small request waits for it once
        encoded = await run_all([self._encode_queries(queries), self._encode("document", documents)])
        supplied.append(self._supply_encoded(encoded[0] | encoded[1], places, writer))
        return supplied

    async def _encode_queries(self, queries: list[int]) -> dict[int, EncodedText]:
        """As `_encode`, but once for all parts (R3)."""
        async with self._query_lock:
            self._queries |= await self._encode("query", [i for i in queries if i not in self._queries])
        return {i: self._queries[i] for i in queries}

    def _supply_values(
        self, texts: list[int], places: dict[int, int], writer: FrameWriter
    ) -> Iterator[SuppliedEmbeddings]:
        """A client's own embeddings: they live for this job only."""
        for dtype in get_args(FloatDType):
            some = [(i, value) for i in texts if isinstance(value := self._texts[i], EmbeddingsInput)]
            some = [(i, value) for i, value in some if value.dtype == dtype]
            if not some:
                continue
            rows = [value.rows for _, value in some]
            data = b"".join(value.embeddings for _, value in some)
            yield SuppliedEmbeddings(
                which=writer.add_ints(places[i] for i, _ in some),
                rows=writer.add_ints(rows),
                prompt_tokens=writer.add_ints([0] * len(some)),
                embeddings=writer.add(data, dtype, [sum(rows), some[0][1].dim]),
                keep=False,
            )

    def _supply_encoded(
        self, encoded: dict[int, EncodedText], places: dict[int, int], writer: FrameWriter
    ) -> SuppliedEmbeddings:
        rows = [entry.rows for entry in encoded.values()]
        data = b"".join(entry.embeddings for entry in encoded.values())
        dim = self._reranker.dim
        assert dim is not None
        return SuppliedEmbeddings(
            which=writer.add_ints(places[i] for i in encoded),
            rows=writer.add_ints(rows),
            prompt_tokens=writer.add_ints(self._tokenized[i].prompt_tokens for i in encoded),
            embeddings=writer.add(data, "float32", [sum(rows), dim]),
        )

    def _supply_tokens(
        self, role: Role, texts: list[int], places: dict[int, int], writer: FrameWriter
    ) -> SuppliedTokens:
        tokens = [self._tokenized[i] for i in texts]
        token_ids = concatenate(tokens)
        self._encoded_tokens += len(token_ids)
        self._reranker.encoded_tokens += len(token_ids)
        return SuppliedTokens(
            role=role,
            which=writer.add_ints(places[i] for i in texts),
            lengths=writer.add_ints(len(entry.token_ids) for entry in tokens),
            expansion=writer.add_ints(entry.expansion for entry in tokens),
            token_ids=writer.add_ints(token_ids),
        )

    # --- cutting a task into parts --------------------------------------------------------------------------------

    async def _split(self, pairs: Sequence[int], supply: set[int], service: Service) -> list[_Part]:
        """Parts within R1.

        Pairs that need a document supplied and pairs that do not go apart, so that a large part of names stays one
        small message.
        """
        limits = service.ready.limits
        is_light = len(supply) <= FEW_TEXTS and all(
            text < self._num_queries and isinstance(self._texts[text], TextInput) for text in supply
        )
        most = min(len(self._texts), limits.part_pairs + self._num_queries)  # texts in a part
        if is_light and most * _whole_grains(self._longest, limits.row_grain) <= limits.max_job_rows:
            # what is asked for again and again costs nothing for each document here
            step = limits.part_pairs
            return [_Part(pairs[start : start + step], supply) for start in range(0, len(pairs), step)]
        named = [p for p in pairs if self._pair(p)[1] not in supply] if supply else pairs
        carried = [p for p in pairs if self._pair(p)[1] in supply] if supply else []
        return [*await self._cut(named, supply, limits), *await self._cut(carried, supply, limits)]

    async def _cut(self, pairs: Sequence[int], supply: set[int], limits: Limits) -> list[_Part]:
        parts: list[_Part] = []
        current: list[int] = []
        seen: set[int] = set()
        rows = size = 0
        grain = limits.row_grain
        async for some in in_turns(pairs):
            for position in some:
                both = self._pair(position)
                new = [text for text in both if text not in seen]
                new_rows = sum([_whole_grains(self._max_rows(text), grain) for text in new])
                new_size = sum([self._part_share(text) for text in new if text in supply]) if supply else 0
                is_large = rows + new_rows > limits.max_job_rows or size + new_size > PART_BYTES
                if current and (is_large or len(current) == limits.part_pairs):
                    parts.append(_Part(current, seen & supply))
                    current, seen, rows, size = [], set(), 0, 0
                    new_rows = sum([_whole_grains(self._max_rows(text), grain) for text in both])
                    new_size = sum([self._part_share(text) for text in both if text in supply])
                current.append(position)
                seen.update(both)
                rows += new_rows
                size += new_size
        if current:
            parts.append(_Part(current, seen & supply))
        return parts

    @property
    def _longest(self) -> int:
        """The most rows that a text can become."""
        return max(max(lengths) for lengths in self._lengths.values())

    def _max_rows(self, text: int) -> int:
        """An upper bound of the rows of a text: exact once it is tokenised."""
        value = self._texts[text]
        if isinstance(value, EmbeddingsInput):
            return value.rows
        if text in self._tokenized:
            return len(self._tokenized[text].token_ids)
        longest, least = self._lengths["query" if text < self._num_queries else "document"]
        return max(min(longest, 4 * len(value.text) + 8), least)

    def _part_share(self, text: int) -> int:
        """The bytes of a supplied text, such that PART_BYTES fill a part, whatever it is filled with."""
        if not isinstance(self._texts[text], TextInput):
            return self._text_bytes(text) * PART_BYTES // VALUE_PART_BYTES
        if self._engine is None:
            return self._max_rows(text) * PART_BYTES // PART_IDS
        return self._text_bytes(text)

    def _text_bytes(self, text: int) -> int:
        value = self._texts[text]
        if isinstance(value, EmbeddingsInput):
            return value.rows * value.dim * ITEM_BYTES[value.dtype]
        if self._engine is None:  # the worker encodes: only ids travel, but it has work with each
            return self._max_rows(text) * ID_BYTES
        return self._max_rows(text) * (self._reranker.dim or 0) * ITEM_BYTES["float32"]

    def _supplied_bytes(self, supply: Iterable[int]) -> int:
        """What a part holds in memory beyond its request's body."""
        return sum(self._text_bytes(text) for text in supply)


def _lengths(spec: ModelSpec | None) -> dict[Role, tuple[int, int]]:
    """For each role the most tokens of a text, and the fewest rows that one becomes."""
    if spec is None:
        return {"query": (0, 0), "document": (0, 0)}
    return {
        "query": (spec.query.max_length, spec.query.expansion_length),
        "document": (spec.document.max_length, spec.document.expansion_length),
    }


def _whole_grains(rows: int, grain: int) -> int:
    """The room of a text of so many rows: the store gives it in whole grains, and at least one."""
    return max(grain, -(-rows // grain) * grain)

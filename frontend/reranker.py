"""From a ranking task to its scores: the Score / Missing loop.

A `Score` asks by names only. What is `Missing` is tokenised, encoded by the engine, and supplied with the next one;
clients' own embeddings are supplied with the first. So documents seen before cost no tokenising, no encoding and no
transfer, and eviction, a restarted worker, an empty cache and the first request are one code path. The first retry
supplies what was missing, the second supplies every text, so three `Score`s suffice.

Where the worker hosts the encoder, a few texts that were not asked for here lately, as a query nearly always is, go
with the first `Score` as token ids: it is cheaper to send them in vain than to hear that they are missing.

    R1  Requests are cut into parts within limits: see `parts`.
    R2  All parts of this process together hold at most the byte budget in what they supply; one request has at most
        two in flight.
    R3  A text is tokenised at most once, a query encoded at most once, per request: see `supplier`.
    R4  An answer is of one model. Where its files have changed while a request was running, so that a service came back
        with others, all that was made for the request is dropped, and it is made anew once the services agree.

Alignment is asked for when the scores are known, of the pairs that will be shown: a second `Score` of these alone,
whose texts the store has by then (decision 0008). It is never refused for want of room to encode.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from frontend.byte_budget import ByteBudget
from frontend.embedding import Embedder, EmbeddingResult, EmbeddingTask
from frontend.errors import invalid
from frontend.fair_threads import FairThreads
from frontend.keys import bytes_of, effective_limit
from frontend.parts import FEW_TEXTS, Part, split
from frontend.ranking import PairAlignment, RankingResult, RankingTask, Timings
from frontend.recent_keys import RecentKeys
from frontend.run_all import run_all
from frontend.supplier import Supplier
from frontend.task_texts import TaskTexts
from frontend.tokenizer import StatelessTokenizer
from frontend.turns import end_turn, in_turns
from ipc.arrays import FrameWriter
from ipc.client import Frames, Service, ServiceClient
from ipc.errors import ModelChanged, ServiceFailed
from ipc.messages import Encoded, ErrorCode, Missing, ModelSpec, Role, Score, Scores, SelfCheck

BUDGET_BYTES = 32 * 2**20
PARTS_IN_FLIGHT = 2  # of one request: one is encoded while another is scored
ATTEMPTS = 3
RECENT_KEYS = 16_384
AGREEMENT_INTERVAL = 0.05  # seconds between looks at whether worker and engine have one model

_log = logging.getLogger("maxsimd.api_server")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Model:
    """The model as this process knows it."""

    fingerprint: bytes
    spec: ModelSpec
    tokenizer: StatelessTokenizer

    def limit(self, role: Role, of_other: int) -> int:
        """What a limit of tokens comes to that was found with another model's."""
        return effective_limit(self.spec, role, of_other, self.tokenizer.special_tokens(role), "model")


def _with_limits_of(model: _Model, task: RankingTask) -> RankingTask:
    """A task that was made for another model. What it lacks was counted when it was done the first time."""
    return replace(
        task,
        query_length=model.limit("query", task.query_length),
        document_length=model.limit("document", task.document_length),
        on_missing=lambda size: None,
    )


class Reranker:
    """Scores ranking tasks with the help of the worker and the engine."""

    def __init__(self, worker: ServiceClient, engine: ServiceClient | None, threads: int) -> None:
        self.worker = worker
        self.engine = engine
        self.threads = FairThreads(max(1, threads), "tokenise")
        self.budget = ByteBudget(BUDGET_BYTES)
        self._embedder = Embedder(engine or worker, self.threads)
        self.recent = RecentKeys(RECENT_KEYS)
        self._model: _Model | None = None
        self._has_model = asyncio.Event()
        self._building: asyncio.Task[None] | None = None

    def take_model(self, service: Service) -> None:
        """The service with the encoder has announced its model: build the tokenizer, off the event loop."""
        if service.spec is not None:
            self._building = asyncio.create_task(self._build_model(service, service.spec), name="build tokenizer")

    async def _build_model(self, service: Service, spec: ModelSpec) -> None:
        try:
            tokenizer = await asyncio.to_thread(StatelessTokenizer, spec, service.tokenizer)
        except Exception:  # noqa: BLE001 - the log says it, /ready stays false; other files may come
            _log.exception("the tokenizer of %s cannot be made", spec.name)
            return
        if self._building is not asyncio.current_task():
            return  # the files have changed again meanwhile
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
        if self._model is not None:
            return
        if self.engine is None:
            await self.wait_worker(deadline)
        if not self.has_encoder:
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._has_model.wait()
        except TimeoutError:
            raise ServiceFailed(ErrorCode.UNAVAILABLE, "the encoder is not ready", 1000) from None

    async def wait_worker(self, deadline: float) -> Service:
        """The worker, once it is there.

        Args:
            deadline: in loop time.

        Raises:
            ServiceFailed: UNAVAILABLE, it was not there in time.
        """
        return await self.worker.wait_ready(max(0.0, deadline - asyncio.get_running_loop().time()))

    def close(self) -> None:
        """Stop the tokenising threads."""
        if self._building is not None:
            self._building.cancel()
        self.threads.close()

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
        """Whether everything a request may need is there, and worker, engine and tokenizer are of the same model."""
        service = self.worker.service
        if service is None or not self.worker.is_ready:
            return False
        if not self.has_encoder:
            return True
        encoder = service if self.engine is None else self.engine.service
        if self._model is None or encoder is None or (self.engine is not None and not self.engine.is_ready):
            return False
        return self._model.fingerprint == service.ready.fingerprint == encoder.ready.fingerprint

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
        deadline = asyncio.get_running_loop().time() + task.deadline - time.monotonic()

        async def score(is_again: bool) -> RankingResult:
            service, model = await self.wait_worker(deadline), self._model
            of_model = _with_limits_of(model, task) if is_again and model is not None else task
            return await _Ranking(self, of_model, service, model, deadline).run()

        return await self._with_one_model(score, deadline)

    async def embed(self, task: EmbeddingTask, write: Callable[[EmbeddingResult], T]) -> tuple[EmbeddingResult, T]:
        """Token embeddings by value, and what `write` makes of them; see `Embedder.embed`."""

        async def embed(is_again: bool) -> tuple[EmbeddingResult, T]:
            model = self._model
            if model is None:
                raise ServiceFailed(ErrorCode.UNAVAILABLE, "the encoder is not ready", 1000)
            of_model = replace(task, limit=model.limit(task.role, task.limit)) if is_again else task
            return await self._embedder.embed(of_model, model.tokenizer, model.fingerprint, model.spec.dim, write)

        return await self._with_one_model(embed, asyncio.get_running_loop().time() + task.deadline - time.monotonic())

    async def _with_one_model(self, work: Callable[[bool], Awaitable[T]], deadline: float) -> T:
        """What `work` returns: the whole of it again, if the model has changed meanwhile (R4).

        Args:
            work: is told whether it is done again.
            deadline: in loop time; until then worker, engine and tokenizer may come to have one model.
        """
        for attempt in range(ATTEMPTS - 1):
            try:
                return await work(attempt > 0)
            except ModelChanged:
                while not self.is_ready and asyncio.get_running_loop().time() < deadline:
                    await asyncio.sleep(AGREEMENT_INTERVAL)
        return await work(True)


class _Ranking:
    """One task on its way."""

    def __init__(
        self, reranker: Reranker, task: RankingTask, service: Service, model: _Model | None, deadline: float
    ) -> None:
        self._reranker = reranker
        self._worker = reranker.worker
        self._task = task
        self._service = service
        self._deadline = deadline
        self._model = model
        self._timings = Timings()
        engine = reranker.engine
        # the model's, of whichever it is: the worker may have been the other one's when it was heard of last
        self._dim = dim = model.spec.dim if model is not None else service.ready.dim
        spec, tokenizer, fingerprint = (
            (model.spec, model.tokenizer, model.fingerprint) if model is not None else (None, None, None)
        )
        self._for_worker = fingerprint if engine is None else None  # R4: with an engine, keys alone say of which model
        self._texts = TaskTexts(task, spec, dim, engine is None, fingerprint)
        self._supplier = Supplier(
            self._texts, engine, tokenizer, fingerprint, reranker.threads, dim, deadline, self._timings
        )
        self._scores = array("f", bytes(4 * self._texts.num_pairs))
        self._rows = [0] * len(self._texts)
        self._prompt_tokens = [0] * len(self._texts)
        self._parallel = asyncio.Semaphore(PARTS_IN_FLIGHT)
        self._is_aligning = False
        self._alignments: dict[int, PairAlignment] = {}

    async def run(self) -> RankingResult:
        texts = self._texts
        await texts.name()
        texts.check_values(self._service.ready.limits)
        await end_turn(len(texts))
        new = self._new_texts()
        if new:
            await self._tell_missing(new)
        await self._supplier.tokenise(new)
        await end_turn(len(texts))
        await self._score_pairs(range(texts.num_pairs), texts.by_value | new)
        self._reranker.recent.add(texts.keys[text] for text in texts.few(FEW_TEXTS))
        queries = texts.num_queries
        result = RankingResult(
            scores=self._scores,
            query_rows=self._rows[:queries],
            query_prompt_tokens=self._prompt_tokens[:queries],
            document_prompt_tokens=self._prompt_tokens[queries:],
            encoded_tokens=self._supplier.encoded_tokens,
            timings=self._timings,
            document_rows=self._rows[queries:],
            tokenizer=self._model.tokenizer if self._model is not None else None,
        )
        if self._task.choose_aligned is None:
            return result
        chosen = await self._task.choose_aligned(result)
        self._is_aligning = True
        await self._score_pairs(sorted(chosen), texts.by_value)
        alignments = {position: self._alignments[position] for position in chosen}
        return replace(result, encoded_tokens=self._supplier.encoded_tokens, alignments=alignments)

    def _new_texts(self) -> set[int]:
        """Texts to supply at once: a few, that were not asked for lately."""
        reranker, texts = self._reranker, self._texts
        if not texts.sends_ids or not self._service.ready.hosts_encoder or self._model is None:
            return set()
        new = {text for text in texts.few(FEW_TEXTS) if texts.keys[text] not in reranker.recent}
        return new if len(new) <= FEW_TEXTS else set()

    async def _score_pairs(self, pairs: Sequence[int], supply: set[int], attempt: int = 1, deaths: int = 0) -> None:
        """Have the worker score, or align, these pairs, with these texts supplied."""
        service = await self._reranker.wait_worker(self._deadline)
        parts = await split(self._texts, pairs, supply, service.ready.limits)
        for part in parts:
            part.deaths = deaths
        await run_all([self._score_part(part, attempt) for part in parts])

    # --- one part -------------------------------------------------------------------------------------------------

    async def _score_part(self, part: Part, attempt: int) -> None:
        """Have the worker score the part; supply what it lacks, in smaller parts where that is much."""
        missing = await self._ask(part)
        if attempt == 1 and not self._is_aligning:
            await self._tell_missing(missing)
        if not missing:
            return
        if attempt == ATTEMPTS:
            raise ServiceFailed(ErrorCode.UNAVAILABLE, "the embedding store was replaced while scoring", 100)
        supply = part.supply | missing
        if attempt == ATTEMPTS - 1:
            supply = {text for position in part.pairs for text in self._texts.pair(position)}
        await self._supplier.tokenise(supply)
        await self._score_pairs(part.pairs, supply, attempt + 1, part.deaths)

    async def _tell_missing(self, missing: set[int]) -> None:
        """
        Raises:
            ServiceFailed: OVERLOADED, there is no room to encode them.
        """
        texts, size = self._texts, 0
        async for some in in_turns(list(missing), of=len(texts)):
            size += sum([len(bytes_of(texts.string(text))) for text in some if text not in texts.by_value])
        self._task.on_missing(size)

    async def _ask(self, part: Part) -> set[int]:
        """Send one Score.

        Returns:
            The texts that are missing; empty: the part's scores are there.
        """
        async with self._parallel, self._reranker.budget.hold(self._texts.supplied_bytes(part.supply)):
            message, writer, order = await self._build_score(part)
            started = time.monotonic()
            try:
                answer, frames = await self._worker.request(
                    message, writer.frames, self._deadline, fingerprint=self._for_worker
                )
            except ServiceFailed as error:
                if error.code is ErrorCode.INVALID_REQUEST and self._has_other_dim:
                    raise ModelChanged from None
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
                missing_keys = {self._texts.keys[order[position]] for position in which}
                return {text for text in order if self._texts.keys[text] in missing_keys}
            case Encoded():
                raise ServiceFailed(ErrorCode.INTERNAL, "the worker answered a Score with Encoded")

    @property
    def _has_other_dim(self) -> bool:
        """Whether the worker has a model whose embeddings are wider, or narrower."""
        service = self._worker.service
        return self._model is not None and service is not None and service.ready.dim != self._dim

    async def _build_score(self, part: Part) -> tuple[Score, FrameWriter, list[int]]:
        """The message, its frames, and which text stands at each position of its key frame."""
        if self._task.pairs is None:
            pairs, queries = [], [0]
            documents = [1 + position for position in part.pairs]
        else:
            pairs = [self._texts.pair(position) for position in part.pairs]
            queries = list(dict.fromkeys([query for query, _ in pairs]))
            documents = list(dict.fromkeys([document for _, document in pairs]))
        order = queries + documents
        writer, key_of = FrameWriter(), self._texts.keys
        keys = writer.add_keys([key_of[text] for text in order])
        pairs_ref = None
        if self._task.pairs is not None and (len(queries) > 1 or len(documents) != len(pairs)):
            place_q = {text: place for place, text in enumerate(queries)}
            place_d = {text: place for place, text in enumerate(documents)}
            flat = array("i", (place for q, d in pairs for place in (place_q[q], place_d[d])))
            pairs_ref = writer.add(flat, "int32", [len(pairs), 2])
        supplied = await self._supplier.supply(part.supply, order, writer)
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

    def _record(self, part: Part, order: list[int], answer: Scores, frames: Frames) -> None:
        scores = frames[answer.scores.frame - 1].cast("f")
        rows = frames[answer.rows.frame - 1].cast("i")
        prompt_tokens = frames[answer.prompt_tokens.frame - 1].cast("i")
        if len(scores) != len(part.pairs) or not len(rows) == len(prompt_tokens) == len(order):
            raise ServiceFailed(ErrorCode.INTERNAL, "the worker answered with another number of scores")
        run = part.pairs if isinstance(part.pairs, range) else None  # of pairs that follow each other, nearly always
        if run is not None:
            self._scores[run.start : run.stop] = array("f", scores.tobytes())
        else:
            for position, score in zip(part.pairs, scores, strict=True):
                self._scores[position] = score
        for all_texts, own in ((self._rows, rows), (self._prompt_tokens, prompt_tokens)):
            if run is not None and self._task.pairs is None:
                all_texts[0], all_texts[1 + run.start : 1 + run.stop] = own[0], own[1:].tolist()
            else:
                for text, count in zip(order, own, strict=True):
                    all_texts[text] = count
        self._timings.score += answer.score_us / 1e6
        self._timings.queue += answer.queue_us / 1e6

    def _record_alignment(self, part: Part, order: list[int], answer: Scores, frames: Frames) -> None:
        rows = dict(zip(order, frames[answer.rows.frame - 1].cast("i"), strict=True))
        if answer.alignment is None:
            raise ServiceFailed(ErrorCode.INTERNAL, "the worker answered without an alignment")
        document_rows = frames[answer.alignment.document_rows.frame - 1].cast("i")
        similarities = frames[answer.alignment.similarities.frame - 1].cast("f")
        start = 0
        for position in part.pairs:
            query, document = self._texts.pair(position)
            end = start + (rows[query] if rows[document] else 0)
            alignment = PairAlignment(document_rows[start:end].tolist(), similarities[start:end].tolist())
            self._alignments[position] = alignment
            start = end
        if start != len(document_rows) or any(
            max(self._alignments[position].document_rows, default=-1) >= rows[self._texts.pair(position)[1]]
            for position in part.pairs
        ):
            raise ServiceFailed(ErrorCode.INTERNAL, "the worker answered with another alignment")
        self._timings.score += answer.score_us / 1e6
        self._timings.queue += answer.queue_us / 1e6

    def _explain(self, error: ServiceFailed, order: list[int]) -> Exception:
        """An error about one of the message's texts, in the words of the user's request."""
        if error.code is not ErrorCode.INVALID_REQUEST or error.which is None or error.which >= len(order):
            return error
        name = self._texts.field(order[error.which])
        return invalid(f"{name}.{error.message}", name)

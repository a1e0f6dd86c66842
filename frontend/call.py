"""One ranking request, from its headers to its scores: admission, body, names of its texts, deadline, disconnect."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from frontend.admission import Admission, Ticket
from frontend.app_config import AppConfig
from frontend.auth import client_tag
from frontend.binary_body import is_binary
from frontend.body import announced_size, read_body
from frontend.body_values import check_values
from frontend.byte_budget import ByteBudget
from frontend.embedding import EmbeddingResult, EmbeddingTask
from frontend.embeddings_input import EmbeddingsPayload, decode_embeddings, decode_sent
from frontend.errors import HttpError, RequestFailed, invalid
from frontend.explanation import MATCH_BYTES, TokenMatch, explain
from frontend.keys import bytes_of, effective_limit, key_maker
from frontend.known_lists import KnownLists, ShortBody
from frontend.large_body import decode_in_turns
from frontend.metrics import Metrics
from frontend.ranking import EmbeddingsInput, Input, Ranker, RankingResult, RankingTask, TextInput
from frontend.repeated_documents import NamedDocuments, RepeatedDocuments
from frontend.schemas import CommonBody, InputBody, InputObject, text_of
from frontend.turns import in_turns
from ipc.errors import ServiceFailed
from ipc.messages import MAX_ALIGNED_ROWS, ErrorCode, FloatDType, ModelSpec, Role

T = TypeVar("T")
Written = TypeVar("Written")  # a body, or the pieces of one
Decoded = TypeVar("Decoded", bound=CommonBody)
GivenInput = InputBody | EmbeddingsInput  # as JSON has it, or already decoded
LARGE_BODY = 2**20  # bytes: embeddings in it are decoded in a thread, one text at a time
TIMED_STAGES = ("tokenize", "encode", "worker", "queue", "score", "total")
CHUNKED_GUESS = 65_536  # bytes that a body without Content-Length is taken for


@dataclass(frozen=True, slots=True)
class Api:
    """What the routes share."""

    config: AppConfig
    ranker: Ranker
    admission: Admission
    secret: bytes
    metrics: Metrics
    is_draining: Callable[[], bool]
    repeated: RepeatedDocuments = field(default_factory=RepeatedDocuments)
    known_lists: KnownLists = field(default_factory=KnownLists)
    explanations: ByteBudget = field(default_factory=lambda: ByteBudget(MAX_ALIGNED_ROWS * MATCH_BYTES))

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names to list; answers carry the first."""
        if self.config.served_model_names:
            return self.config.served_model_names
        return (self.ranker.spec.name,) if self.ranker.spec is not None else ("embeddings",)


def api_of(request: Request) -> Api:
    api = request.app.state.api
    assert isinstance(api, Api)
    return api


class Call:
    """A request that was let in, with its body.

    Args:
        short: the body without a list that is known.
    """

    def __init__(self, request: Request, body: bytes, short: ShortBody | None, started: float, ticket: Ticket) -> None:
        self.api = api_of(request)
        self._ticket = ticket
        self._body = body
        self._short = short
        self.body_bytes = len(body)
        self._request = request
        self._started = started
        self._text_bytes = 0  # of the texts that `_read` has seen
        self._fingerprint: bytes | None = None  # of the model that this request's keys are of
        self._key_digest = _key_digest(request)

    def take_body(self) -> bytes:
        """The body, once: a large one is not kept beside the texts it was decoded to."""
        body, self._body = self._body, b""
        return body

    async def decode(self, decode: Callable[[bytes], Decoded], kind: type[Decoded], lists: Sequence[str]) -> Decoded:
        """What `decode` makes of the body, which is taken then; see `decode_in_turns`.

        Raises:
            RequestFailed: `decode` does; the body can still be taken.
        """
        short, known_lists = self._short, self.api.known_lists
        decoded = short.decode(decode) if short is not None else None
        if short is not None and decoded is not None:
            self._body = b""
            if not decoded.cache_salt:
                known_lists.use(short)
            return decoded
        decoded = await decode_in_turns(decode, kind, self._body, lists)
        body = self.take_body()
        if not decoded.cache_salt:
            sent = {name: getattr(decoded, name) for name in lists}
            await known_lists.learn(_owner_of_lists(self.api, self._key_digest), body, sent)
        return decoded

    @property
    def has_binary_body(self) -> bool:
        return is_binary(self._request.headers.get("content-type"))

    @property
    def request_id(self) -> str:
        return str(self._request.scope["maxsimd.request_id"])

    def check_model(self, name: str | None) -> None:
        """404 for a model that is not served, if the server is strict about it.

        Raises:
            RequestFailed: it is.
        """
        names = self.api.model_names
        if self.api.config.strict_model_name and name is not None and name not in names:
            raise RequestFailed(
                HttpError.NOT_FOUND, f"model: {name[:100]!r} is not served; {', '.join(names)} is", "model"
            )

    def check_count(self, inputs: Sequence[object], field: str) -> None:
        """
        Raises:
            RequestFailed: there are none, or too many.
        """
        limit = self.api.config.max_documents_per_request
        if not inputs:
            raise invalid(f"{field}: empty, at least 1", field)
        if len(inputs) > limit:
            raise invalid(f"{field}: {len(inputs)}, at most {limit} (--max-documents-per-request)", field)

    async def decode_embeddings(self, inputs: Sequence[GivenInput], field: str) -> Sequence[GivenInput]:
        """The inputs, with embeddings decoded where they are many: in a thread, so that others are served meanwhile.
        Where there are none the way there and back would only cost.

        Raises:
            RequestFailed: some are not what their shape says; names the field.
        """
        if self.body_bytes < LARGE_BODY or set(map(type, inputs)) <= {str}:
            return inputs
        return await asyncio.to_thread(
            lambda: [_decoded(value, f"{field}[{place}]") for place, value in enumerate(inputs)]
        )

    async def make_task(
        self,
        body: CommonBody,
        queries: Sequence[GivenInput],
        documents: Sequence[GivenInput],
        pairs: Sequence[tuple[int, int]] | None,
        fields: tuple[str, str],
    ) -> RankingTask:
        """What the reranker is asked.

        Raises:
            RequestFailed: a text or its embeddings are wrong, or there are too many; names the field.
        """
        query_field, document_field = fields
        self.check_count(documents, document_field)
        self.check_count(queries, query_field)
        truncation = body.truncation is not False
        lengths = {role: self._limit(body, role) for role in ("query", "document")}
        self._fingerprint = self.api.ranker.fingerprint
        query_names = [query_field] if pairs is None else [f"{query_field}[{i}]" for i in range(len(queries))]
        query_inputs = await self._read(body, "query", queries, query_names, lengths["query"], truncation)
        document_inputs = await self._read_documents(body, documents, document_field, lengths["document"], truncation)
        return RankingTask(
            queries=query_inputs,
            documents=document_inputs,
            pairs=pairs,
            client=client_tag(self._key_digest, self._peer()),
            deadline=self._started + self._timeout(body.timeout_ms),
            query_length=lengths["query"],
            document_length=lengths["document"],
            truncation=truncation,
            fingerprint=self._fingerprint,
            query_field=query_field,
            document_field=document_field,
            on_missing=self._ticket.add_missing,
        )

    async def score(self, task: RankingTask) -> RankingResult:
        """The scores; if the client goes meanwhile, its work is cancelled.

        Raises:
            RequestFailed, ServiceFailed: there is no answer.
            ClientDisconnect: nobody waits for one.
        """
        result = await self._unless_gone(self.api.ranker.score(task))
        self._count(result)
        return result

    @asynccontextmanager
    async def explained(
        self, task: RankingTask, result: RankingResult
    ) -> AsyncIterator[Mapping[int, Sequence[TokenMatch]]]:
        """The matches of each pair that was aligned, made in another thread. All requests of this process together hold
        one answer's worth of them, inside such blocks.

        Raises:
            RequestFailed, ServiceFailed: there are none; see `explain`.
        """
        size = MATCH_BYTES * sum(len(alignment.similarities) for alignment in result.alignments.values())
        async with self.api.explanations.hold(size):
            yield await asyncio.to_thread(explain, task, result, result.tokenizer) if size else {}

    async def make_embedding_task(
        self,
        body: CommonBody,
        role: Role,
        inputs: Sequence[str | Sequence[int]],
        field: str,
        dtype: FloatDType = "float32",
    ) -> EmbeddingTask:
        """What the encoder is asked. An input is a text, or a text's complete token ids.

        Raises:
            RequestFailed: an input is wrong, or there are too many; names the field.
        """
        self.check_count(inputs, field)
        truncation = body.truncation is not False
        limit = self._limit(body, role)
        self._fingerprint = self.api.ranker.fingerprint
        make_key = self._key_maker(body, role, limit, truncation)
        keys = []
        async for some in in_turns(inputs):
            for value in some:
                # 0xff is in no text: ids never have the name of one
                data = bytes_of(value) if isinstance(value, str) else b"\xff" + array("i", value).tobytes()
                self._text_bytes += len(data)
                keys.append(make_key(data))
        self._ticket.add_missing(self._text_bytes)  # nothing of it is looked up
        return EmbeddingTask(
            inputs=inputs,
            keys=keys,
            role=role,
            dtype=dtype,
            client=client_tag(self._key_digest, self._peer()),
            deadline=self._started + self._timeout(body.timeout_ms),
            limit=limit,
            truncation=truncation,
            names=[f"{field}[{place}]" for place in range(len(inputs))],
        )

    async def embed(
        self, task: EmbeddingTask, write: Callable[[EmbeddingResult], Written]
    ) -> tuple[EmbeddingResult, Written]:
        """The embeddings, and what `write` makes of them in another thread; the rest as `score`."""
        result, written = await self._unless_gone(self.api.ranker.embed(task, write))
        self.api.metrics.prompt_tokens.inc(result.prompt_tokens)
        self.api.metrics.encoded_tokens.inc(result.encoded_tokens)
        self.api.admission.learn(self._ticket, result.encoded_tokens, time.monotonic() - self._started)
        return result, written

    async def _unless_gone(self, work: Coroutine[None, None, T]) -> T:
        """What `work` returns; it is cancelled if the client goes meanwhile.

        Raises:
            ClientDisconnect: nobody waits for the answer.
        """
        working = asyncio.create_task(work)
        leaving = asyncio.create_task(self._wait_disconnect())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientDisconnect
            return working.result()
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    def timing_headers(self, result: RankingResult) -> dict[str, str]:
        """The stages' times, only with --expose-timings: they tell what was in the store."""
        if not self.api.config.expose_timings:
            return {}
        stages = {name: getattr(result.timings, name) for name in TIMED_STAGES if name != "total"}
        stages["total"] = time.monotonic() - self._started
        return {f"x-maxsimd-{name}-ms": f"{seconds * 1000:.3f}" for name, seconds in stages.items()} | {
            "x-maxsimd-encoded-tokens": str(result.encoded_tokens)
        }

    def _limit(self, body: CommonBody, role: Role) -> int:
        spec = self.api.ranker.spec
        if spec is None:
            return 0
        field = "max_tokens_per_query" if role == "query" else "max_tokens_per_doc"
        wanted = getattr(body, field) or None
        cut = body.truncate_prompt_tokens
        if cut is not None and cut > 0 and (wanted is None or cut < wanted):
            field, wanted = "truncate_prompt_tokens", cut
        return effective_limit(spec, role, wanted, self.api.ranker.special_tokens(role), field)

    async def _read_documents(
        self, body: CommonBody, documents: Sequence[GivenInput], names: str, limit: int, truncation: bool
    ) -> Sequence[Input]:
        """As `_read`; a list of texts that came before has its names already."""
        rules = (self._fingerprint, limit, truncation, self._salt(body))
        known = self.api.repeated.find(rules, documents)
        if known is not None:
            self._text_bytes += known.text_bytes
            if not body.cache_salt and self.api.known_lists.takes(self.body_bytes):
                self.api.known_lists.want(_owner_of_lists(self.api, self._key_digest), known.texts)
            return known.inputs
        before = self._text_bytes
        inputs = await self._read(body, "document", documents, names, limit, truncation)
        self.api.repeated.add(NamedDocuments(rules, documents, inputs, self._text_bytes - before))
        return inputs

    async def _read(
        self,
        body: CommonBody,
        role: Role,
        inputs: Sequence[GivenInput],
        names: Sequence[str] | str,
        limit: int,
        truncation: bool,
    ) -> list[Input]:
        make_key: Callable[[bytes], bytes] | None = None
        result: list[Input] = []
        async for some in in_turns(inputs):
            for value in some:
                if isinstance(value, EmbeddingsInput):
                    result.append(value)
                    continue
                if isinstance(value, str):
                    text: str | None = value
                else:
                    name = f"{names}[{len(result)}]" if isinstance(names, str) else names[len(result)]
                    text = text_of(value, name)
                if text is None:
                    result.append(_embeddings_of(value, name))
                    continue
                if make_key is None:
                    make_key = self._key_maker(body, role, limit, truncation)
                if role == "query" and not text.strip():
                    name = names if isinstance(names, str) else names[len(result)]
                    raise invalid(f"{name}: empty", name)
                data = bytes_of(text)  # once: a text that is not ASCII costs ten times as much as one that is
                self._text_bytes += len(data)
                result.append(TextInput(text, make_key(data)))
        return result

    def _key_maker(self, body: CommonBody, role: Role, limit: int, truncation: bool) -> Callable[[bytes], bytes]:
        self._need_encoder()
        if self._fingerprint is None:  # it has come since
            raise ServiceFailed(ErrorCode.UNAVAILABLE, "the encoder is not ready", 1000)
        return key_maker(self.api.secret, self._fingerprint, role, limit, truncation, self._salt(body))

    def _salt(self, body: CommonBody) -> bytes:
        salt = (body.cache_salt or "").encode("utf-8", "surrogatepass")
        return self._key_digest.encode() + b"/" + salt if self.api.config.is_cache_per_key else salt

    def _need_encoder(self) -> ModelSpec:
        ranker = self.api.ranker
        if ranker.spec is None:
            if ranker.has_encoder:
                raise ServiceFailed(ErrorCode.UNAVAILABLE, "the encoder is not ready", 1000)
            raise invalid("this server has no encoder (--no-engine): send embeddings in place of texts")
        return ranker.spec

    def _timeout(self, timeout_ms: int | None) -> float:
        """The server's limit, lowered by what the request says."""
        seconds = self.api.config.request_timeout
        if timeout_ms is not None:
            seconds = min(seconds, timeout_ms / 1000)
        header = self._request.headers.get("x-request-timeout")
        if header is None:
            return seconds
        try:
            wanted = float(header)
        except ValueError:
            wanted = -1.0
        if not 0 < wanted < float("inf"):
            raise invalid("x-request-timeout: expected seconds above 0", "x-request-timeout")
        return min(seconds, wanted)

    def _peer(self) -> str:
        return self._request.client.host if self._request.client is not None else ""

    async def _wait_disconnect(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            continue

    def _count(self, result: RankingResult) -> None:
        metrics = self.api.metrics
        metrics.pairs.inc(len(result.scores))
        metrics.prompt_tokens.inc(sum(result.query_prompt_tokens) + sum(result.document_prompt_tokens))
        metrics.encoded_tokens.inc(result.encoded_tokens)
        for stage in ("tokenize", "encode", "worker", "queue", "score"):
            metrics.stage_seconds.labels(stage).observe(getattr(result.timings, stage))
        self.api.admission.learn(self._ticket, result.encoded_tokens, time.monotonic() - self._started)


@asynccontextmanager
async def admitted(request: Request) -> AsyncIterator[Call]:
    """Let a request in and read its body; give its place back at the end.

    Raises:
        RequestFailed: the body is too large or too slow, or holds too many values.
        ServiceFailed: too many requests are waiting; the body has not been read.
    """
    started = time.monotonic()
    api = api_of(request)
    limit = api.config.max_body_bytes
    size = announced_size(request, limit)
    ticket = api.admission.try_admit(CHUNKED_GUESS if size is None else size)
    try:
        timeout = api.config.request_timeout
        body = await read_body(request, limit, timeout, ticket.set_body_bytes)
        is_json = not is_binary(request.headers.get("content-type"))
        short = await _check_values(api, _key_digest(request), body) if is_json else None
        await api.ranker.wait_model(asyncio.get_running_loop().time() + timeout - (time.monotonic() - started))
        call, body = Call(request, body, short, started, ticket), b""  # it is the call's alone
        yield call
    finally:
        ticket.release()


async def _check_values(api: Api, key_digest: str, body: bytes) -> ShortBody | None:
    """
    Returns:
        The body without a list that is known, if it has one.

    Raises:
        RequestFailed: it holds too many values, or is none of JSON.
    """
    limit = api.config.max_documents_per_request
    short = api.known_lists.shorten(_owner_of_lists(api, key_digest), body)
    if short is not None:
        with suppress(RequestFailed):  # the whole body says it in its own words
            await check_values(short.body, limit, short.commas)
            return short
    await check_values(body, limit)
    return None


def _key_digest(request: Request) -> str:
    """Of the key that the request came with; empty: of none."""
    return str(request.scope.get("maxsimd.key", ""))


def _owner_of_lists(api: Api, key_digest: str) -> str:
    """Those who may know of each other's lists."""
    return key_digest if api.config.is_cache_per_key else ""


def _decoded(value: GivenInput, name: str) -> GivenInput:
    is_embeddings = isinstance(value, InputObject) and text_of(value, name) is None
    return _embeddings_of(value, name) if is_embeddings else value  # type: ignore[arg-type]  # not decoded twice


def _embeddings_of(value: InputBody, name: str) -> EmbeddingsInput:
    """
    Raises:
        RequestFailed: they are not what their shape says.
    """
    assert isinstance(value, InputObject)
    if value.embeddings_b64 is None:
        return decode_sent(value.embeddings, name)
    if value.shape is None:
        raise invalid(f"{name}.shape: required beside embeddings_b64", f"{name}.shape")
    return decode_embeddings(EmbeddingsPayload(value.embeddings_b64, value.shape), name, f"{name}.embeddings_b64")

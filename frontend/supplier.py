"""What goes with the `Score`s of one task: a client's own embeddings, token ids, or embeddings that the engine made.

R3  A text is tokenised at most once, a query encoded at most once, per request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import get_args

from frontend.encoding import EncodedText, concatenate, encode, tokenise
from frontend.fair_threads import FairThreads
from frontend.ranking import EmbeddingsInput, TextInput, Timings
from frontend.run_all import run_all
from frontend.task_texts import TaskTexts
from frontend.tokenizer import StatelessTokenizer
from ipc.arrays import FrameWriter
from ipc.client import ServiceClient
from ipc.errors import ServiceFailed
from ipc.messages import ErrorCode, FloatDType, Role, SuppliedEmbeddings, SuppliedTokens


class Supplier:
    """Makes what is supplied of one task's texts.

    Args:
        engine: who encodes; None: the worker does, from token ids.
        threads: that tokenise.
        tokenizer: None where only embeddings by value are served.
        fingerprint: of its model; the engine must have that one.
        dim: of the model's embeddings.
        deadline: in loop time.
        timings: what is made here is added to.
    """

    def __init__(
        self,
        texts: TaskTexts,
        engine: ServiceClient | None,
        tokenizer: StatelessTokenizer | None,
        fingerprint: bytes | None,
        threads: FairThreads,
        dim: int,
        deadline: float,
        timings: Timings,
    ) -> None:
        self._texts = texts
        self._engine = engine
        self._tokenizer = tokenizer
        self._fingerprint = fingerprint
        self._threads = threads
        self._dim = dim
        self._deadline = deadline
        self._timings = timings
        self._tokenising: dict[int, asyncio.Event] = {}  # by text; set when it is over
        self._queries: dict[int, EncodedText] = {}
        self._query_lock = asyncio.Lock()
        self.encoded_tokens = 0

    async def tokenise(self, supply: set[int]) -> None:
        """Tokenise the texts that will be supplied and have not been yet.

        Raises:
            RequestFailed: a text is too long and may not be cut.
            ServiceFailed: UNAVAILABLE, there is no tokenizer.
        """
        left = [i for i in sorted(supply) if i not in self._texts.tokenized and i not in self._texts.by_value]
        while left:
            own = [i for i in left if i not in self._tokenising]
            if own:
                await self._tokenise_own(own)
            else:  # another part has them done, or fails; then this one says so too
                await self._tokenising[left[0]].wait()
            left = [i for i in left if i not in self._texts.tokenized]

    async def supply(
        self, supply: set[int], order: list[int], writer: FrameWriter
    ) -> list[SuppliedEmbeddings | SuppliedTokens]:
        """What goes with a Score for some texts, which have been tokenised; equal texts go once.

        Args:
            supply: the texts.
            order: the text at each position of the Score's key frame.
            writer: of the Score's frames.

        Raises:
            ServiceFailed: the engine could not encode them in time, or at all.
        """
        if not supply:
            return []
        first = self._texts.num_queries
        some = order if any(text >= first for text in supply) else order[:first]  # queries come first in it
        placed = [(place, text) for place, text in enumerate(some) if text in supply]
        place_of = {self._texts.keys[text]: place for place, text in reversed(placed)}
        texts = [order[place] for place in sorted(place_of.values())]
        places = {text: place_of[self._texts.keys[text]] for text in texts}
        supplied: list[SuppliedEmbeddings | SuppliedTokens] = []
        supplied += self._values(places, writer)
        named = [i for i in texts if isinstance(self._texts.inputs[i], TextInput)]
        if not named:
            return supplied
        queries = [i for i in named if i < self._texts.num_queries]
        documents = [i for i in named if i >= self._texts.num_queries]
        if self._engine is None:
            if queries:
                supplied.append(self._tokens("query", queries, places, writer))
            if documents:
                supplied.append(self._tokens("document", documents, places, writer))
            return supplied
        # side by side: the engine has them in one batch, and a small request waits for it once
        encoded = await run_all([self._encode_queries(queries), self._encode("document", documents)])
        supplied.append(self._embeddings(encoded[0] | encoded[1], places, writer))
        return supplied

    async def _tokenise_own(self, texts: list[int]) -> None:
        """Tokenise texts that no other part is having tokenised just now (R3)."""
        is_over = asyncio.Event()
        self._tokenising |= dict.fromkeys(texts, is_over)
        try:
            for role in get_args(Role):
                await self._tokenise(role, [i for i in texts if self._texts.role(i) == role])
        finally:
            for text in texts:
                del self._tokenising[text]
            is_over.set()

    async def _tokenise(self, role: Role, texts: list[int]) -> None:
        if not texts:
            return
        if self._tokenizer is None:
            raise ServiceFailed(ErrorCode.UNAVAILABLE, "the encoder is not ready", 1000)
        task = self._texts.task
        started = time.monotonic()
        limit = task.query_length if role == "query" else task.document_length
        string, field = self._texts.string, self._texts.field
        in_thread = partial(self._threads.run, task.client, self)
        made = await tokenise(in_thread, self._tokenizer, role, texts, string, field, limit, task.truncation)
        self._texts.tokenized.update(zip(texts, made, strict=True))
        self._timings.tokenize += time.monotonic() - started

    async def _encode_queries(self, queries: list[int]) -> dict[int, EncodedText]:
        """As `_encode`, but once for all parts (R3)."""
        async with self._query_lock:
            self._queries |= await self._encode("query", [i for i in queries if i not in self._queries])
        return {i: self._queries[i] for i in queries}

    async def _encode(self, role: Role, texts: list[int]) -> dict[int, EncodedText]:
        """Have the engine encode tokenised texts of one role."""
        assert self._engine is not None
        if not texts:
            return {}
        tokens = [self._texts.tokenized[text] for text in texts]
        keys = [self._texts.keys[text] for text in texts]
        started = time.monotonic()
        client, fingerprint = self._texts.task.client, self._fingerprint
        encoded = await encode(self._engine, role, tokens, keys, client, self._deadline, fingerprint=fingerprint)
        self._timings.encode += time.monotonic() - started
        self.encoded_tokens += sum(len(entry.token_ids) for entry in tokens)
        return dict(zip(texts, encoded, strict=True))

    def _values(self, places: dict[int, int], writer: FrameWriter) -> Iterator[SuppliedEmbeddings]:
        """A client's own embeddings: they live for this job only."""
        values = [(i, value) for i in places if isinstance(value := self._texts.inputs[i], EmbeddingsInput)]
        for dtype in get_args(FloatDType):
            some = [(i, value) for i, value in values if value.dtype == dtype]
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

    def _embeddings(
        self, encoded: dict[int, EncodedText], places: dict[int, int], writer: FrameWriter
    ) -> SuppliedEmbeddings:
        rows = [entry.rows for entry in encoded.values()]
        data = b"".join(entry.embeddings for entry in encoded.values())
        return SuppliedEmbeddings(
            which=writer.add_ints(places[i] for i in encoded),
            rows=writer.add_ints(rows),
            prompt_tokens=writer.add_ints(self._texts.tokenized[i].prompt_tokens for i in encoded),
            embeddings=writer.add(data, "float32", [sum(rows), self._dim]),
        )

    def _tokens(self, role: Role, texts: list[int], places: dict[int, int], writer: FrameWriter) -> SuppliedTokens:
        tokens = [self._texts.tokenized[i] for i in texts]
        token_ids = concatenate(tokens)
        self.encoded_tokens += len(token_ids)
        return SuppliedTokens(
            role=role,
            which=writer.add_ints(places[i] for i in texts),
            lengths=writer.add_ints(len(entry.token_ids) for entry in tokens),
            expansion=writer.add_ints(entry.expansion for entry in tokens),
            token_ids=writer.add_ints(token_ids),
        )

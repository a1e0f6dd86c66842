"""The books of Encode requests: who waits for which texts, and what there is of them already.

They are kept wherever an encoder is: in the engine, and in a scorer worker that hosts the encoder.

    G1  Every request that was read is answered once, or dropped because its client has gone or cancelled it.
    G2  A text is encoded once for all who wait for it; it is dropped from the queue only when the last of them is gone.
    G3  Nothing is kept after its answer: only the scorer worker stores embeddings, for scoring. (The engine has what it
        encoded last, see `engine.recent`: requests that miss a text together have it encoded once.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ipc.arrays import ITEM_BYTES, FrameWriter, split_keys
from ipc.messages import MAX_MESSAGE_BYTES, MAX_STRUCT_BYTES, Encode, Encoded, ErrorCode, Role
from ipc.running import RequestName
from ipc.service import Endpoint, Request

MAX_ANSWER_BYTES = MAX_MESSAGE_BYTES - MAX_STRUCT_BYTES  # of embeddings; the rest is the message's own
EXPIRY_INTERVAL = 0.05  # seconds between two looks at the deadlines
COUNTERS = ("requests", "answered", "cancelled", "expired", "recent_texts")

_REPLY_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TextQueue(Protocol):
    """Where texts wait for the encoder; see `engine.encode_queue.EncodeQueue`."""

    def add(
        self,
        key: bytes,
        role: Role,
        token_ids: memoryview,
        expansion: int,
        waiter: RequestName,
        client: bytes,
        alone: bool = False,
    ) -> None: ...

    def drop(self, waiter: RequestName) -> object: ...


@dataclass(slots=True)
class _Pending:
    """One Encode request, and what there is of it."""

    request: Request
    message: Encode
    keys: list[bytes]
    left: set[bytes]
    embeddings: dict[bytes, torch.Tensor] = field(default_factory=dict)  # key -> [rows, dim], on the CPU


class EncodeRequests:
    """Takes Encode requests, has their texts queued, and answers when all of them are there.

    Args:
        check: token ids -> what is wrong with a text, or None.
        forgive: told the name of each request that has ended: it has killed nobody.
        find_recent: key -> embeddings [rows, dim] on the CPU that were made just now, or None.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        queue: TextQueue,
        check: Callable[[memoryview], str | None],
        forgive: Callable[[RequestName], None],
        find_recent: Callable[[bytes], torch.Tensor | None] = lambda key: None,
    ) -> None:
        self._endpoint = endpoint
        self._queue = queue
        self._check = check
        self._forgive = forgive
        self._find_recent = find_recent
        self._pending: dict[RequestName, _Pending] = {}
        self._next_expiry = 0.0
        self.counters = dict.fromkeys(COUNTERS, 0.0)

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._pending)

    def take(self, request: Request, message: Encode, is_suspect: bool) -> None:
        """Queue the request's texts, or answer what is wrong with one of them.

        Args:
            message: the request's own.
            is_suspect: it was running in a service that died.
        """
        problem = self._problem_of_size(message)
        if problem is not None:
            self._refuse(request.name, problem)
            return
        texts = _read_texts(request, message)
        for position, (_, token_ids, _) in enumerate(texts):
            problem = self._check(token_ids)
            if problem is not None:
                self._refuse(request.name, problem, position)
                return
        keys = [key for key, _, _ in texts]
        recent = {key: found for key in keys if (found := self._find_recent(key)) is not None}
        pending = _Pending(request, message, keys, set(keys) - recent.keys(), recent)
        self._pending[request.name] = pending
        self.counters["requests"] += 1
        self.counters["recent_texts"] += len(recent)
        if not pending.left:
            self._answer(request.name, pending)
            return
        for key, token_ids, expansion in texts:
            if key not in recent:
                self._queue.add(key, message.role, token_ids, expansion, request.name, message.client, alone=is_suspect)

    def give(self, name: RequestName, key: bytes, embeddings: torch.Tensor | None) -> None:
        """A text that this request waits for has been encoded; unknown requests are ignored.

        Args:
            embeddings: [rows, dim] on the CPU; None: the device had no memory for it.
        """
        pending = self._pending.get(name)
        if pending is None:
            return
        if embeddings is None:
            self._fail(name, ErrorCode.UNAVAILABLE, "the device has no memory to encode a text")
            return
        pending.embeddings[key] = embeddings
        pending.left.discard(key)
        if not pending.left:
            self._answer(name, pending)

    def drop(self, name: RequestName) -> None:
        """Nobody waits for this request any more; unknown ones are ignored."""
        if name in self._pending:
            self._end(name)
            self.counters["cancelled"] += 1

    def drop_client(self, identity: bytes) -> None:
        """A client has gone, with all its requests."""
        for name in [name for name in self._pending if name[0] == identity]:
            self.drop(name)

    def drop_expired(self, now: float) -> None:
        """Answer what is overdue, and have it encoded no more. Cheap to call often."""
        if now < self._next_expiry:
            return
        self._next_expiry = now + EXPIRY_INTERVAL
        for name in [name for name, pending in self._pending.items() if pending.request.deadline <= now]:
            self._fail(name, ErrorCode.DEADLINE_EXCEEDED, "not encoded within the request's time")
            self.counters["expired"] += 1

    def _problem_of_size(self, message: Encode) -> str | None:
        """Before anything is queued: work for an answer that no message can carry is not done."""
        tokens = message.token_ids.shape[0]
        num_bytes = tokens * self._endpoint.dim * ITEM_BYTES[message.reply]
        if num_bytes <= MAX_ANSWER_BYTES:
            return None
        return f"token_ids: {tokens} of them make {num_bytes} bytes of embeddings, at most {MAX_ANSWER_BYTES}"

    def _refuse(self, name: RequestName, problem: str, which: int | None = None) -> None:
        self._forgive(name)
        self._endpoint.fail(name, ErrorCode.INVALID_REQUEST, problem, which=which)

    def _fail(self, name: RequestName, code: ErrorCode, message: str) -> None:
        self._end(name)
        self._endpoint.fail(name, code, message, retry_after_ms=1000)

    def _end(self, name: RequestName) -> None:
        """The request leaves, whatever ended it."""
        del self._pending[name]
        self._queue.drop(name)
        self._forgive(name)

    def _answer(self, name: RequestName, pending: _Pending) -> None:
        self._end(name)
        dtype = pending.message.reply
        texts = [pending.embeddings[key] for key in pending.keys]
        num_bytes = sum(map(len, texts)) * self._endpoint.dim * ITEM_BYTES[dtype]
        if num_bytes > MAX_ANSWER_BYTES:  # where a key named a longer text of somebody else's, or of another place
            problem = f"keys: they name {num_bytes} bytes of embeddings, at most {MAX_ANSWER_BYTES}"
            self._refuse(name, problem)
            return
        embeddings = torch.cat(texts).to(_REPLY_DTYPES[dtype])
        writer = FrameWriter()
        message = Encoded(
            request_id=name[1],
            rows=writer.add_ints(len(text) for text in texts),
            # as bytes: numpy, which makes the buffer, has no bfloat16
            embeddings=writer.add(embeddings.view(torch.uint8).reshape(-1).numpy().data, dtype, list(embeddings.shape)),
            credits=self._endpoint.credits(),
        )
        self.counters["answered"] += 1  # before the answer: who has it finds it counted
        self._endpoint.answer(name, message, writer.frames)


def _read_texts(request: Request, message: Encode) -> list[tuple[bytes, memoryview, int]]:
    """(key, token ids, expansion rows) of each text."""
    frames = request.frames
    keys = split_keys(frames[message.keys.frame - 1])
    lengths, expansion, token_ids = (
        frames[ref.frame - 1].cast("i") for ref in (message.lengths, message.expansion, message.token_ids)
    )
    texts: list[tuple[bytes, memoryview, int]] = []
    offset = 0
    for key, length, extra in zip(keys, lengths, expansion, strict=True):
        texts.append((key, token_ids[offset : offset + length], extra))
        offset += length
    return texts

"""A service without a socket, so that a test decides when it answers; and what was asked of it."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence

from frontend.reranker import Reranker
from ipc.arrays import Buffer, FrameWriter, split_keys
from ipc.client import Answer, Frames, Service
from ipc.codec import decode_to_service, encode
from ipc.messages import PROTOCOL_VERSION, Credits, Encode, Encoded, Limits, Missing, Ready, Score, Scores
from tests.frontend.surface import SPEC, TOKENIZER_JSON

CREDITS = Credits(2**20, 2**20)
DIM = SPEC.dim
FINGERPRINT = b"f" * 16
PAUSES = 100  # of the event loop: time enough for all that is not held back to come too


class Desk:
    """As much of a `ServiceClient` as a reranker sees. Its store is empty, and forgets, unless a test says otherwise.

    Args:
        misses: key -> whether the store lacks it; what is supplied it has.
        holds: message -> whether it is not to be answered yet.
    """

    name = "desk"
    is_ready = True

    def __init__(
        self,
        part_pairs: int = 2048,
        misses: Callable[[bytes], bool] = lambda key: False,
        hosts_encoder: bool = False,
        holds: Callable[[Score | Encode], bool] = lambda message: False,
    ) -> None:
        limits = Limits(65_536, 2**26, 65_536, row_grain=16, part_pairs=part_pairs)
        ready = Ready(PROTOCOL_VERSION, 1, FINGERPRINT, DIM, limits, CREDITS, hosts_encoder=hosts_encoder)
        self.service = Service(ready, SPEC, TOKENIZER_JSON)
        self.misses = misses
        self.holds = holds
        self.asked: list[tuple[Score | Encode, list[bytes]]] = []  # with its keys
        self.most = 0  # at once
        self._held = 0

    async def wait_ready(self, timeout: float) -> Service:
        return self.service

    async def request(
        self,
        message: Score | Encode,
        frames: Sequence[Buffer],
        deadline: float,
        tokens: int = 0,
        fingerprint: bytes | None = None,
    ) -> tuple[Answer, Frames]:
        assert fingerprint in (None, self.service.ready.fingerprint)
        read, views = decode_to_service([memoryview(bytearray(part)) for part in encode(message, frames)])
        assert isinstance(read, Score | Encode)
        keys = split_keys(views[read.keys.frame - 1])
        self.asked.append((read, keys))
        self._held += 1
        self.most = max(self.most, self._held)
        while self.holds(read):
            await asyncio.sleep(0)
        for _ in range(PAUSES):
            await asyncio.sleep(0)
        self._held -= 1
        writer = FrameWriter()
        answer = self._score(read, keys, views, writer) if isinstance(read, Score) else _encode(read, views, writer)
        return answer, [memoryview(frame).cast("B") for frame in writer.frames]

    def _score(self, message: Score, keys: list[bytes], frames: Frames, writer: FrameWriter) -> Answer:
        supplied = {place for part in message.supplied for place in frames[part.which.frame - 1].cast("i")}
        missing = [place for place, key in enumerate(keys) if place not in supplied and self.misses(key)]
        if missing:
            return Missing(0, writer.add_ints(missing), CREDITS)
        count = message.num_documents if message.pairs is None else message.pairs.shape[0]
        ones = writer.add_ints([1] * len(keys))
        return Scores(0, writer.add(array("f", [1.0] * count), "float32", [count]), ones, ones, CREDITS)


def _encode(message: Encode, frames: Frames, writer: FrameWriter) -> Encoded:
    lengths = frames[message.lengths.frame - 1].cast("i")
    rows = sum(lengths)
    embeddings = writer.add(array("f", [0.0] * (rows * DIM)), "float32", [rows, DIM])
    return Encoded(0, writer.add_ints(lengths), embeddings, CREDITS)


async def with_model(reranker: Reranker, desk: Desk) -> None:
    """The reranker has heard of the desk's model."""
    reranker.take_model(desk.service)
    await reranker.wait_model(asyncio.get_running_loop().time() + 10.0)

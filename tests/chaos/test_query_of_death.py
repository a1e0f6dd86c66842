"""P6: a request that kills whoever runs it costs its client a 500 after two deaths, and nobody else anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.fault.sitecustomize import (
    DEADLY_ROOM,
    DEADLY_ROWS,
    DEADLY_TO_READ,
    DEADLY_TOKENS,
    Poisoner,
)
from tests.chaos.processes import ENGINE, WORKER, restarts
from tests.chaos.traffic import Traffic
from tests.chaos.truth import DIM, QUERIES, TEXTS, Truth
from tests.end_to_end.running_server import Server, as_input, random_embeddings, wait_until

SPECIAL_TOKENS = 2
DEADLY_TO_ENCODE = " ".join(["word"] * (DEADLY_TOKENS - SPECIAL_TOKENS))
DEADLY_TO_TAKE = " ".join(["word"] * (DEADLY_TO_READ - SPECIAL_TOKENS))
DEADLY_TO_SCORE = " ".join(["word"] * (DEADLY_ROWS - SPECIAL_TOKENS))
DEADLY_EMBEDDINGS = as_input(random_embeddings(DEADLY_ROWS, DIM, 13))
DEADLY_TO_ADMIT = as_input(random_embeddings(DEADLY_ROOM, DIM, 14))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two API servers; worker and engine have the fault of `fault/sitecustomize.py`."""
    folders = [str(Path(__file__).parent / "fault"), os.environ.get("PYTHONPATH", "")]
    faulty = {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    running = Server("--api-server-count", "2", "--embedding-cache-size", "64MiB", environment=faulty)
    yield running
    running.end()


def test_fault_is_not_in_the_process_of_the_tests() -> None:
    """It was: a kernel's test that met a document of DEADLY_ROWS rows killed the whole run."""
    assert not any(isinstance(finder, Poisoner) for finder in sys.meta_path)


@pytest.mark.parametrize(
    ("document", "module"),
    [
        pytest.param(DEADLY_EMBEDDINGS, WORKER, id="embeddings-kill-the-scorer", marks=pytest.mark.long),
        pytest.param(DEADLY_TO_ADMIT, WORKER, id="embeddings-kill-who-makes-room-for-them", marks=pytest.mark.long),
        # the worker that has been started again misses every text, so the request comes back under other names
        pytest.param(DEADLY_TO_SCORE, WORKER, id="text-kills-the-scorer"),
        pytest.param(DEADLY_TO_ENCODE, ENGINE, id="text-kills-the-encoder"),
        pytest.param(DEADLY_TO_TAKE, ENGINE, id="text-kills-who-reads-it", marks=pytest.mark.long),
    ],
)
def test_query_of_death_costs_its_client_a_500_and_nobody_else_anything(
    server: Server, truth: Truth, document: Any, module: str
) -> None:
    server.scores(QUERIES[0], TEXTS)
    other = ENGINE if module == WORKER else WORKER
    before, others = restarts(server, module), restarts(server, other)
    with Traffic(server.url, truth, seed=5) as traffic:
        traffic.wait_round()
        answer = server.post("/rerank", {"query": QUERIES[0], "documents": [*TEXTS, document]})
        traffic.wait_round()
    assert answer.status_code == 500
    assert "2 " in answer.text and "died while this request was running" in answer.text
    wait_until(lambda: restarts(server, module) >= before + 2)
    assert (restarts(server, module), restarts(server, other)) == (before + 2, others)
    assert traffic.problems == []
    assert traffic.resets == 0
    assert len(server.scores(QUERIES[0], TEXTS)) == len(TEXTS)

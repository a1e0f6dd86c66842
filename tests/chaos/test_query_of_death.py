"""P6: a request that kills whoever runs it costs its client a 500 after two deaths, and nobody else anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
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
from tests.chaos.processes import ENGINE, ENGINE_PROCESS, HOSTED_ENCODER, WORKER, restarts
from tests.chaos.traffic import Traffic
from tests.chaos.truth import DIM, QUERIES, TEXTS, TOLERANCE, Truth
from tests.end_to_end.running_server import Server, as_input, random_embeddings, wait_until

SPECIAL_TOKENS = 2
DEADLY_TO_ENCODE = " ".join(["word"] * (DEADLY_TOKENS - SPECIAL_TOKENS))
DEADLY_TO_TAKE = " ".join(["word"] * (DEADLY_TO_READ - SPECIAL_TOKENS))
DEADLY_TO_SCORE = " ".join(["word"] * (DEADLY_ROWS - SPECIAL_TOKENS))
DEADLY_EMBEDDINGS = as_input(random_embeddings(DEADLY_ROWS, DIM, 13))
DEADLY_TO_ADMIT = as_input(random_embeddings(DEADLY_ROOM, DIM, 14))


def run_server(placement: Sequence[str]) -> Iterator[Server]:
    """Two API servers; worker and engine have the fault of `fault/sitecustomize.py`."""
    folders = [str(Path(__file__).parent / "fault"), os.environ.get("PYTHONPATH", "")]
    faulty = {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    common = ("--api-server-count", "2", "--embedding-cache-size", "64MiB")
    running = Server(*common, *placement, environment=faulty)
    yield running
    running.end()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from run_server(ENGINE_PROCESS)


@pytest.fixture(scope="module")
def hosted() -> Iterator[Server]:
    yield from run_server(HOSTED_ENCODER)


def rerank(document: Any) -> tuple[str, Any]:
    """A request with this document among others."""
    return "/rerank", {"query": QUERIES[0], "documents": [*TEXTS, document]}


def embed(document: str) -> tuple[str, Any]:
    """A request for the embeddings of this document and of others."""
    return "/pooling", {"input": [*TEXTS, document], "input_type": "document"}


def test_fault_is_not_in_the_process_of_the_tests() -> None:
    """It was: a kernel's test that met a document of DEADLY_ROWS rows killed the whole run."""
    assert not any(isinstance(finder, Poisoner) for finder in sys.meta_path)


# the worker that has been started again misses every text, so a ranking request comes back under other names
TO_THE_WORKER = [
    pytest.param(rerank(DEADLY_EMBEDDINGS), id="embeddings-kill-the-scorer", marks=pytest.mark.long),
    pytest.param(rerank(DEADLY_TO_ADMIT), id="embeddings-kill-who-makes-room-for-them", marks=pytest.mark.long),
    pytest.param(rerank(DEADLY_TO_SCORE), id="text-kills-the-scorer"),
]
TO_THE_ENCODER = [
    pytest.param(rerank(DEADLY_TO_ENCODE), id="text-kills-the-encoder"),
    pytest.param(embed(DEADLY_TO_ENCODE), id="text-to-embed-kills-the-encoder", marks=pytest.mark.long),
    pytest.param(embed(DEADLY_TO_TAKE), id="text-to-embed-kills-who-reads-it", marks=pytest.mark.long),
]
TO_THE_ENGINE = [
    *TO_THE_ENCODER,
    pytest.param(rerank(DEADLY_TO_TAKE), id="text-kills-who-reads-it", marks=pytest.mark.long),
]


@pytest.mark.parametrize("request_of_death", TO_THE_WORKER)
def test_query_of_death_costs_its_client_a_500_and_nobody_else_anything(
    server: Server, truth: Truth, request_of_death: tuple[str, Any]
) -> None:
    costs_a_500_and_nothing_else(server, truth, request_of_death, WORKER)


@pytest.mark.parametrize("request_of_death", TO_THE_ENGINE)
def test_query_of_death_of_an_engine_costs_its_client_a_500_and_nobody_else_anything(
    server: Server, truth: Truth, request_of_death: tuple[str, Any]
) -> None:
    costs_a_500_and_nothing_else(server, truth, request_of_death, ENGINE)


@pytest.mark.parametrize("request_of_death", [*TO_THE_WORKER, *TO_THE_ENCODER])
def test_query_of_death_of_a_worker_that_encodes_costs_its_client_a_500_and_nobody_else_anything(
    hosted: Server, truth: Truth, request_of_death: tuple[str, Any]
) -> None:
    """What was being encoded stands in a file of its own, `worker.running.encoder`: its thread runs beside scoring."""
    costs_a_500_and_nothing_else(hosted, truth, request_of_death, WORKER)


def costs_a_500_and_nothing_else(server: Server, truth: Truth, request: tuple[str, Any], module: str) -> None:
    """
    Args:
        request: its path and its body.
        module: whom it kills.
    """
    check_scores(server, truth)
    other = ENGINE if module == WORKER else WORKER
    before, others = restarts(server, module), restarts(server, other)
    with Traffic(server.url, truth, seed=5) as traffic:
        traffic.wait_round()
        answer = server.post(*request)
        traffic.wait_round()
    assert answer.status_code == 500
    assert "2 " in answer.text and "died while this request was running" in answer.text
    wait_until(lambda: restarts(server, module) >= before + 2)
    assert (restarts(server, module), restarts(server, other)) == (before + 2, others)
    assert traffic.problems == []
    assert traffic.resets == 0
    check_scores(server, truth)


def check_scores(server: Server, truth: Truth) -> None:
    """The texts that stand beside the deadly one are answered for others, and rightly."""
    expected = [truth.scores[0, place] for place in range(len(TEXTS))]
    assert server.scores(QUERIES[0], TEXTS) == pytest.approx(expected, abs=TOLERANCE)

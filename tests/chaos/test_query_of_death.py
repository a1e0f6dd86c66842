"""P6: a request that kills whoever runs it costs its client a 500 and nobody else anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipc.running import MAX_DEATHS
from tests.chaos.processes import ENGINE, WORKER, restarts
from tests.chaos.traffic import Traffic
from tests.chaos.truth import Truth
from tests.end_to_end.running_server import Server, as_input, random_embeddings

FAULT = Path(__file__).parent / "fault"
DEADLY_ROWS, DEADLY_TOKENS = 77, 91  # as the fault says
DEADLY_TEXT = "word " * (DEADLY_TOKENS - 2)  # each is one token, beside [CLS] and [SEP]


@pytest.mark.parametrize(
    ("module", "query", "document"),
    [
        pytest.param(WORKER, None, None, id="scoring"),
        pytest.param(ENGINE, "a query", DEADLY_TEXT, id="encoding"),
    ],
)
def test_a_query_of_death_is_a_500_for_its_client_alone(
    start: Callable[..., Server], truth: Truth, module: str, query: Any, document: Any
) -> None:
    path = os.pathsep.join([str(FAULT), os.environ.get("PYTHONPATH", "")])
    server = start("--api-server-count", "2", environment={"PYTHONPATH": path})
    with Traffic(server.url, truth, seed=12) as traffic:
        traffic.wait_answers(30)
        answer = server.post(
            "/rerank",
            {
                "query": query or as_input(random_embeddings(5, 384, 1)),
                "documents": [document or as_input(random_embeddings(DEADLY_ROWS, 384, 2))],
            },
        )
        assert answer.status_code == 500, answer.text
        assert "died while this request was running" in answer.text
        traffic.wait_round()
    assert traffic.problems == []
    assert traffic.resets == 0
    assert restarts(server, module) == MAX_DEATHS

"""P1 and P6: whatever is killed or hangs, nobody else loses a request, and every answer is right."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.chaos.processes import API_SERVER, ENGINE, HANG_LIMIT, WORKER, hang, kill, restarts, wait_restart
from tests.chaos.traffic import Traffic
from tests.chaos.truth import Truth
from tests.end_to_end.running_server import Server, wait_until
from tests.end_to_end.test_processes import count_connections


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two API servers, for tests that leave everything running."""
    running = Server("--api-server-count", "2", "--embedding-cache-size", "64MiB")
    yield running
    running.end()


@pytest.mark.parametrize("module", [WORKER, ENGINE])
def test_service_killed_again_and_again_costs_no_request(server: Server, truth: Truth, module: str) -> None:
    before = restarts(server, module)
    with Traffic(server.url, truth, seed=len(module)) as traffic:
        for _ in range(2):
            traffic.wait_round()
            kill(server, module)
        traffic.wait_round()
    assert traffic.problems == []
    assert traffic.resets == 0 and traffic.given_up > 0
    assert restarts(server, module) == before + 2


def test_killed_api_server_breaks_only_its_own_connections(server: Server, truth: Truth) -> None:
    with Traffic(server.url, truth, seed=3, retries=True) as traffic:
        traffic.wait_answers(50)
        before = restarts(server, API_SERVER)
        victim = hang(server, API_SERVER)  # so that what it has can be counted
        owned = count_connections(victim, server.port)
        os.kill(victim, signal.SIGKILL)
        wait_restart(server, API_SERVER, before)
        traffic.wait_round()
        traffic.wait_answers(50)
    assert traffic.problems == []
    assert 0 < traffic.resets <= owned
    assert traffic.lost == 0
    assert len(server.children(API_SERVER)) == 2


@pytest.mark.long
@pytest.mark.parametrize("module", [WORKER, ENGINE])
def test_six_kills_five_seconds_after_each_ready(start: Callable[..., Server], truth: Truth, module: str) -> None:
    """As the promise has it: four API servers, a deadline of 30 s, zero failed requests and zero wrong ones."""
    server = start("--api-server-count", "4", "--request-timeout", "30", "--embedding-cache-size", "64MiB")
    with Traffic(server.url, truth, connections=16, seed=6) as traffic:
        for _ in range(6):
            traffic.wait_seconds(5)
            kill(server, module)
        traffic.wait_round()
    assert traffic.problems == []
    assert traffic.resets == 0


@pytest.mark.long
@pytest.mark.parametrize("module", [WORKER, ENGINE])
def test_hanging_service_is_found_killed_and_started_again(server: Server, truth: Truth, module: str) -> None:
    before = restarts(server, module)
    with Traffic(server.url, truth, seed=8) as traffic:
        traffic.wait_round()
        victim = hang(server, module)
        wait_until(lambda: victim not in server.children(module), HANG_LIMIT)
        wait_restart(server, module, before)
        traffic.wait_round()
    assert traffic.problems == []
    assert traffic.resets == 0
    assert "has been silent for" in server.log


@pytest.mark.long
def test_hanging_api_server_is_found_killed_and_started_again(server: Server, truth: Truth) -> None:
    before = restarts(server, API_SERVER)
    with Traffic(server.url, truth, seed=9, retries=True) as traffic:
        traffic.wait_round()
        victim = hang(server, API_SERVER)
        owned = count_connections(victim, server.port)
        wait_until(lambda: victim not in server.children(API_SERVER), HANG_LIMIT)
        wait_restart(server, API_SERVER, before)
        traffic.wait_round()
    assert traffic.problems == []
    assert 0 < traffic.resets <= owned
    assert traffic.lost == 0

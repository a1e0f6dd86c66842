"""P1 and P6: whatever is killed or hangs, nobody else loses a request, and every answer is right.

A process stands by: it takes a dead service's place, has nothing until then, and costs nothing when it dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.processes import (
    API_SERVER,
    END_LIMIT,
    ENGINE,
    ENGINE_PROCESS,
    HANG_LIMIT,
    HOSTED_ENCODER,
    NAMES,
    WORKER,
    hang,
    is_alive,
    kill,
    restarts,
    wait_restart,
    who_was_silent,
)
from tests.chaos.sampling import all_holdings, holdings
from tests.chaos.traffic import Traffic
from tests.chaos.truth import Truth
from tests.end_to_end.running_server import STOP_LIMIT, Server, wait_until
from tests.end_to_end.test_processes import count_connections

SPARE = "scorer_worker.spare"
SERVICES = [  # how a server's encoder is placed, and which of its processes is disturbed
    pytest.param(ENGINE_PROCESS, WORKER, id="worker"),
    pytest.param(ENGINE_PROCESS, ENGINE, id="engine"),
    pytest.param(HOSTED_ENCODER, WORKER, id="worker-that-encodes"),
]


def run_server(placement: Sequence[str]) -> Iterator[Server]:
    """Two API servers, and a process that stands by, for tests that leave everything running."""
    common = ("--api-server-count", "2", "--embedding-cache-size", "64MiB", "--spare-process", "on")
    running = Server(*common, *placement)
    yield running
    running.end()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from run_server(ENGINE_PROCESS)


@pytest.fixture(scope="module")
def hosted() -> Iterator[Server]:
    yield from run_server(HOSTED_ENCODER)


@pytest.fixture
def placed(request: pytest.FixtureRequest) -> Server:
    """The module's server with this placement. Not one parametrised fixture: pytest would start them anew in turn."""
    found: Server = request.getfixturevalue("hosted" if request.param == HOSTED_ENCODER else "server")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("placed", [ENGINE_PROCESS, HOSTED_ENCODER], ids=["engine", "hosted"], indirect=True)
def test_mixed_traffic_leaves_no_file_socket_or_thread(placed: Server, truth: Truth) -> None:
    """The short version of `test_soak.py`, before anything is killed here.

    What is made at first use, as a pool's last thread, may be made late: a leak is what more is left of each time.
    """
    wait_spare(placed)
    with Traffic(placed.url, truth, seed=2) as traffic:
        traffic.wait_answers(100)
    assert traffic.problems == []
    left = [left_by_traffic(placed, truth, seed=4)]
    while left[-1] and len(left) < 3:
        left.append(left_by_traffic(placed, truth, seed=4 + len(left)))
    assert not left[-1], left


def left_by_traffic(server: Server, truth: Truth, seed: int) -> list[str]:
    """What the processes hold more after mixed traffic than before it, in words."""
    before = counts(server)
    with Traffic(server.url, truth, seed) as traffic:
        traffic.wait_answers(200)
    assert traffic.problems == [] and traffic.lost == 0, traffic.reset_errors
    more: list[str] = []

    def is_as_before() -> bool:
        more[:] = [f"{what}: {now}, was {before[what]}" for what, now in counts(server).items() if now > before[what]]
        return not more

    with contextlib.suppress(AssertionError):
        wait_until(is_as_before, END_LIMIT)
    return more


def counts(server: Server) -> dict[str, int]:
    """Open files, sockets and threads of each process."""
    return {
        f"{name}, {what}": getattr(held, what)
        for name, held in all_holdings(server).items()
        for what in ("files", "sockets", "threads")
    }


@pytest.mark.parametrize(("placed", "module"), SERVICES, indirect=["placed"])
def test_service_killed_again_and_again_costs_no_request(placed: Server, truth: Truth, module: str) -> None:
    before = restarts(placed, module)
    with Traffic(placed.url, truth, seed=len(module)) as traffic:
        for _ in range(2):
            traffic.wait_round()
            kill(placed, module)
        traffic.wait_round()
    assert traffic.problems == []
    assert traffic.resets == 0 and traffic.given_up > 0
    assert restarts(placed, module) == before + 2


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
@pytest.mark.parametrize(("placement", "module"), SERVICES)
def test_six_kills_five_seconds_after_each_ready(
    start: Callable[..., Server], truth: Truth, placement: tuple[str, ...], module: str
) -> None:
    """As the promise has it: four API servers, a deadline of 30 s, zero failed requests and zero wrong ones."""
    common = ("--api-server-count", "4", "--request-timeout", "30", "--embedding-cache-size", "64MiB")
    server = start(*common, *placement)
    with Traffic(server.url, truth, connections=16, seed=6) as traffic:
        for _ in range(6):
            traffic.wait_seconds(5)
            kill(server, module)
        traffic.wait_round()
    assert traffic.problems == []
    assert traffic.resets == 0


@pytest.mark.long
@pytest.mark.parametrize(("placed", "module"), SERVICES, indirect=["placed"])
def test_hanging_service_is_found_killed_and_started_again(placed: Server, truth: Truth, module: str) -> None:
    before = restarts(placed, module)
    with Traffic(placed.url, truth, seed=8) as traffic:
        traffic.wait_round()
        said = len(placed.lines)
        victim = hang(placed, module)
        wait_until(lambda: victim not in placed.children(module), HANG_LIMIT)
        wait_restart(placed, module, before)
        traffic.wait_round()
    assert traffic.problems == []
    assert traffic.resets == 0
    assert who_was_silent(placed, said) == [NAMES[module]]


@pytest.mark.long
def test_hanging_api_server_is_found_killed_and_started_again(server: Server, truth: Truth) -> None:
    before = restarts(server, API_SERVER)
    with Traffic(server.url, truth, seed=9, retries=True) as traffic:
        traffic.wait_round()
        said = len(server.lines)
        victim = hang(server, API_SERVER)
        owned = count_connections(victim, server.port)
        wait_until(lambda: victim not in server.children(API_SERVER), HANG_LIMIT)
        wait_restart(server, API_SERVER, before)
        traffic.wait_round()
    assert traffic.problems == []
    assert 0 < traffic.resets <= owned
    assert traffic.lost == 0
    (silent,) = who_was_silent(server, said)
    assert silent.startswith(NAMES[API_SERVER])


def wait_spare(server: Server, before: int = 0) -> int:
    """Until a process stands by, another one than `before`; its pid. It has its name once everything is imported."""

    def standing() -> list[int]:
        pids = server.children(SPARE)
        return [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "maxsimd-spare\n" and pid != before]

    wait_until(standing)
    (spare,) = standing()
    return spare


def test_spare_becomes_whichever_service_dies_also_while_it_is_being_born(server: Server, truth: Truth) -> None:
    spare = wait_spare(server)
    before = [restarts(server, module) for module in (WORKER, ENGINE)]
    with Traffic(server.url, truth, seed=21) as traffic:
        traffic.wait_round()
        kill(server, WORKER)
        assert server.children(WORKER) == [spare]
        wait_until(lambda: server.children(SPARE))
        (unborn,) = server.children(SPARE)
        kill(server, ENGINE)
        assert server.children(ENGINE) == [unborn]
        traffic.wait_round()
    assert traffic.problems == [] and traffic.resets == 0
    assert [restarts(server, module) for module in (WORKER, ENGINE)] == [count + 1 for count in before]


@pytest.mark.long
def test_spare_that_dies_is_followed_by_another_and_is_no_crash(server: Server) -> None:
    spare, before = wait_spare(server), [restarts(server, module) for module in (WORKER, ENGINE)]
    services = [server.children(module) for module in (WORKER, ENGINE)]
    os.kill(spare, signal.SIGKILL)
    wait_spare(server, spare)
    assert "spare: killed by signal 9 while it stood by; another one follows" in server.log
    assert [server.children(module) for module in (WORKER, ENGINE)] == services
    assert [restarts(server, module) for module in (WORKER, ENGINE)] == before
    assert len(server.scores("still there?", ["yes"])) == 1


@pytest.mark.long
def test_service_that_dies_with_its_spare_is_started_anew(server: Server) -> None:
    before = restarts(server, WORKER)
    spare, (worker,) = wait_spare(server), server.children(WORKER)
    for victim in (spare, worker):
        os.kill(victim, signal.SIGKILL)
    wait_restart(server, WORKER, before)
    assert restarts(server, WORKER) == before + 1
    assert len(server.scores("still there?", ["yes"])) == 1
    wait_spare(server, spare)


@pytest.mark.long
def test_service_that_dies_after_its_unborn_spare_comes_back(server: Server) -> None:
    before, spare = restarts(server, WORKER), wait_spare(server)
    os.kill(spare, signal.SIGKILL)
    wait_until(lambda: (unborn := server.children(SPARE)) and unborn != [spare])
    for victim in (server.children(SPARE)[-1], server.children(WORKER)[-1]):
        os.kill(victim, signal.SIGKILL)
    wait_restart(server, WORKER, before)
    assert restarts(server, WORKER) == before + 1
    assert len(server.scores("still there?", ["yes"])) == 1
    wait_spare(server, spare)


def test_spare_has_no_model_no_store_no_socket_and_no_device(server: Server) -> None:
    spare = wait_spare(server)
    held = holdings(spare)
    assert held.own_mib < 250, "imports take 150 MiB; the model would be 90 more, the store 64"
    assert held.sockets == 0
    maps = Path(f"/proc/{spare}/maps").read_text()
    assert "libtorch" in maps and ".safetensors" not in maps and "/dev/nvidia" not in maps


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["sigterm-to-all", "launcher-killed"])
def test_spare_ends_with_the_launch(number: int) -> None:
    """Also one that is only being born, and without a word of it."""
    launch = Server("--no-engine", "--dim", "8", "--api-server-count", "1", "--spare-process", "on")
    try:
        wait_until(lambda: launch.children(SPARE))
        children = launch.children()
        assert len(children) == 3
        if number == signal.SIGKILL:
            launch.process.kill()
        else:
            os.killpg(launch.process.pid, number)
            assert launch.wait() == 0
        wait_until(lambda: not any(map(is_alive, children)), STOP_LIMIT)
        assert "Traceback" not in launch.log and "spare: " not in launch.log
    finally:
        launch.end()

"""P2 and P8, and the launcher's manners: what is mapped, who gets connections, what is left after a stop."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.end_to_end.running_server import STOP_LIMIT, Server, as_input, maxsim, random_embeddings, wait_until

AT_ONCE = 6  # requests in flight
QUERY = "of what length?"


def run_directories() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("maxsimd-*"))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_api_servers_never_map_torch(shared_server: Server) -> None:
    shared_server.scores("a query", ["a document", as_input(random_embeddings(3, 384, 1))])
    for pid in [*shared_server.children("frontend.api_server"), shared_server.process.pid]:
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" not in maps and "libcuda" not in maps and "numpy" not in maps
    (worker,) = shared_server.children("scorer_worker")
    assert "libtorch" in Path(f"/proc/{worker}/maps").read_text()


def test_kept_alive_connections_are_even(start: Callable[..., Server]) -> None:
    """8 connections over 4 API servers: 2 each (on one shared listening socket: 8/0/0/0)."""
    server = start("--api-server-count", "4", "--no-engine", "--dim", "8")
    connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=10) for _ in range(8)]
    for connection in connections:
        connection.request("GET", "/live")
        connection.getresponse().read()
    owners: Counter[int] = Counter()
    for pid in server.children("frontend.api_server"):
        owners[pid] = count_connections(pid, server.port)
    assert sorted(owners.values()) == [2, 2, 2, 2]
    for connection in connections:
        connection.close()


def count_connections(pid: int, port: int) -> int:
    """Established TCP connections of a process on this local port."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link) if link.is_symlink() else ""
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[9] in inodes and int(row[1].split(":")[1], 16) == port and row[3] == "01" for row in rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_stop_leaves_nothing(start: Callable[..., Server], number: int) -> None:
    """Signals go to the whole group, as a terminal and a container runtime send them."""
    before = run_directories()
    server = start("--api-server-count", "2")
    children = server.children()
    assert len(children) == 4
    os.killpg(server.process.pid, number)
    assert server.wait() == 0
    assert not [pid for pid in children if is_alive(pid)]
    assert run_directories() == before
    assert "Traceback" not in server.log


def test_second_signal_stops_at_once(start: Callable[..., Server]) -> None:
    before = run_directories()
    server = start("--no-engine", "--dim", "8", "--drain-delay", "60")
    server.process.send_signal(signal.SIGINT)
    wait_until(lambda: "stopping" in server.log)
    assert server.stop(signal.SIGINT) == 0
    assert run_directories() == before


def test_a_log_that_nobody_reads_any_more_does_not_keep_it_from_stopping() -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "frontend.cli", "serve", "--port", "0", "--no-engine", "--dim", "4"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        assert any(b"ready  " in line for line in process.stderr)
        process.stderr.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_LIMIT) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def in_flight(server: Server) -> Iterator[list[Future[httpx.Response]]]:
    """Requests that have been let in and wait for the engine, which is held until the block ends."""
    (engine,) = server.children("engine")
    before = server.metric("maxsimd_worker_requests")
    with ThreadPoolExecutor(AT_ONCE) as threads:
        os.kill(engine, signal.SIGSTOP)
        try:
            asked = [
                threads.submit(server.post, "/rerank", {"query": QUERY, "documents": documents_of(number)})
                for number in range(AT_ONCE)
            ]
            wait_until(lambda: server.metric("maxsimd_worker_requests") >= before + AT_ONCE)
            yield asked
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine, signal.SIGCONT)


def documents_of(number: int) -> list[str]:
    return [f"document {place} of {number} " + "of some length " * place for place in range(20)]


def check_answers(asked: list[Future[httpx.Response]], reference: Any) -> None:
    """Each is the reference's, for its own documents."""
    (query,) = reference.encode_query([QUERY])
    for number, request in enumerate(asked):
        answer = request.result(STOP_LIMIT)
        assert answer.status_code == 200, answer.text
        results = sorted(answer.json()["results"], key=lambda result: result["index"])
        documents = reference.encode_document(documents_of(number))
        expected = [maxsim(np.asarray(query), np.asarray(document)) for document in documents]
        np.testing.assert_allclose([result["relevance_score"] for result in results], expected, atol=1e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_requests_in_flight_are_finished_at_a_stop_of_the_whole_group(
    start: Callable[..., Server], reference: Any, number: int
) -> None:
    before = run_directories()
    server = start("--api-server-count", "2")
    children = server.children()
    with in_flight(server) as asked:
        os.killpg(server.process.pid, number)
        wait_until(lambda: not accepts(server.port))
    check_answers(asked, reference)
    assert server.wait() == 0
    assert not any(map(is_alive, children))
    assert run_directories() == before


def check_given_up(asked: list[Future[httpx.Response]]) -> None:
    for request in asked:
        answer = request.result(STOP_LIMIT)
        assert answer.status_code == 503 and "the server stops" in answer.json()["message"]
        assert int(answer.headers["retry-after"]) >= 1


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_second_signal_does_not_wait_for_requests(start: Callable[..., Server]) -> None:
    server = start("--api-server-count", "1")
    children = server.children()
    with in_flight(server) as asked:
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: "stopping" in server.log)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0
        assert not any(map(is_alive, children))
    assert all(isinstance(request.exception(STOP_LIMIT), httpx.TransportError) for request in asked)


def test_what_is_not_done_within_shutdown_timeout_is_given_up(start: Callable[..., Server]) -> None:
    server = start("--api-server-count", "1", "--shutdown-timeout", "1")
    with in_flight(server) as asked:
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: f"{AT_ONCE} requests were not done within --shutdown-timeout" in server.log)
    assert server.wait() == 0
    check_given_up(asked)
    assert "Traceback" not in server.log


def test_drain_delay_turns_ready_off_and_keeps_answering(start: Callable[..., Server]) -> None:
    server = start("--no-engine", "--dim", "8", "--drain-delay", "2")
    assert server.is_ready()
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not server.is_ready(), STOP_LIMIT)
    assert httpx.get(f"{server.url}/live").status_code == 200
    rows = as_input(random_embeddings(2, 8, 1))
    assert server.post("/rerank", {"query": rows, "documents": [rows]}).status_code == 200
    assert server.stop() == 0


def test_children_end_when_the_launcher_is_killed(start: Callable[..., Server]) -> None:
    """At once, though requests run: who would finish them ends too."""
    before = run_directories()
    server = start("--api-server-count", "2", "--shutdown-timeout", "10m")
    children = server.children()
    with in_flight(server) as asked:
        server.process.kill()
        wait_until(lambda: sum(map(is_alive, children)) == 1, STOP_LIMIT)  # the engine that is held
        check_given_up(asked)
    wait_until(lambda: not any(map(is_alive, children)), STOP_LIMIT)
    wait_until(lambda: run_directories() == before, STOP_LIMIT)


def test_everything_killed_at_once_is_started_again_without_cleaning(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    """Nobody was left to clear away: the next launch does, and takes the Unix socket's path over."""
    arguments = ("--no-engine", "--dim", "8", "--uds", str(tmp_path / "api.sock"))
    environment = {"TMPDIR": str(tmp_path)}
    killed = start(*arguments, environment=environment)
    children = killed.children()
    os.killpg(killed.process.pid, signal.SIGKILL)
    killed.wait()
    wait_until(lambda: not any(map(is_alive, children)), STOP_LIMIT)
    (left,) = tmp_path.glob("maxsimd-*")
    assert (tmp_path / "api.sock").is_socket() and list(left.iterdir())
    server = start(*arguments, environment=environment)
    (fresh,) = tmp_path.glob("maxsimd-*")
    assert fresh != left
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "api.sock"))) as client:
        rows = as_input(random_embeddings(2, 8, 1))
        assert client.post("http://server/rerank", json={"query": rows, "documents": [rows]}).status_code == 200
    assert server.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_everything_killed_at_once_is_started_again_on_the_same_port(start: Callable[..., Server]) -> None:
    """Though a client still has its connection: the port is not free for others until that has ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ("--no-engine", "--dim", "8", "--port", str(port))
    killed = start(*arguments)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/live")
        assert connection.getresponse().read() == b""
        os.killpg(killed.process.pid, signal.SIGKILL)
        killed.wait()
        server = start(*arguments)
        rows = as_input(random_embeddings(2, 8, 1))
        assert server.post("/rerank", {"query": rows, "documents": [rows]}).status_code == 200


def test_port_in_use_is_one_line_and_exit_code_2(start: Callable[..., Server]) -> None:
    before = run_directories()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = start("--port", str(taken.getsockname()[1]), wait=False)
        assert server.wait() == 2
    assert len(server.lines) == 1 and "in use" in server.log and "--port" in server.log
    assert run_directories() == before


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        pytest.param(None, "no such directory", id="not-there"),
        pytest.param({}, "config.json", id="empty-directory"),
        pytest.param({"config.json": "{"}, "config.json", id="broken-config"),
        pytest.param({"config.json": '{"model_type": "gpt2"}'}, "no ColBERT model", id="other-family"),
    ],
)
def test_wrong_model_is_one_line_and_exit_code_2(
    start: Callable[..., Server], tmp_path: Path, files: dict[str, str] | None, reason: str
) -> None:
    before = run_directories()
    model = tmp_path / "model"
    if files is not None:
        model.mkdir()
        for name, content in files.items():
            (model / name).write_text(content)
    server = start(str(model), wait=False)
    assert server.wait() == 2
    assert reason in server.lines[-1] and str(model) in server.lines[-1]
    assert "Traceback" not in server.log
    assert not server.children()
    assert run_directories() == before


def test_unix_socket(start: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    server = start("--no-engine", "--dim", "8", "--uds", str(path))
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://server/ready").status_code == 200
    assert server.stop() == 0
    assert not path.exists()


def test_keys_are_asked_for(start: Callable[..., Server]) -> None:
    server = start("--no-engine", "--dim", "8", environment={"MAXSIMD_API_KEY": "first,second"})
    rows = as_input(random_embeddings(2, 8, 1))
    body = {"query": rows, "documents": [rows]}
    assert server.post("/rerank", body).status_code == 401
    assert server.post("/rerank", body, Authorization="Bearer wrong").status_code == 401
    assert server.post("/rerank", body, Authorization="Bearer second").status_code == 200
    for path in ("/health", "/live", "/ready"):
        assert httpx.get(server.url + path).status_code == 200
    for path in ("/metrics", "/v1/models", "/version", "//health", "/%2fhealth", "/health/", "/nope", "/v1//rerank"):
        assert httpx.get(server.url + path).status_code == 401, path


def test_texts_without_an_encoder_are_refused(start: Callable[..., Server]) -> None:
    server = start("--no-engine", "--dim", "8")
    answer = server.post("/rerank", {"query": "text", "documents": ["text"]})
    assert answer.status_code == 400 and "--no-engine" in answer.json()["message"]

"""Metrics go on being right over restarts: totals are what clients have counted, and nothing is left behind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.processes import API_SERVER, ENGINE, WORKER, kill
from tests.chaos.sampling import Holdings, holdings
from tests.end_to_end.running_server import Server, as_input, random_embeddings, wait_until

DIM = 8
ROWS = as_input(random_embeddings(2, DIM, 1))
EMBEDDINGS_ONLY = ("--no-engine", "--dim", str(DIM))
LINE = re.compile(r'^maxsimd_requests_total\{path="([^"]*)",status="(\d+)"\} (\S+)$', re.MULTILINE)

Count = tuple[str, int]  # path and status


class CountingClient:
    """Asks, and counts what it was answered."""

    def __init__(self, server: Server, document: Any) -> None:
        self.counted: Counter[Count] = Counter()
        self.pairs = 0
        self._server = server
        self._good = {"query": document, "documents": [document, document]}

    def ask(self) -> None:
        """Of each of two API servers: a good request, a wrong one, and one that is no JSON."""
        with ExitStack() as stack:  # both stay open, so each is another API server's
            for _ in range(2):
                client = stack.enter_context(httpx.Client(base_url=self._server.url, timeout=60))
                for path, body in (("/rerank", self._good), ("/score", {"queries": []}), ("/rerank", [])):
                    answer = client.post(path, json=body)
                    self.counted[path, answer.status_code] += 1
                    self.pairs += 2 if answer.status_code == 200 else 0

    def found(self) -> dict[Count, float]:
        """What the server has counted of that, whichever API server says so."""
        text = httpx.get(f"{self._server.url}/metrics", timeout=30).text
        return {
            (path, int(status)): float(value)
            for path, status, value in LINE.findall(text)
            if (path, int(status)) in self.counted
        }

    def check(self) -> None:
        """An answer is counted a moment after it has been sent, so: until it is."""
        wait_until(lambda: self.found() == self.counted, 10.0)
        assert self._server.metric("maxsimd_pairs_total") == self.pairs


def files_of(directory: Path) -> dict[str, int]:
    """Bytes by name of all that a launch has on disk."""
    return {str(path.relative_to(directory)): path.lstat().st_size for path in sorted(directory.rglob("*"))}


class Restarted:
    """A server that is restarted child by child, with requests between, and held against how it was before."""

    def __init__(self, server: Server, directory: Path, document: Any) -> None:
        self._server = server
        self._directory = directory
        self._client = CountingClient(server, document)

    def settle(self, module: str) -> None:
        """One restart, so that what a first one leaves is there before anything is compared."""
        self._client.ask()
        kill(self._server, module)
        self._client.ask()
        self._client.check()
        assert set(self._client.counted) == {("/rerank", 200), ("/rerank", 400), ("/score", 400)}
        self._before = files_of(self._directory), held_by_launcher(self._server)

    def restart(self, modules: Sequence[str]) -> None:
        """Kill one after the other."""
        for module in modules:
            self._client.ask()
            self._client.check()
            kill(self._server, module)
        self._client.ask()
        self._client.check()
        files, launcher = files_of(self._directory), held_by_launcher(self._server)
        assert files == self._before[0]
        assert (launcher.files, launcher.sockets) == (self._before[1].files, self._before[1].sockets)
        assert launcher.own_mib < self._before[1].own_mib + 8


def held_by_launcher(server: Server) -> Holdings:
    """Connections that clients have just closed are gone from it a moment later, so: the least of some looks."""
    looks = [holdings(server.process.pid) for _ in range(20) if server.is_ready()]
    return min(looks, key=lambda look: look.files)


@pytest.mark.long
def test_totals_are_what_clients_counted_over_restarts(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start(*EMBEDDINGS_ONLY, "--api-server-count", "2", environment={"TMPDIR": str(tmp_path)})
    restarted = Restarted(server, tmp_path, ROWS)
    restarted.settle(API_SERVER)
    restarted.restart([WORKER, API_SERVER])


@pytest.fixture(scope="module", params=[API_SERVER, WORKER, ENGINE])
def restarted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Restarted, str]]:
    """One server for a hundred restarts of one kind of child."""
    directory = tmp_path_factory.mktemp("launch")
    model = () if request.param == ENGINE else EMBEDDINGS_ONLY
    server = Server(*model, "--api-server-count", "2", environment={"TMPDIR": str(directory)})
    try:
        restarted = Restarted(server, directory, "a text" if request.param == ENGINE else ROWS)
        restarted.settle(request.param)
        yield restarted, request.param
    finally:
        server.end()


@pytest.mark.long
@pytest.mark.parametrize("tenth", range(10))
def test_totals_are_what_clients_counted_over_a_hundred_restarts(restarted: tuple[Restarted, str], tenth: int) -> None:
    """In tenths, of the same server: no test may take five minutes."""
    server, module = restarted
    server.restart([module] * 10)

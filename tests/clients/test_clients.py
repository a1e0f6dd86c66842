"""docs/clients.md: what it says makes each client work, run with the real packages against a real server.

The packages pin each other's versions and ours, so they live in environments of their own: `make clients`. What an
environment has is read from its constraints; a block runs in each that has its package.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.running_server import Server, wait_until

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ("clients", "clients-newest")
PAGE = (ROOT / "docs" / "clients.md").read_text("utf-8")
KEY = "a-key-of-twenty-letters"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
LIMIT = 240.0  # seconds: some packages take long to import
# litellm fetches a list of prices when it is imported, and waits for it, unless it is told not to.
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

pytestmark = pytest.mark.slow


def block(text: str, language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


TASK = block(PAGE.partition("\n## ")[0], "text")
CLIENTS = {name: block(text, "python") for name, text in SECTIONS.items() if "```python" in text}


def python_of(environment: str) -> Path:
    return ROOT / ".venv" / environment / "bin" / "python"


@cache
def packages(environment: str) -> frozenset[str]:
    """Importable names, as far as they follow from those of the distributions."""
    lines = (ROOT / "constraints" / f"{environment}.txt").read_text().splitlines()
    return frozenset(line.partition("==")[0].replace("-", "_") for line in lines if "==" in line)


def package_of(client: str) -> str:
    match = re.search(r"^(?:import|from) (\w+)", CLIENTS[client], re.MULTILINE)
    assert match is not None
    return match[1]


def dialect_of(client: str) -> str:
    return "infinity" if "--dialect infinity" in SECTIONS[client] else "auto"


CASES = [(each, name) for each in ENVIRONMENTS for name in CLIENTS if package_of(name) in packages(each)]


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Server]]:
    """The server that speaks a dialect; each is started once."""
    with ExitStack() as stack:

        @cache
        def server_of(dialect: str) -> Server:
            server = Server("--device", "cpu", "--dialect", dialect, environment={"MAXSIMD_API_KEY": KEY})
            stack.callback(server.end)
            return server

        yield server_of


@pytest.fixture(scope="module")
def orders(servers: Callable[[str], Server]) -> Callable[[str], dict[str, object]]:
    """What each client of an environment came to: the order that it got, or its traceback. One process runs them all,
    one after the other: some packages take seconds to import.
    """

    @cache
    def orders_of(environment: str) -> dict[str, object]:
        names = [name for each, name in CASES if each == environment]
        blocks = {name: code_of(name, servers(dialect_of(name))) for name in names}
        done = run(environment, RUN_ALL, json.dumps(blocks))
        assert done.returncode == 0, done.stderr
        orders = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(orders, dict)
        return orders

    return orders_of


RUN_ALL = """
import json, sys, traceback
orders = {}
for name, code in json.load(sys.stdin).items():
    found = {}
    try:
        exec(code, found)
        orders[name] = list(found["order"])
    except Exception:
        orders[name] = traceback.format_exc()
print()
print(json.dumps(orders))
"""


def code_of(client: str, server: Server) -> str:
    return (TASK + CLIENTS[client]).replace("http://127.0.0.1:8000", server.url).replace("KEY", KEY)


def run(environment: str, code: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command: Sequence[str | Path] = [python_of(environment), "-P", "-c", code]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=LIMIT, check=False, env=ENVIRONMENT
    )


def skip_unless_installed(environment: str) -> None:
    if not python_of(environment).exists():
        pytest.skip("the client packages are not installed: make clients")


@pytest.mark.parametrize(("environment", "name"), CASES)
def test_a_client_gets_the_servers_order(
    orders: Callable[[str], dict[str, object]], servers: Callable[[str], Server], environment: str, name: str
) -> None:
    skip_unless_installed(environment)
    assert orders(environment)[name] == order_of(servers(dialect_of(name)))


def order_of(server: Server) -> list[int]:
    """As our own answer has it."""
    task: dict[str, object] = {}
    exec(TASK, task)
    body = {name: task[name] for name in ("query", "documents")}
    answer = httpx.post(f"{server.url}/rerank", json=body, headers={"authorization": f"Bearer {KEY}"})
    order = [result["index"] for result in answer.json()["results"]]
    assert order[0] == 1 and len(order) == 3
    return order


def test_every_client_of_the_page_has_a_block_that_is_run() -> None:
    assert len(CLIENTS) >= 11
    assert {name for _, name in CASES} == set(CLIENTS)
    for name, code in CLIENTS.items():
        assert "KEY" in code and "http://127.0.0.1:8000" in code and "order = " in code, name


# --- refused for a moment ---------------------------------------------------------------------------------------------

BODY_BYTES = 2**20
NUM_BODIES = 24  # all that an API server takes of bodies of that size: 24 MiB


class Full:
    """A server that is full of bodies whose last byte does not come, until it is told to let them go."""

    def __init__(self, server: Server) -> None:
        head = (
            f"POST /rerank HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {BODY_BYTES}\r\n\r\n"
        )
        self._server = server
        self._bodies = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(NUM_BODIES)]
        for connection in self._bodies:
            connection.sendall(head.encode() + b" " * (BODY_BYTES - 1))
        wait_until(lambda: self._ask() == 429)

    def _ask(self) -> int:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self._server.url}/v2/rerank", content=b" " * 99, headers=headers).status_code

    def num_refused(self, path: str) -> int:
        metrics = httpx.get(f"{self._server.url}/metrics", headers={"authorization": f"Bearer {KEY}"}).text
        found = re.search(rf'maxsimd_requests_total{{path="{path}",status="429"}} (\d+)', metrics)
        return int(found[1]) if found else 0

    def let_go(self) -> None:
        for connection in self._bodies:
            connection.close()


@pytest.fixture(scope="module")
def small_server() -> Iterator[Server]:
    options = ("--device", "cpu", "--api-server-count", "1", "--max-body-bytes", "1MiB", "--request-timeout", "5m")
    server = Server(*options, environment={"MAXSIMD_API_KEY": KEY})
    yield server
    server.end()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_cohere_s_client_asks_again_after_a_429(small_server: Server, environment: str) -> None:
    """It honours retry-after-ms: a second later it is served."""
    skip_unless_installed(environment)
    full = Full(small_server)
    code = code_of("cohere, ClientV2", small_server)
    before = full.num_refused("/v2/rerank")
    asking = subprocess.Popen(
        [python_of(environment), "-P", "-c", f"{code}\nprint(order)"],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        wait_until(lambda: full.num_refused("/v2/rerank") > before)
        full.let_go()
        output, _ = asking.communicate(timeout=LIMIT)
    finally:
        full.let_go()
        asking.kill()
        asking.wait()
    assert json.loads(output) == order_of(small_server)

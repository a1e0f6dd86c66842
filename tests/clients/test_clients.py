"""docs/clients.md: what it says makes each client work, run with the real package against a real server.

The packages pin each other's versions and ours, so they live in an environment of their own: `make clients`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.running_server import Server

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "clients" / "bin" / "python"
PAGE = (ROOT / "docs" / "clients.md").read_text("utf-8")
KEY = "a-key-of-twenty-letters"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
LIMIT = 120.0  # seconds: some packages take long to import

pytestmark = pytest.mark.slow


def block(text: str, language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


TASK = block(PAGE.partition("\n## ")[0], "text")
CLIENTS = {name: block(text, "python") for name, text in SECTIONS.items() if "```python" in text}


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Server]]:
    """The server that speaks a dialect; each is started once."""
    started: dict[str, Server] = {}

    def server_of(dialect: str) -> Server:
        if dialect not in started:
            environment = {"MAXSIMD_API_KEY": KEY}
            started[dialect] = Server("--device", "cpu", "--dialect", dialect, environment=environment)
        return started[dialect]

    yield server_of
    for server in started.values():
        server.end()


@pytest.mark.skipif(not PYTHON.exists(), reason="the client packages are not installed: make clients")
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_gets_the_servers_order(servers: Callable[[str], Server], name: str) -> None:
    running = servers("infinity" if "--dialect infinity" in SECTIONS[name] else "auto")
    code = (TASK + CLIENTS[name]).replace("http://127.0.0.1:8000", running.url).replace("KEY", KEY)
    done = subprocess.run(
        [PYTHON, "-P", "-c", f"{code}\nimport json\nprint(json.dumps(order))"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == order_of(running)


def order_of(server: Server) -> list[int]:
    """As our own answer has it."""
    task: dict[str, object] = {}
    exec(TASK, task)
    body = {name: task[name] for name in ("query", "documents")}
    answer = httpx.post(f"{server.url}/rerank", json=body, headers={"authorization": f"Bearer {KEY}"})
    order = [result["index"] for result in answer.json()["results"]]
    assert order[0] == 1 and len(order) == 3
    return order


def test_every_client_of_the_page_has_a_block() -> None:
    assert len(CLIENTS) >= 9
    for name, code in CLIENTS.items():
        assert "KEY" in code and "http://127.0.0.1:8000" in code and "order = " in code, name

"""The pages for users: every curl of theirs is answered."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.running_server import Server

ROOT = Path(__file__).parents[2]
HERE = "http://127.0.0.1:8000"
CURLS = {
    f"{page.name}-{number}": command
    for page in (ROOT / "README.md", ROOT / "docs" / "http.md")
    for number, command in enumerate(re.findall(r"^    (curl (?:.+\n)+?)(?=\n)", page.read_text("utf-8"), re.MULTILINE))
}


@pytest.mark.parametrize("name", CURLS)
def test_a_curl_of_the_pages_is_answered(shared_server: Server, name: str) -> None:
    words = shlex.split(CURLS[name])
    headers = dict(words[place + 1].split(": ") for place, word in enumerate(words) if word == "-H")
    (url,) = [word for word in words if word.startswith(HERE)]
    body = words[words.index("-d") + 1]
    answer = httpx.post(url.replace(HERE, shared_server.url), content=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"]


def test_there_are_curls() -> None:
    assert len(CURLS) >= 2

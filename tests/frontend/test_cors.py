"""CORS: web pages of the origins that were named may ask and read, also what went wrong; others may not."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from frontend.auth import digest_of
from frontend.cli import parse_command_line
from frontend.options import ConfigError
from tests.frontend.surface import DOCUMENTS, QUERY, Surface

ORIGIN = "https://app.example.org"
KEYED: dict[str, Any] = {"api_key_digests": (digest_of("key"),)}


def preflight(surface: Surface, path: str = "/rerank", origin: str = ORIGIN, method: str = "POST") -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type",
    }
    return surface.request("OPTIONS", path, headers=headers)


def test_no_page_of_another_site_is_let_in_unless_told_so() -> None:
    surface = Surface()
    assert preflight(surface).status_code == 405
    answer = surface.post("/rerank", {"query": QUERY, "documents": DOCUMENTS}, origin=ORIGIN)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank", "/nowhere"])
def test_a_preflight_needs_no_key(path: str) -> None:
    answer = preflight(Surface(cors_allow_origins=(ORIGIN,), **KEYED), path)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    assert "access-control-allow-credentials" not in answer.headers
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize(
    ("origin", "method"),
    [("https://evil.example", "POST"), (ORIGIN + ".evil.example", "POST"), ("null", "POST"), (ORIGIN, "DELETE")],
)
def test_other_origins_and_methods_are_refused(origin: str, method: str) -> None:
    surface = Surface(cors_allow_origins=(ORIGIN,))
    answer = preflight(surface, origin=origin, method=method)
    assert answer.status_code == 400
    assert answer.headers.get("access-control-allow-origin") in (None, ORIGIN if origin == ORIGIN else None)
    if origin != ORIGIN:
        asked = surface.post("/rerank", {"query": QUERY, "documents": DOCUMENTS}, origin=origin)
        assert "access-control-allow-origin" not in asked.headers


def test_an_options_request_that_is_no_preflight_needs_a_key() -> None:
    assert Surface(cors_allow_origins=("*",), **KEYED).request("OPTIONS", "/rerank").status_code == 401


def test_a_page_can_read_every_answer_and_every_error() -> None:
    surface = Surface(cors_allow_origins=(ORIGIN,), expose_timings=True, **KEYED)
    statuses = set()
    body = {"query": QUERY, "documents": DOCUMENTS}
    for path, headers in (("/rerank", {}), ("/v2/rerank", {}), ("/rerank", {"authorization": "Bearer key"})):
        for content in (body, {"query": 1}):
            answer = surface.post(path, content, origin=ORIGIN, **headers)
            statuses.add(answer.status_code)
            check_readable(answer)
    for method, path in (("GET", "/nowhere"), ("GET", "/rerank")):
        answer = surface.request(method, path, headers={"origin": ORIGIN, "authorization": "Bearer key"})
        statuses.add(answer.status_code)
        check_readable(answer)
    surface.ranker.failure = RuntimeError("a bug")
    answer = surface.post("/rerank", body, origin=ORIGIN, authorization="Bearer key")
    check_readable(answer)
    assert statuses | {answer.status_code} == {200, 400, 401, 404, 405, 500}


def check_readable(answer: httpx.Response) -> None:
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "Origin" in answer.headers["vary"]
    assert answer.headers.get_list("x-request-id", split_commas=False) == [answer.headers["x-request-id"]]
    shown = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert {"x-request-id", "retry-after", "retry-after-ms", "metadata"} <= set(shown)
    assert {name for name in answer.headers if name.startswith("x-maxsimd")} <= set(shown)


def test_every_page_may_be_let_in() -> None:
    surface = Surface(cors_allow_origins=("*",))
    assert preflight(surface, origin="null").headers["access-control-allow-origin"] == "*"
    answer = surface.post("/rerank", {"query": QUERY, "documents": DOCUMENTS}, origin="http://anywhere.example")
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "given",
    ["https://app.example.org/", "app.example.org", "https://", "https://a.example,https://b.example", "https://*.a.b"],
)
def test_what_is_no_origin_is_refused_at_start(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^--cors-allow-origin: must be"):
        parse_command_line(["serve", "--cors-allow-origin", given], {})


def test_origins_are_in_lower_case_as_browsers_send_them() -> None:
    config = parse_command_line(
        ["serve"], {"MAXSIMD_CORS_ALLOW_ORIGIN": "HTTPS://App.Example.org, http://localhost:3000"}
    )
    assert config.cors_allow_origin == ("https://app.example.org", "http://localhost:3000")

"""API keys: every path but the probes needs one, and which key it was decides whose turn a request is."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from starlette.types import Message, Receive, Scope, Send

from frontend.auth import PUBLIC_PATHS, Authentication, client_tag, digest_of
from ipc.messages import CLIENT_BYTES

KEYS = ["first-key", "zweiter schlüssel"]
LET_IN = 204


class Inside:
    """The application behind the door; keeps what it was told."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": LET_IN, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def knock(path: str, *authorization: bytes, keys: list[str] = KEYS) -> tuple[int, Inside]:
    """The status of a request with these Authorization headers, and what the application saw."""
    inside = Inside()
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body of a request is nobody's business here")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"host", b"h"), *((b"authorization", value) for value in authorization)],
    }
    asyncio.run(Authentication(inside, [digest_of(key) for key in keys])(scope, receive, send))
    return sent[0]["status"], inside


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_each_key_opens(key: str, scheme: str) -> None:
    status, inside = knock("/rerank", f"{scheme} {key}".encode())
    assert status == LET_IN
    assert inside.scopes[0]["maxsimd.key"] == digest_of(key)


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param([], id="none"),
        pytest.param([b""], id="empty"),
        pytest.param([b"Bearer"], id="scheme-alone"),
        pytest.param([b"Bearer "], id="empty-key"),
        pytest.param([b"Bearer first-ke"], id="beginning-of-a-key"),
        pytest.param([b"Bearer first-key2"], id="more-than-a-key"),
        pytest.param([b"Bearer FIRST-KEY"], id="another-case"),
        pytest.param([b"first-key"], id="no-scheme"),
        pytest.param([b"Basic first-key"], id="another-scheme"),
        pytest.param([b"Bearer \xff\xfe"], id="not-utf-8"),
        pytest.param([b"Bearer " + hashlib.sha256(b"first-key").hexdigest().encode()], id="the-digest-itself"),
        pytest.param([b"Bearer wrong", b"Bearer first-key"], id="second-of-two-headers"),
    ],
)
def test_anything_else_does_not(authorization: list[bytes]) -> None:
    status, inside = knock("/rerank", *authorization)
    assert (status, inside.scopes) == (401, [])


@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS))
def test_probes_need_no_key(path: str) -> None:
    assert knock(path)[0] == LET_IN


def test_the_probes_are_these() -> None:
    assert {"/health", "/ping", "/live", "/ready", "/v1/health/live", "/v1/health/ready"} == PUBLIC_PATHS


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/metrics",
        "/version",
        "/nowhere",
        "/",
        "",
        "//health",
        "/health/",
        "/health/../rerank",
        "/Health",
        "/healthz",
        "/v1//rerank",
        "//v1/rerank",
        "/health\0",
        "*",
    ],
)
def test_every_other_path_is_closed(path: str) -> None:
    """Also one that nobody serves, so that whatever a router makes of it has been through the door."""
    assert knock(path)[0] == 401


def test_without_keys_everybody_is_let_in_and_is_nobody() -> None:
    status, inside = knock("/rerank", b"Bearer whatever", keys=[])
    assert status == LET_IN
    assert inside.scopes[0]["maxsimd.key"] == ""


def test_a_turn_belongs_to_a_key_else_to_an_address() -> None:
    assert len(client_tag("", "10.0.0.1")) == CLIENT_BYTES
    assert client_tag("key", "10.0.0.1") == client_tag("key", "10.0.0.2")
    assert client_tag("", "10.0.0.1") != client_tag("", "10.0.0.2")
    assert client_tag("key", "10.0.0.1") != client_tag("other", "10.0.0.1")

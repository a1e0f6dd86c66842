"""API keys: who may come in, and whose turn a request is.

Every path needs a key but the probes of PUBLIC_PATHS, compared as the router compares them: decoded, and to the letter.
`//health`, `/health/` or a path nobody knows need one too (default deny).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from frontend.errors import HttpError, RequestFailed, error_response
from ipc.messages import CLIENT_BYTES

PUBLIC_PATHS = frozenset({"/health", "/ping", "/live", "/ready", "/v1/health/live", "/v1/health/ready"})


def digest_of(key: str) -> str:
    """What is kept of an API key: its SHA-256, in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


class Authentication:
    """ASGI middleware. Puts `maxsimd.key` (the key's digest, or empty) into the scope."""

    def __init__(self, app: ASGIApp, digests: Sequence[str]) -> None:
        self._app = app
        self._digests = [digest.encode() for digest in digests]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        digest = self._find(scope)
        scope["maxsimd.key"] = digest or ""
        if self._digests and digest is None and scope["path"] not in PUBLIC_PATHS:
            failure = RequestFailed(
                HttpError.UNAUTHORIZED, "Authorization: expected 'Bearer KEY' with a key of this server"
            )
            response = error_response(scope, failure)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _find(self, scope: Scope) -> str | None:
        """The digest of the request's key if it is one of ours. Takes the same time whichever it is."""
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = header.partition(b" ")
        given = hashlib.sha256(key.strip()).hexdigest().encode()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return given.decode() if kind.lower() == b"bearer" and any(matches) else None


def client_tag(key_digest: str, peer: str) -> bytes:
    """8 bytes that say whose turn a request is: its API key, else its peer address."""
    return hashlib.blake2b((key_digest or peer).encode(), digest_size=CLIENT_BYTES).digest()

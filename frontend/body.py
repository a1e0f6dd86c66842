"""Reads a request's body: never more than allowed, never longer than allowed, and not at all where the answer is no."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request

from frontend.errors import MAX_ECHO, HttpError, RequestFailed, invalid

MAX_DIGITS = 18  # of a Content-Length; int() itself refuses some thousands with a ValueError


def announced_size(request: Request, limit: int) -> int | None:
    """The body's size as announced; None: it comes in chunks.

    Raises:
        RequestFailed: it is not a number, or above the limit; or the body is compressed.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise invalid(f"content-encoding: {coding[:MAX_ECHO]!r}, bodies are read as they are", "content-encoding")
    header = request.headers.get("content-length")
    if header is None:
        return None
    if not header.isascii() or not header.isdigit():
        raise invalid("content-length: not a number", "content-length")
    if len(header) > MAX_DIGITS or int(header) > limit:
        raise _too_large(limit)
    return int(header)


async def read_body(request: Request, limit: int, timeout: float, on_growth: Callable[[int], None]) -> bytes:
    """The body.

    Args:
        on_growth: told the size before more is kept; what it raises ends the reading.

    Raises:
        RequestFailed: it is longer than `limit` bytes, or has not come within `timeout` seconds.
        ClientDisconnect: the client has gone.
    """
    body = io.BytesIO()  # its getvalue() does not copy: nothing is in memory twice here
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                part = message.get("body", b"")
                if body.tell() + len(part) > limit:
                    raise _too_large(limit)
                on_growth(body.tell() + len(part))
                body.write(part)
                if not message.get("more_body", False):
                    return body.getvalue()
    except TimeoutError:
        raise RequestFailed(HttpError.REQUEST_TIMEOUT, f"body: not complete within {timeout:.0f} s") from None


def _too_large(limit: int) -> RequestFailed:
    return RequestFailed(HttpError.BODY_TOO_LARGE, f"body: more than {limit} bytes (--max-body-bytes)")

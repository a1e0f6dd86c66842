"""Reads a request's body: never more than allowed, never longer than allowed, and not at all where the answer is no."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request

from frontend.errors import MAX_ECHO, HttpError, RequestFailed, invalid

MOST_JOINED = 4 * 2**20  # bytes
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
    body = _Pieces()
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                part = message.get("body", b"")
                if body.size + len(part) > limit:
                    raise _too_large(limit)
                on_growth(body.size + len(part))
                body.add(part)
                if not message.get("more_body", False):
                    return body.joined()
    except TimeoutError:
        raise RequestFailed(HttpError.REQUEST_TIMEOUT, f"body: not complete within {timeout:.0f} s") from None


class _Pieces:
    """What has come of a body. A large one is not in memory twice, not even for a moment; a smaller one is joined at
    the end, which takes half as long as to move it whenever it has grown.
    """

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._large: io.BytesIO | None = None  # its getvalue() does not copy

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._large is None and self.size > MOST_JOINED:
            self._large = io.BytesIO(self._join())
            self._large.seek(0, io.SEEK_END)
        if self._large is not None:
            self._large.write(piece)
        else:
            self._pieces.append(piece)

    def joined(self) -> bytes:
        """All of it; nothing may be added afterwards."""
        return self._large.getvalue() if self._large is not None else self._join()

    def _join(self) -> bytes:
        joined = b"".join(self._pieces)
        self._pieces.clear()
        return joined


def _too_large(limit: int) -> RequestFailed:
    return RequestFailed(HttpError.BODY_TOO_LARGE, f"body: more than {limit} bytes (--max-body-bytes)")

"""What clients send to an HTTP server, right and wrong: every route, from the one table of them, from a seed.

A case is bytes in pieces, and how the client leaves. It begins as a right request; then its line, its headers, its body
or its framing is changed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from frontend.openapi import Operation
from frontend.operations import OPERATIONS

FIELDS = ("top_n", "timeout_ms", "truncate_prompt_tokens", "cache_salt", "model", "score_mode", "documents")
Leaving = Literal["reads", "half-closes", "leaves", "resets"]

METHODS = (
    *(
        b"GET",
        b"POST",
        b"HEAD",
        b"OPTIONS",
        b"CONNECT",
        b"TRACE",
        b"PUT",
        b"PATCH",
        b"DELETE",
        b"PRI",
        b"QUERY",
        b"get",
    ),
    *(b"", b"\0", b"G\0T", b"\xff\xfe", b"GET" * 3000, b"POST\t", b"M-SEARCH", b"HTTP/1.1 200 OK\r\n\r\nGET"),
)
TARGETS = (
    *(
        b"/",
        b"*",
        b"",
        b"//rerank",
        b"/rerank/",
        b"/rerank?x=1&x=2#f",
        b"/%72erank",
        b"/rerank%00",
        b"/%ff%fe",
        b"/..%2f",
    ),
    *(
        b"/../../etc/passwd",
        b"/rerank;a=b",
        b"http://elsewhere/rerank",
        b"http://u:p@h:99999999/rerank",
        b"h:80",
        b"http://",
    ),
    *(
        b"/\xff\xfe",
        b"/\0",
        b"/a b",
        b"/" + b"a" * 9000,
        b"/" + b"%41" * 12_000,
        b"?",
        b"\\rerank",
        b"/metrics?a",
        b"/docs",
    ),
)
VERSIONS = (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.1 ", b"HTTP", b"", b"ICY/1.1", b"HTTP/1.1\r\nHTTP/1.1")
LENGTHS = (
    b"0",
    b"1",
    b"-1",
    b"+5",
    b"5, 5",
    b" 7 ",
    b"0x10",
    b"9" * 30,
    b"9" * 5000,
    b"99999999999",
    b"",
    b"\xb2",
    b"1e3",
)
HEADERS = (
    *(
        b"transfer-encoding: chunked",
        b"transfer-encoding: gzip",
        b"transfer-encoding: chunked, chunked",
        b"te: trailers",
    ),
    *(
        b"transfer-encoding: identity",
        b"transfer-encoding : chunked",
        b"transfer-encoding:\x0bchunked",
        b"expect: 100-continue",
    ),
    *(
        b"expect: 200-ok",
        b"upgrade: h2c\r\nconnection: upgrade",
        b"upgrade: websocket\r\nconnection: upgrade",
        b"upgrade: x",
    ),
    *(
        b"connection: close",
        b"connection: keep-alive",
        b"connection: content-length",
        b"content-encoding: gzip",
        b"accept: \xff",
    ),
    *(
        b"content-type: application/vnd.safetensors",
        b"content-type: text/plain",
        b"content-type: \xff\xfe",
        b"host:",
        b"host: \0",
    ),
    *(b"x-request-timeout: 1e400", b"x-request-timeout: nan", b"x-request-timeout: -1", b"x-request-timeout: 0.001"),
    *(
        b"x-request-timeout: " + b"9" * 4500,
        b"x-request-id: " + b"a" * 200,
        b"x-request-id: \xe9",
        b"x-request-id: a\tb",
    ),
    *(
        b"authorization: Bearer \xff",
        b"authorization: Bearer",
        b"origin: null",
        b"range: bytes=0-1",
        b" folded: a",
        b"a:\r\n b",
    ),
    *(
        b"no colon",
        b": no name",
        b"a\0b: c",
        b"a: b\0c",
        b"a: " + b"b" * 31_000,
        b"a: " + b"b" * 40_000,
        b"cookie: " + b"a=b; " * 900,
    ),
)
CHUNK_SIZES = (
    b"zz",
    b"-1",
    b"0x5",
    b"ffffffffffffffff",
    b"fffffffffffffffff",
    b"",
    b" 5",
    b"5 ",
    b"7fffffff",
    b"5;a=" + b"b" * 5000,
)
VALUES: tuple[str, ...] = (
    *(
        "null",
        "true",
        "[]",
        "{}",
        '""',
        "0",
        "-1",
        "1.5",
        "1e400",
        "-1e400",
        "1e-400",
        "NaN",
        "Infinity",
        "-0.0",
        "9" * 30,
    ),
    *(
        "9" * 400,
        "9" * 5000,
        "1" + "0" * 308 + ".5",
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\u0000"',
        '"\ufeff"',
        '"\U0010ffff"',
    ),
    *(
        '"' + "a" * 100_000 + '"',
        '"' + "\u0301" * 5000 + '"',
        "[" * 2000 + "]" * 2000,
        '{"a":' * 2000 + "1" + "}" * 2000,
        '"x',
    ),
    *(
        "[null]",
        "[[]]",
        "[1,2,3]",
        "[1e30]",
        "[-1]",
        "[2147483648]",
        '[""]',
        '{"text":1}',
        '{"text":"a","text":"b"}',
        "\\",
    ),
    '{"embeddings":{"data":"AAAAAA==","dtype":"float32","shape":[1,1]}}',
    '{"embeddings":{"data":"%%%","dtype":"float32","shape":[0,384]}}',
    '{"embeddings":{"data":"","dtype":"float16","shape":[99999999999,99999999999]}}',
    '{"embeddings":{"data":"","dtype":"float32","shape":[0,0]}}',
    '{"embeddings":[[1e38,1e39]]}',
    '{"embeddings":[[],[1]]}',
)


@dataclass
class Case:
    """One connection's bytes."""

    pieces: list[bytes]
    leaving: Leaving
    names: list[str] = field(default_factory=list)  # what was done, for whoever looks at a failure


@dataclass
class _Request:
    method: bytes
    target: bytes
    version: bytes
    headers: list[bytes]
    body: bytes
    framing: str = "length"
    lie: bytes | None = None  # Content-Length, where it is not the body's
    names: list[str] = field(default_factory=list)


def make_case(choose: random.Random) -> Case:
    """One request, or some that are pipelined."""
    requests = [_make_request(choose) for _ in range(choose.choice((1, 1, 1, 1, 2, 5)))]
    data = b"".join(_as_bytes(choose, request) for request in requests)
    names = [name for request in requests for name in request.names]
    if choose.random() < 0.05 and data:
        place = choose.randrange(len(data))
        data = data[:place] + choose.randbytes(choose.randrange(1, 9)) + data[place + choose.randrange(9) :]
        names.append("bytes")
    if choose.random() < 0.1:
        data = data[: choose.randrange(len(data) + 1)]
        names.append("cut")
    leaving: Leaving = choose.choice(("reads", "reads", "reads", "half-closes", "leaves", "resets"))
    return Case(_cut(choose, data), leaving, names)


def _make_request(choose: random.Random) -> _Request:
    operation: Operation = choose.choice(OPERATIONS)
    body = b"" if operation.example is None else json.dumps(operation.example).encode()
    headers = [b"host: x", b"content-type: application/json"]
    request = _Request(operation.method.encode(), choose.choice(operation.paths).encode(), b"HTTP/1.1", headers, body)
    for _ in range(choose.choice((0, 1, 1, 1, 2, 3))):
        change = choose.choice(CHANGES)
        request.names.append(change.__name__)
        change(choose, request)
    return request


def _as_bytes(choose: random.Random, request: _Request) -> bytes:
    head = [request.method + b" " + request.target + b" " + request.version, *request.headers]
    if request.framing == "length":
        if request.body or request.lie is not None:
            head.append(b"content-length: " + (request.lie if request.lie is not None else b"%d" % len(request.body)))
        return b"\r\n".join([*head, b"", request.body])
    head.append(b"transfer-encoding: chunked")
    pieces = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in _cut(choose, request.body) if piece]
    match request.framing:
        case "bad chunk":
            pieces.insert(choose.randrange(len(pieces) + 1), choose.choice(CHUNK_SIZES) + b"\r\n")
        case "trailers":
            pieces.append(b"0\r\nauthorization: x\r\ncontent-type: y\r\n\r\n")
        case "no end":
            pieces.append(b"1\r\n \r\n" * choose.choice((1, 50)))
        case _:
            pieces.append(b"0\r\n\r\n")
    return b"\r\n".join([*head, b"", b"".join(pieces)])


def _cut(choose: random.Random, data: bytes) -> list[bytes]:
    count = choose.choice((1, 1, 1, 2, 3, 12))
    places = sorted(choose.randrange(len(data) + 1) for _ in range(count - 1))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


# --- what is done to a request ------------------------------------------------------------------------------------


def method(choose: random.Random, request: _Request) -> None:
    request.method = choose.choice(METHODS)


def target(choose: random.Random, request: _Request) -> None:
    request.target = choose.choice(TARGETS)


def version(choose: random.Random, request: _Request) -> None:
    request.version = choose.choice(VERSIONS)


def one_header(choose: random.Random, request: _Request) -> None:
    request.headers.insert(choose.randrange(len(request.headers) + 1), choose.choice(HEADERS))


def many_headers(choose: random.Random, request: _Request) -> None:
    request.headers += [
        b"h%d: %s" % (number, b"v" * choose.choice((0, 10, 300))) for number in range(choose.choice((90, 99, 200)))
    ]


def length(choose: random.Random, request: _Request) -> None:
    """It lies, in either direction, or is no number."""
    size = len(request.body)
    request.lie = choose.choice((*LENGTHS, b"%d" % (size + 1), b"%d" % max(0, size - 1), b"%d" % (size + 100_000)))


def two_lengths(choose: random.Random, request: _Request) -> None:
    request.headers.append(choose.choice((b"content-length: 5", b"transfer-encoding: chunked")))


def chunks(choose: random.Random, request: _Request) -> None:
    request.framing = choose.choice(("chunks", "chunks", "bad chunk", "trailers", "no end"))


def value(choose: random.Random, request: _Request) -> None:
    """One value of the JSON becomes another one, or comes twice, or a field is added."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        return
    marks: list[Callable[[str], None]] = []
    _mark(body, marks)
    if not marks:
        return
    choose.choice(marks)("\u241f")
    text = json.dumps(body).replace('"\\u241f"', choose.choice(VALUES))
    if choose.random() < 0.1 and text.startswith("{"):
        text = "{" + text[1:-1] + "," + text[1:]
    request.body = text.encode("utf-8", "surrogatepass")


def _mark(body: Any, marks: list[Callable[[str], None]]) -> None:
    """How each place of a JSON value is given another value."""
    places: list[Any] = (
        list(body) if isinstance(body, dict) else list(range(len(body))) if isinstance(body, list) else []
    )
    for place in places:
        marks.append(lambda mark, place=place: body.__setitem__(place, mark))  # type: ignore[misc]
        _mark(body[place], marks)
    if isinstance(body, dict):
        marks += [lambda mark, name=name: body.__setitem__(name, mark) for name in FIELDS]  # type: ignore[misc]


def body_bytes(choose: random.Random, request: _Request) -> None:
    body = request.body
    place = choose.randrange(len(body) + 1)
    request.body = choose.choice(
        (
            *(
                b"",
                b"\0",
                b"\xff\xfe{\0}",
                b"\xef\xbb\xbf" + body,
                body[:place],
                body + body,
                body[:place] + b"\xff" + body[place:],
            ),
            *(b"[" * 100_000, b'{"a":' * 50_000, b" " * 70_000 + body, b"\x1f\x8b\x08\0" + body, choose.randbytes(500)),
            *(
                b'{"query":"a","query":"b","documents":["x"]}',
                b'{"query": "a", "documents": [' + b'"",' * 5000 + b'""]}',
            ),
        )
    )


Change = Callable[[random.Random, _Request], None]
CHANGES: tuple[Change, ...] = (
    *(method, target, version, one_header, one_header, one_header, many_headers, length, two_lengths, chunks, chunks),
    *(value, value, value, value, body_bytes, body_bytes),
)

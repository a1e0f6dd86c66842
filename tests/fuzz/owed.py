"""What a server owes for the bytes that a client has sent, and whether that is what came.

How many of the requests are complete says llhttp, from all the bytes at once: none of the server's own code, and
whatever the pieces were. Each complete request is owed an answer, what is no HTTP an end. Only who has sent a part of a
request, or has all its answers, may be left waiting; and that connection ends when the client closes its half of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import httptools

from frontend.errors import HTTP_STATUS
from frontend.http_server import MAX_HEAD_BYTES, MAX_HEADERS

DOCUMENTED = {100, 200, *(status for status, _ in HTTP_STATUS.values())} - {500}

# An offer that is not taken up changes nothing; llhttp would take what follows for another protocol's.
_OFFER = re.compile(rb"^upgrade:[^\r\n]*\r\n", re.IGNORECASE | re.MULTILINE)
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
_FIELD = re.compile(rb"^([^:\r\n]+): ([^\r\n]*)\r?$", re.MULTILINE)


@dataclass
class Owed:
    """What is owed for some bytes."""

    methods: list[bytes] = field(default_factory=list)  # of the requests whose heads are complete
    complete: int = 0  # of these; at most the last one is not
    is_last: bool = False  # the last complete one asks for the end of the connection, as HTTP/1.0 does
    is_refused: bool = False  # what follows the complete ones is no HTTP, or not allowed
    is_begun: bool = False  # what follows them is a part of a request


def owed_for(data: bytes) -> Owed:
    """By all that a client has sent."""
    reading = _Reading()
    reading.parser = parser = httptools.HttpRequestParser(reading)
    owed = reading.owed
    try:
        parser.feed_data(_OFFER.sub(b"", data))
    except httptools.HttpParserUpgrade:
        assert parser.get_method() == b"CONNECT", data
        owed.is_refused = True
    except httptools.HttpParserError:
        owed.is_refused = True
    return owed


class _Reading:
    """llhttp's calls."""

    parser: httptools.HttpRequestParser

    def __init__(self) -> None:
        self.owed = Owed()
        self._url = b""
        self._bytes = self._headers = 0
        self._is_in_head = False

    def on_message_begin(self) -> None:
        self._url = b""
        self._bytes = self._headers = 0
        self._is_in_head = self.owed.is_begun = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # no trailer
            self._headers += 1
            self._bytes += len(name) + len(value) + len(": \r\n")

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        # whatever is raised here ends llhttp's reading with an error of its own
        if self._headers > MAX_HEADERS or len(self._url) + self._bytes > MAX_HEAD_BYTES:
            raise ValueError("a head of more than is allowed")
        if self.parser.get_method() != b"CONNECT":
            httptools.parse_url(self._url).path.decode("ascii")
        self.owed.methods.append(self.parser.get_method())

    def on_message_complete(self) -> None:
        self.owed.is_begun = False
        if self.parser.get_method() != b"CONNECT":
            self.owed.complete += 1
            self.owed.is_last = not self.parser.should_keep_alive()


@dataclass(frozen=True)
class Answer:
    """One of those that came."""

    status: int
    is_whole: bool
    says_end: bool  # `connection: close`


def answers_in(data: bytes, methods: Sequence[bytes]) -> list[Answer]:
    """What came on a connection, one after the other, 100 Continue left out.

    Args:
        methods: of the requests, in their order: what answers a HEAD has no body.

    Raises:
        ValueError: it is something else.
    """
    found: list[Answer] = []
    while data:
        head = _HEAD.match(data)
        if head is None:
            if b"\r\n\r\n" in data or not b"HTTP/1.1 ".startswith(data[:9]):
                raise ValueError(f"no answer: {data[:200]!r}")
            return [*found, Answer(0, False, False)]
        status = int(head[1])
        fields = {name.lower(): value for name, value in _FIELD.findall(head[2])}
        data = data[head.end() :]
        if status == 100:
            continue
        says_end = fields.get(b"connection") == b"close"
        is_to_head = methods[len(found) : len(found) + 1] == [b"HEAD"]
        # a request that breaks off is answered, before its own answer has begun, as none of which the method is known
        if is_to_head and not (says_end and data.startswith(b"{")):
            found.append(Answer(status, True, says_end))
            continue
        size, data = _body_size(fields, data)
        found.append(Answer(status, size <= len(data), says_end))
        data = data[size:]
    return found


def _body_size(fields: dict[bytes, bytes], data: bytes) -> tuple[int, bytes]:
    """Bytes that the body takes, and what it is the beginning of."""
    if fields.get(b"transfer-encoding") != b"chunked":
        return int(fields[b"content-length"]), data
    place = 0
    while (end := data.find(b"\r\n", place)) >= 0:
        size = int(data[place:end], 16)
        place = end + 2 + size + 2
        if not size:
            return place, data
    return len(data) + 1, data


def is_paid(owed: Owed, answers: Sequence[Answer]) -> bool:
    """Whether nothing more is to come before somebody closes."""
    whole = sum(answer.is_whole for answer in answers)
    is_ending = owed.is_refused or owed.is_last or any(answer.says_end for answer in answers)
    return whole >= owed.complete and not is_ending


def complaints(owed: Owed, answers: Sequence[Answer], is_right: bool, has_left: bool) -> list[str]:
    """What is wrong about all that has come on a connection that the server has ended.

    Args:
        is_right: every request is one of the documentation's examples.
        has_left: the client has closed its half before it had its answers: it is owed none.
    """
    found = [f"{answer.status}" for answer in answers if answer.is_whole and answer.status not in DOCUMENTED]
    if is_right:
        # 429: of so many at once some may find no room to encode; how many, whoever counts the statuses looks at
        found += [f"{answer.status} for an example" for answer in answers if answer.status not in (200, 429)]
    if len(answers) > len(owed.methods) + (owed.is_refused or owed.is_begun):
        found.append(f"{len(answers)} answers to {len(owed.methods)} requests")
    if has_left:
        return found
    if len(answers) < owed.complete and not (owed.is_refused or any(answer.says_end for answer in answers)):
        found.append(f"{len(answers)} answers to {owed.complete} requests, and no word of an end")
    # what is no HTTP ends the connection though another request than the one it breaks off is served
    if not answers and (owed.complete or owed.is_refused) and not (owed.is_refused and len(owed.methods) > 1):
        found.append("no answer")
    if not all(answer.is_whole for answer in answers) and not owed.is_refused:
        found.append("an answer breaks off")
    return found

"""Who is let in: decided for whole requests, before anything of them is tokenised or encoded.

    A1  Before its body is read a request is let in while there is room for it in the memory set aside for bodies. Of
        what it announces FIRST_BYTES are taken at once and the rest as it comes: whoever announces much and sends
        nothing keeps nobody out. A body that finds no room on its way is refused then.
    A2  When the store has said which of its texts it lacks, a request goes on while the encoding work that is
        outstanding is within what the engine granted. Who finds everything there goes on however much there is to
        encode: it costs next to nothing, and nobody knows before the store was asked.
    A3  While there is no room to encode, at most MOST_UNDECIDED requests may be on their way to that answer; more are
        refused before their body is read, so that a flood is refused early and cheaply.
    A4  A request that is alone is always let in.

The work of texts is estimated from their bytes: at first a third of a token per byte, then by the running ratio.
"""

from __future__ import annotations

from ipc.errors import ServiceFailed
from ipc.messages import ErrorCode

FIRST_RATIO = 1 / 3  # tokens per byte
LEARNING_RATE = 0.05  # of the running ratio and of the time a request takes
FIRST_SECONDS = 1.0  # guess of how long a request takes
FIRST_BYTES = 2**18  # of a body, set aside before any of it has come; most have fewer
MOST_UNDECIDED = 8  # A3: some milliseconds of this process's time


class Ticket:
    """One request that was let in. Give it back, whatever becomes of the request."""

    __slots__ = ("_admission", "body_bytes", "is_decided", "missing_bytes", "tokens")

    def __init__(self, admission: Admission, body_bytes: int) -> None:
        self._admission: Admission | None = admission
        self.body_bytes = body_bytes
        self.missing_bytes = 0
        self.tokens = 0
        self.is_decided = False

    def add_missing(self, text_bytes: int) -> None:
        """So many more bytes of its texts must be encoded; 0: nothing is missing.

        Raises:
            ServiceFailed: OVERLOADED, there is no room for the work (A2).
        """
        if self._admission is not None:
            self._admission._decide(self, text_bytes)

    def set_body_bytes(self, body_bytes: int) -> None:
        """So many bytes of the body have come.

        Raises:
            ServiceFailed: OVERLOADED, there is no room for them.
        """
        if self._admission is not None:
            self._admission._grow(self, body_bytes)

    def release(self) -> None:
        """The request has ended. Releasing twice is the same as once."""
        if self._admission is not None:
            self._admission._release(self)
            self._admission = None


class Admission:
    """What is outstanding in one API server.

    Args:
        max_body_bytes: of all bodies together (they and what is made of them are this process's memory).
    """

    def __init__(self, max_body_bytes: int) -> None:
        self.capacity_tokens: int | None = None  # granted by the engine; None: nothing needs encoding
        self._max_body_bytes = max_body_bytes
        self._ratio = FIRST_RATIO
        self._seconds = FIRST_SECONDS
        self._requests = 0
        self._undecided = 0
        self._tokens = 0
        self._bytes = 0
        self.refused = 0

    @property
    def outstanding(self) -> int:
        """Requests that were let in and have not ended."""
        return self._requests

    def try_admit(self, body_bytes: int) -> Ticket:
        """Let a request in; `body_bytes` is what its Content-Length says.

        Raises:
            ServiceFailed: OVERLOADED, with the time after which to try again.
        """
        has_room = self._bytes + body_bytes <= self._max_body_bytes  # A1
        may_ask = self._has_work_room or self._undecided < MOST_UNDECIDED  # A3
        if self._requests and not (has_room and may_ask):
            raise self._refusal(self._requests)
        self._requests += 1
        self._undecided += 1
        taken = min(body_bytes, FIRST_BYTES)
        self._bytes += taken
        return Ticket(self, taken)

    def learn(self, ticket: Ticket, encoded_tokens: int, seconds: float) -> None:
        """A request has been answered: what it really cost."""
        if ticket.missing_bytes:
            self._ratio += LEARNING_RATE * (encoded_tokens / ticket.missing_bytes - self._ratio)
        self._seconds += LEARNING_RATE * (seconds - self._seconds)

    @property
    def _has_work_room(self) -> bool:
        return self.capacity_tokens is None or self._tokens < self.capacity_tokens

    def _refusal(self, others: int) -> ServiceFailed:
        self.refused += 1
        retry_after_ms = max(100, min(10_000, int(self._seconds * 1000)))
        return ServiceFailed(ErrorCode.OVERLOADED, f"{others} requests are waiting already", retry_after_ms)

    def _grow(self, ticket: Ticket, body_bytes: int) -> None:
        growth = max(0, body_bytes - ticket.body_bytes)
        if self._requests > 1 and growth and self._bytes + growth > self._max_body_bytes:
            raise self._refusal(self._requests - 1)
        ticket.body_bytes += growth
        self._bytes += growth

    def _decide(self, ticket: Ticket, missing_bytes: int) -> None:
        is_first = not ticket.missing_bytes  # who has room for one part of its texts has it for the others
        if missing_bytes and is_first and self._requests > 1 and not self._has_work_room:
            raise self._refusal(self._requests - 1)
        self._undecided -= not ticket.is_decided
        ticket.is_decided = True
        tokens = int(missing_bytes * self._ratio)
        ticket.missing_bytes += missing_bytes
        ticket.tokens += tokens
        self._tokens += tokens

    def _release(self, ticket: Ticket) -> None:
        self._requests -= 1
        self._undecided -= not ticket.is_decided
        self._tokens -= ticket.tokens
        self._bytes -= ticket.body_bytes

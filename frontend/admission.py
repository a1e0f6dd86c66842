"""Who is let in: decided for whole requests, before their body is read.

A request is let in while the encoding work that is outstanding is within what the engine granted, and the bodies are
within the memory set aside for them; a request that is alone is always let in. What a request will cost is estimated
from the bytes of its texts once they are known, and before that as nothing: at first a third of a token per byte, then
by the running ratio of tokens that had to be encoded to bytes of text (texts that are in the store cost nothing, and
the ratio learns it).
"""

from __future__ import annotations

from ipc.errors import ServiceFailed
from ipc.messages import ErrorCode

FIRST_RATIO = 1 / 3  # tokens per byte
LEARNING_RATE = 0.05  # of the running ratio and of the time a request takes
FIRST_SECONDS = 1.0  # guess of how long a request takes


class Ticket:
    """One request that was let in. Give it back, whatever becomes of the request."""

    __slots__ = ("_admission", "body_bytes", "text_bytes", "tokens")

    def __init__(self, admission: Admission, body_bytes: int) -> None:
        self._admission: Admission | None = admission
        self.body_bytes = body_bytes
        self.text_bytes = 0
        self.tokens = 0

    def set_text_bytes(self, text_bytes: int) -> None:
        """The body has been read: so much of it is text that may have to be encoded."""
        if self._admission is not None:
            self._admission._estimate(self, text_bytes)

    def set_body_bytes(self, body_bytes: int) -> None:
        """A body without Content-Length has grown to so many bytes.

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
        is_full = self._bytes + body_bytes > self._max_body_bytes or (
            self.capacity_tokens is not None and self._tokens >= self.capacity_tokens
        )
        if self._requests and is_full:
            raise self._refusal(self._requests)
        self._requests += 1
        self._bytes += body_bytes
        return Ticket(self, body_bytes)

    def learn(self, ticket: Ticket, encoded_tokens: int, seconds: float) -> None:
        """A request has been answered: what it really cost."""
        if ticket.text_bytes:
            self._ratio += LEARNING_RATE * (encoded_tokens / ticket.text_bytes - self._ratio)
        self._seconds += LEARNING_RATE * (seconds - self._seconds)

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

    def _estimate(self, ticket: Ticket, text_bytes: int) -> None:
        self._tokens -= ticket.tokens
        ticket.text_bytes, ticket.tokens = text_bytes, int(text_bytes * self._ratio)
        self._tokens += ticket.tokens

    def _release(self, ticket: Ticket) -> None:
        self._requests -= 1
        self._tokens -= ticket.tokens
        self._bytes -= ticket.body_bytes

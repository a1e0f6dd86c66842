"""What can go wrong between processes.

MalformedMessage   bytes that are not a message of the protocol; the receiver drops them and goes on
ServiceFailed      a request that a service, or the way to it, did not answer with a result
  ModelChanged     a request for one model, and the service has another one by now
"""

from __future__ import annotations

from ipc.messages import ErrorCode


class MalformedMessage(ValueError):
    """A frame, a field or an array is not what the protocol says. The text names the field."""


class ServiceFailed(Exception):
    """A request failed.

    `message` is safe to show to a user; `which` is the position of the text to blame, if one is.
    """

    def __init__(self, code: ErrorCode, message: str, retry_after_ms: int = 0, which: int | None = None) -> None:
        super().__init__(f"{code.value}: {message}")
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.which = which


class ModelChanged(ServiceFailed):
    """The service was started again with another model; what it had made for the request may not be mixed with this."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.UNAVAILABLE, "the model's files have changed while this request was running", 1000)

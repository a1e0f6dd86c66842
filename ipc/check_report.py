"""What `python -P -m engine.check` tells `maxsimd check`: one msgpack struct on its stdout."""

from __future__ import annotations

import msgspec

from ipc.messages import ModelSpec, SelfCheck


class CheckReport(msgspec.Struct, frozen=True, tag=True):
    """A model as it was understood, and how far the fast path's scores lie from the plain one's."""

    spec: ModelSpec
    tokenizer: bytes  # tokenizer.json
    directory: str
    fingerprint: bytes
    parameters: str  # in words
    self_check: SelfCheck


class CheckFailed(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be served; one line for people."""

    message: str

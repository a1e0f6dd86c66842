"""What `python -P -m engine.check` tells `maxsimd check`: one msgpack struct on its stdout."""

from __future__ import annotations

import msgspec

from ipc.messages import ModelSpec


class CheckReport(msgspec.Struct, frozen=True, tag=True):
    """A model as it was understood, and how far the fast path's scores lie from the plain one's."""

    spec: ModelSpec
    tokenizer: bytes  # tokenizer.json
    directory: str
    fingerprint: bytes
    parameters: str  # in words
    pairs: int
    largest_difference: float  # of a MaxSim score
    tolerance: float  # largest_difference / tolerance is at most 1 where the check passes

    @property
    def passes(self) -> bool:
        """Not a number is not within any tolerance."""
        return self.largest_difference <= self.tolerance


class CheckFailed(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be served; one line for people."""

    message: str

"""The coverage-guided fuzzer of the codec: `python -m tests.fuzz.guided -runs=100000 CORPUS` (libFuzzer's own flags).

Needs the extra `fuzz`. An input is either choices, of which `tests.fuzz.frames` makes a message, or the frames.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ipc"]):
    from ipc.codec import decode_to_client, decode_to_service
    from ipc.errors import MalformedMessage
    from tests.fuzz.frames import Choices, World, make_answer, make_case

DECODERS = (decode_to_service, decode_to_client)


def frames_of(data: bytes) -> list[bytes]:
    """As many frames as the first byte says, cut by the lengths in the bytes after it."""
    count = data[0] % 12 if data else 0
    frames, place = [], 1 + count
    for length in data[1:place]:
        frames.append(data[place : place + length])
        place += length
    return [*frames, data[place:]]


def one_case(data: bytes) -> None:
    """Decoding says what is wrong, or nothing is."""
    kind, rest = data[:1], data[1:]
    if kind < b"\x80":
        parts = make_case(Choices(rest), World())
    else:
        parts = make_answer(Choices(rest), World()) if kind < b"\xc0" else frames_of(rest)
    for decode in DECODERS:
        try:
            decode([memoryview(part) for part in parts])
        except MalformedMessage:
            continue


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_case)
    atheris.Fuzz()

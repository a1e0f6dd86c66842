"""Messages to a service, right ones and wrong ones: structure-aware, from a source of choices.

A case begins as a right message of any kind; then some of its counts, shapes, dtypes, frame indices, frames, ids or
bytes are changed. The same choices make the same case, whoever makes them: a seeded generator, hypothesis, or the bytes
of a coverage-guided fuzzer (`Choices`).
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ipc.arrays import ITEM_BYTES, FrameWriter
from ipc.codec import decode_to_service, encode
from ipc.errors import MalformedMessage
from ipc.messages import (
    CLIENT_BYTES,
    KEY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_STRUCT_BYTES,
    MAX_SUPPLIED,
    Alignment,
    ArrayRef,
    Cancel,
    Credits,
    DType,
    Encode,
    Encoded,
    ErrorCode,
    Failed,
    FloatDType,
    Hello,
    Limits,
    Message,
    Missing,
    ModelSpec,
    Ready,
    Role,
    Score,
    Scores,
    SelfCheck,
    Statistics,
    Stats,
    Supplied,
    SuppliedEmbeddings,
    SuppliedTokens,
    TextSpec,
)
from ipc.sockets import MAX_FRAMES

KEYS = (
    40  # different ones: texts meet again, wait for each other, and sometimes break the rule that a key names one text
)
IDS = 60  # different request ids: some come twice, some are cancelled before they come
DTYPES: tuple[FloatDType, ...] = ("float32", "float16", "bfloat16")
ROLES: tuple[Role, ...] = ("query", "document")
NUMBERS = (0, 1, -1, 2, 15, 16, 17, 255, 4095, 4096, 4097, 65_535, 65_536, 65_537, 2**20, 2**20 + 1, 2**24)
EDGES = (2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63))
OTHERS: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        1.5,
        float("nan"),
        float("inf"),
        -1e300,
        b"",
        b"x",
        b"x" * 8,
        b"x" * 16,
        b"x" * 17,
        "",
        "Score",
    ),
    *(
        "Hello",
        "Ready",
        "tokens",
        "embeddings",
        "query",
        "uint8",
        "int32",
        "float16",
        "float32",
        "é" * 50,
        "\0",
        [],
        {},
    ),
    *([0], [0, 0, 0], [[[[[]]]]], {"a": 1}, {1: {2: {3: 4}}}, ["ArrayRef", 1], [-1, -1], [2**31, 2**31]),
)


class Choices(random.Random):
    """A source of choices that reads them from bytes, and zeros when there are none left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0
        super().__init__(0)

    def getrandbits(self, count: int, /) -> int:
        size = -(-count // 8)
        taken = self._data[self._place : self._place + size]
        self._place += size
        return int.from_bytes(taken, "little") & ((1 << count) - 1)

    def random(self) -> float:
        return self.getrandbits(16) / 65_536

    def _randbelow(self, count: int) -> int:
        """One draw each: drawing again until it fits would never end on zeros."""
        return self.getrandbits(count.bit_length() + 8) % count if count else 0


@dataclass
class World:
    """What right messages must agree with."""

    dim: int = 8
    vocabulary: int = 1000  # 0: no text can be encoded
    epoch: int = 1
    is_large: bool = False  # some cases are of many megabytes
    keys: list[bytes] = field(default_factory=lambda: [bytes([number]) * KEY_BYTES for number in range(KEYS)])


def make_case(choose: random.Random, world: World) -> list[bytes]:
    """The frames of one multipart message, without the sender's identity."""
    return _changed(choose, world, *right_message(choose, world))


def make_answer(choose: random.Random, world: World) -> list[bytes]:
    """The same of what a service says."""
    return _changed(choose, world, *_right_answer(choose, world))


def _changed(choose: random.Random, world: World, message: Message, writer: FrameWriter) -> list[bytes]:
    parts = [bytes(memoryview(part).cast("B")) for part in encode(message, writer.frames)]
    if choose.random() < 0.25:
        return parts
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        parts = choose.choice(MUTATIONS)(choose, parts, world) or [b""]
    return parts


def is_malformed(parts: list[bytes]) -> bool:
    """What the service must say of it."""
    if len(parts) + 1 > MAX_FRAMES:  # the sender's identity is one too
        return True
    try:
        decode_to_service([memoryview(part) for part in parts])
    except MalformedMessage:
        return True
    return False


# --- right messages -----------------------------------------------------------------------------------------------


def right_message(choose: random.Random, world: World) -> tuple[Message, FrameWriter]:
    request_id = choose.randrange(IDS)
    match choose.randrange(16):
        case 0:
            return Hello(1, world.epoch, choose.randbytes(choose.choice((0, 16)))), FrameWriter()
        case 1 | 2:
            return Cancel(request_id), FrameWriter()
        case 3:
            return Stats(request_id), FrameWriter()
        case 4 | 5 | 6:
            return _right_encode(choose, world, request_id)
        case _:
            return _right_score(choose, world, request_id)


def _envelope(choose: random.Random, world: World, request_id: int) -> tuple[int, int, bytes, int]:
    """Epoch, request id, client, budget."""
    epoch = world.epoch if choose.random() < 0.95 else choose.randrange(1, 2**40)
    return epoch, request_id, bytes([choose.randrange(3)]) * CLIENT_BYTES, choose.choice((0, 5, 200, 10_000, 2**31 - 1))


def _right_score(choose: random.Random, world: World, request_id: int) -> tuple[Score, FrameWriter]:
    writer = FrameWriter()
    queries = choose.randrange(1, 4)
    documents = choose.randrange(1, 7) if choose.random() < 0.98 else choose.choice((200, 1000))
    texts = queries + documents
    keys = writer.add_keys(choose.choices(world.keys, k=texts))
    pairs = None
    if choose.random() < 0.3:
        count = choose.randrange(1, 8)
        chosen = [(choose.randrange(queries), choose.randrange(documents)) for _ in range(count)]
        pairs = writer.add(array("i", [place for pair in chosen for place in pair]), "int32", [count, 2])
    supplied: list[Supplied] = []
    for _ in range(choose.choice((0, 0, 1, 1, 2, MAX_SUPPLIED))):
        which = writer.add_ints(sorted(choose.sample(range(min(texts, 16)), choose.randrange(min(texts, 6) + 1))))
        count = which.shape[0]
        if choose.random() < 0.5:
            supplied.append(_right_embeddings(choose, world, writer, which, count))
        else:
            supplied.append(SuppliedTokens(choose.choice(ROLES), which, *_ids(choose, world, writer, count)))
    deaths = choose.choice((0, 0, 0, 0, 0, 1, 2))
    wants = choose.random() < 0.2
    envelope = _envelope(choose, world, request_id)
    return Score(*envelope, queries, documents, keys, pairs, supplied, deaths, wants), writer


def _right_embeddings(
    choose: random.Random, world: World, writer: FrameWriter, which: ArrayRef, count: int
) -> SuppliedEmbeddings:
    rows = [choose.choice((0, 1, 1, 2, 15, 16, 17, 40)) for _ in range(count)]
    if world.is_large and rows and choose.random() < 0.02:
        rows[0] = choose.choice((1000, 2**20, 2**21 - 100))
    dtype = choose.choice(DTYPES)
    size = sum(rows) * world.dim * ITEM_BYTES[dtype]
    if choose.random() < 0.5 or size > 2**16:
        data = bytes(size)
    elif choose.random() < 0.1:
        data = b"\xff" * size  # not a number, in each of them
    else:
        data = array("f", (choose.choice((-1.0, 0.0, 0.5, 1.0)) for _ in range(-(-size // 4)))).tobytes()[:size]
    ref = writer.add(data, dtype, [sum(rows), world.dim])
    return SuppliedEmbeddings(which, writer.add_ints(rows), writer.add_ints(rows), ref, choose.random() < 0.7)


def _right_encode(choose: random.Random, world: World, request_id: int) -> tuple[Encode, FrameWriter]:
    writer = FrameWriter()
    count = choose.choice((1, 1, 2, 3, 5))
    keys = writer.add_keys(choose.choices(world.keys, k=count))  # equal ones among them
    role, reply = choose.choice(ROLES), choose.choice(DTYPES)
    ids = _ids(choose, world, writer, count)
    return Encode(*_envelope(choose, world, request_id), role, keys, *ids, reply), writer


def _ids(choose: random.Random, world: World, writer: FrameWriter, count: int) -> tuple[ArrayRef, ArrayRef, ArrayRef]:
    """Lengths, expansion, token ids."""
    lengths = [choose.choice((1, 1, 2, 3, 8, 40)) for _ in range(count)]
    if lengths and choose.random() < 0.05:
        lengths[-1] = choose.choice((0, 97, 1000))  # none, or more than the model takes
    expansion = [choose.randrange(length) if length and choose.random() < 0.3 else 0 for length in lengths]
    most = world.vocabulary - 1 if world.vocabulary and choose.random() < 0.97 else 2**31 - 1
    known = (0, 1, 7, most) if world.vocabulary else (most,)
    ids = [choose.choice(known) for _ in range(sum(lengths))]
    return writer.add_ints(lengths), writer.add_ints(expansion), writer.add_ints(ids)


def _right_answer(choose: random.Random, world: World) -> tuple[Message, FrameWriter]:
    writer, request_id, credits = FrameWriter(), choose.randrange(IDS), Credits(2**20, 1000)
    texts, pairs = choose.randrange(1, 6), choose.randrange(1, 9)
    match choose.randrange(6):
        case 0:
            text, tokenizer = TextSpec(32, [1, 2], "fixed", 32, 4, True, [5]), choose.randbytes(30)
            spec = ModelSpec("m", world.dim, text, text)
            frame = writer.add(tokenizer, "uint8", [len(tokenizer)])
            limits = Limits(1000, MAX_MESSAGE_BYTES, 100, 16)
            check = SelfCheck(3, 0.1, 0.2, "float32", "cpu", 0)
            ready = Ready(1, world.epoch, bytes(16), world.dim, limits, credits, 7, True, "cpu", spec, frame, check)
            return ready, writer
        case 1:
            return Missing(request_id, writer.add_ints(range(texts)), credits, 1), writer
        case 2:
            rows = [choose.randrange(5) for _ in range(texts)]
            data = bytes(sum(rows) * world.dim * 4)
            embeddings = writer.add(data, "float32", [sum(rows), world.dim])
            return Encoded(request_id, writer.add_ints(rows), embeddings, credits), writer
        case 3:
            return Failed(request_id, choose.choice(list(ErrorCode)), "why", 100, choose.choice((None, 0, 3))), writer
        case 4:
            return Statistics(request_id, {"a": 1.0, "b": choose.random()}), writer
        case _:
            alignment = None
            if choose.random() < 0.5:
                alignment = Alignment(writer.add_ints([0] * pairs), writer.add(bytes(4 * pairs), "float32", [pairs]))
            floats = writer.add(bytes(4 * pairs), "float32", [pairs])
            ints = (writer.add_ints([1] * texts), writer.add_ints([1] * texts))
            return Scores(request_id, floats, *ints, credits, 5, 6, alignment), writer


# --- what is done to them -----------------------------------------------------------------------------------------


def _change_field(choose: random.Random, parts: list[bytes], world: World) -> list[bytes]:
    """One value of the struct, wherever it lies, becomes another one."""
    try:
        struct = msgspec.msgpack.decode(parts[0])
    except (msgspec.DecodeError, ValueError, RecursionError, IndexError):
        return parts
    _change_within(choose, struct)
    try:
        return [msgspec.msgpack.encode(struct), *parts[1:]]
    except (OverflowError, ValueError, TypeError, RecursionError):
        return parts


def _change_within(choose: random.Random, value: Any) -> None:
    while isinstance(value, list) and value:
        place = choose.randrange(len(value))
        inner = value[place]
        if isinstance(inner, list) and inner and choose.random() < 0.85:
            value = inner
            continue
        match choose.randrange(8):
            case 0:
                del value[place]
            case 1:
                value.insert(place, inner)
            case 2:
                value[place] = choose.choice(OTHERS)
            case 3:
                value[place] = choose.choice(EDGES)
            case 4 | 5 if isinstance(inner, int):
                value[place] = inner + choose.choice((-1, 1, 1, 16, -16))
            case 6 if isinstance(inner, str | bytes):
                value[place] = inner[: choose.randrange(len(inner) + 1)]
            case _:
                value[place] = choose.choice(NUMBERS)
        return


def _change_frame(choose: random.Random, parts: list[bytes], world: World) -> list[bytes]:
    """One frame's bytes: cut, longer, flipped, extreme numbers, none, very many."""
    place = choose.randrange(len(parts))
    part = bytearray(parts[place])
    match choose.randrange(8):
        case 0:
            del part[choose.randrange(len(part) + 1) :]
        case 1:
            part += choose.randbytes(choose.choice((1, 4, 16)))
        case 2 | 3 if part:
            part[choose.randrange(len(part))] ^= choose.randrange(1, 256)
        case 4 if len(part) >= 4:
            at = choose.randrange(len(part) // 4) * 4
            part[at : at + 4] = choose.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\1\0\0\0"))
        case 5:
            part = bytearray(choose.randbytes(choose.randrange(64)))
        case 6 if world.is_large:
            size = choose.choice((MAX_STRUCT_BYTES, MAX_STRUCT_BYTES + 1, 2**22, MAX_MESSAGE_BYTES))
            part = part[: choose.randrange(len(part) + 1)]
            part += bytes(max(0, size - len(part)))
        case _:
            part = bytearray(len(part))
    return [*parts[:place], bytes(part), *parts[place + 1 :]]


def _change_shape(choose: random.Random, parts: list[bytes], world: World) -> list[bytes]:
    """The multipart message: frames lost, doubled, in another order, very many; or no struct."""
    place = choose.randrange(len(parts))
    match choose.randrange(7):
        case 0:
            return parts[:place] + parts[place + 1 :]
        case 1:
            return [*parts[: place + 1], *parts[place:]]
        case 2:
            other = list(parts)
            choose.shuffle(other)
            return other
        case 3:
            return [*parts, *([b""] * choose.choice((1, 3, 30)))]
        case 4 if choose.random() < 0.1:
            return [
                *parts,
                *([b""] * choose.choice((MAX_FRAMES - len(parts) - 1, MAX_FRAMES - len(parts), MAX_FRAMES))),
            ]
        case 5:
            return parts[:1]
        case _:
            return parts[1:]


def _change_struct_bytes(choose: random.Random, parts: list[bytes], world: World) -> list[bytes]:
    """Frame 0 as bytes: what no encoder of msgpack writes."""
    head = choose.choice(
        (
            b"\x91" * choose.choice((10, 600, 5000, 200_000 if world.is_large else 5000)),  # arrays in arrays
            b"\x81\xa1a" * choose.choice((10, 600, 5000)),
            b"\xdd\xff\xff\xff\xff",  # an array of four billion
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff" + b"x" * 10,  # bytes of four billion
            b"\xdb\xff\xff\xff\xff",
            b"\x92\xa5Hello\xcf" + b"\xff" * 8,
            b"\x9c\xa5Score" + b"\xc0" * 11,
            b"\xc1",
            choose.randbytes(choose.randrange(40)),
        )
    )
    at = choose.randrange(len(parts[0]) + 1)
    changed = choose.choice((head, parts[0][:at] + head, head + parts[0][at:], parts[0] + head, parts[0][:at]))
    return [changed, *parts[1:]]


def _point_elsewhere(choose: random.Random, parts: list[bytes], world: World) -> list[bytes]:
    """Several references to one frame, or to one that is not there; other dtypes and shapes of the same size."""
    try:
        struct = msgspec.msgpack.decode(parts[0])
    except (msgspec.DecodeError, ValueError, RecursionError, IndexError):
        return parts
    references = list(_references(struct))
    if not references:
        return parts
    reference = choose.choice(references)
    dtypes: tuple[DType, ...] = ("uint8", "int32", *DTYPES)
    match choose.randrange(4):
        case 0:
            reference[2] = choose.choice(references)[2]
        case 1:
            reference[2] = choose.choice((0, 1, len(parts), len(parts) + 1, 4096, 4097))
        case 2:
            reference[0] = choose.choice(dtypes)
        case _ if isinstance(reference[1], list):
            shape = [each for each in reference[1] if isinstance(each, int)]
            total = shape[0] * shape[-1] if shape else 0
            reference[1] = choose.choice(
                ([total], [1, total], [total, 1], [total, 0], [0, total], shape[::-1], [*shape, 1])
            )
    try:
        return [msgspec.msgpack.encode(struct), *parts[1:]]
    except (OverflowError, ValueError, TypeError):
        return parts


def _references(value: Any) -> Any:
    """Lists that look like an ArrayRef."""
    if isinstance(value, list):
        if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], list):
            yield value
            return
        for inner in value:
            yield from _references(inner)


Mutation = Callable[[random.Random, list[bytes], World], list[bytes]]
MUTATIONS: tuple[Mutation, ...] = (
    *(_change_field, _change_field, _change_field, _change_field, _change_frame, _change_frame, _change_frame),
    *(_point_elsewhere, _point_elsewhere, _change_shape, _change_struct_bytes),
)

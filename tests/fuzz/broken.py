"""Messages that are known to be wrong, because of what was done to a right one: no codec is asked.

Each of `BREAKS` does one thing that a message of its kind cannot bear, whatever else it says. So a codec that lets
something through does not agree with itself.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ipc.arrays import ITEM_BYTES
from ipc.codec import encode
from ipc.messages import MAX_TEXTS, ArrayRef, Encode, Message, Score, SuppliedEmbeddings, SuppliedTokens
from ipc.sockets import MAX_FRAMES
from tests.fuzz.frames import World, right_message

Struct = list[Any]  # frame 0, as msgpack has it
Frames = list[bytes]
Break = Callable[[random.Random, Message, Struct, Frames], bool]  # changes both; False: there is nothing to break


def make_broken(choose: random.Random, world: World, break_it: Break | None = None) -> list[bytes]:
    """The frames of a message that is malformed, without the sender's identity."""
    while True:
        message, writer = right_message(choose, world)
        head, *frames = (bytes(memoryview(part).cast("B")) for part in encode(message, writer.frames))
        struct = msgspec.msgpack.decode(head)
        if (break_it or choose.choice(BREAKS))(choose, message, struct, frames):
            return [_packed(struct), *frames]


def _packed(struct: Struct) -> bytes:
    """Cut or longer where a break has left a mark: it has no other way to say so."""
    tail = struct.pop() if isinstance(struct[-1], _Bytes) else None
    data = msgspec.msgpack.encode(struct)
    return data if tail is None else tail.change(data)


class _Bytes:
    """What is done to the struct when it has been encoded."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self.change = change


# --- references ---------------------------------------------------------------------------------------------------


def _fields(message: Message) -> Iterator[tuple[str, ArrayRef]]:
    """Of a Score or an Encode: the arrays, by what they say."""
    if isinstance(message, Score | Encode):
        for part in (message, *getattr(message, "supplied", ())):
            for name in part.__struct_fields__:
                value = getattr(part, name)
                if isinstance(value, ArrayRef):
                    yield name, value


def _references(value: Any) -> Iterator[list[Any]]:
    """The same in the struct: [dtype, shape, frame]."""
    if isinstance(value, list):
        if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], list):
            yield value
            return
        for inner in value:
            yield from _references(inner)


def _choose_reference(choose: random.Random, struct: Struct) -> list[Any] | None:
    found = list(_references(struct))
    return choose.choice(found) if found else None


def _choose_ints(choose: random.Random, message: Message, *names: str) -> ArrayRef | None:
    """One of these arrays that has an element."""
    found = [ref for name, ref in _fields(message) if name in names and ref.shape[0]]
    return choose.choice(found) if found else None


def _change_ints(frames: Frames, ref: ArrayRef, change: Callable[[array[int]], None]) -> None:
    numbers = array("i", frames[ref.frame - 1])
    change(numbers)
    frames[ref.frame - 1] = numbers.tobytes()


# --- what no message can bear -------------------------------------------------------------------------------------


def another_count(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    """Queries or documents: their keys do not fit any more."""
    if not isinstance(message, Score):
        return False
    place = choose.choice((5, 6))
    struct[place] = choose.choice((0, -1, struct[place] + 1, struct[place] + 16, MAX_TEXTS + 1, 2**31, 2**63))
    return True


def a_shape_that_does_not_fit(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    if (reference := _choose_reference(choose, struct)) is None:
        return False
    shape = reference[1]
    shape[0] = choose.choice((-1, shape[0] + 1, shape[0] + 256, 2**31, 2**62))
    return True


def too_many_or_no_dimensions(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    if (reference := _choose_reference(choose, struct)) is None:
        return False
    reference[1] = choose.choice(([], [*reference[1], 1, 1], [[reference[1][0]]]))
    return True


def a_frame_that_is_not_there(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    if (reference := _choose_reference(choose, struct)) is None:
        return False
    reference[2] = choose.choice((0, -1, len(frames) + 1, len(frames) + 7, 4096, 4097, 2**32))
    return True


def a_frame_too_few(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    if not frames:
        return False
    del frames[-1]
    return True


def a_frame_of_another_size(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    if not frames:
        return False
    place = choose.randrange(len(frames))
    frame = frames[place]
    shorter = frame[: -choose.choice((1, 4, 16))] if frame else b"x"
    frames[place] = choose.choice((shorter, frame + bytes(choose.choice((1, 2, 4, 16)))))
    return True


def frames_that_nothing_names(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    if frames:
        return False
    frames += [b""] * choose.choice((1, 2, 30))
    return True


def very_many_frames(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    frames += [b""] * MAX_FRAMES
    return choose.random() < 0.1


def a_dtype_that_is_none(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    if (reference := _choose_reference(choose, struct)) is None:
        return False
    reference[0] = choose.choice(("", "int64", "float64", "Int32", "int32 ", "object", "\0", 7, None))
    return True


def a_dtype_of_another_kind(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    """Numbers in place of embeddings, embeddings in place of numbers: of the same size, too."""
    found = list(_fields(message))
    if not found:
        return False
    place = choose.randrange(len(found))
    name, ref = found[place]
    kinds = ("uint8", "int32") if name == "embeddings" else ITEM_BYTES.keys() - {ref.dtype}
    list(_references(struct))[place][0] = choose.choice(sorted(kinds))
    return True


def a_place_outside(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    """Of a text that is supplied, or of a pair."""
    ref = _choose_ints(choose, message, "which", "pairs")
    if ref is None or not isinstance(message, Score):
        return False
    texts = message.num_queries + message.num_documents
    outside = choose.choice((-1, texts, texts + 1, 2**31 - 1, -(2**31)))
    _change_ints(frames, ref, lambda numbers: numbers.__setitem__(choose.randrange(len(numbers)), outside))
    return True


def a_place_that_stands_twice(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    ref = _choose_ints(choose, message, "which")
    if ref is None or ref.shape[0] < 2:
        return False
    _change_ints(frames, ref, lambda numbers: numbers.__setitem__(0, numbers[-1]))
    return True


def rows_that_do_not_add_up(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    """Of texts: their ids, or their embeddings, are more or fewer."""
    ref = _choose_ints(choose, message, "rows", "lengths")
    if ref is None:
        return False
    other = choose.choice((-1, 1, 256, 2**20))
    _change_ints(frames, ref, lambda numbers: numbers.__setitem__(-1, numbers[-1] + other))
    return True


def a_number_below_zero(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    ref = _choose_ints(choose, message, "which", "rows", "prompt_tokens", "lengths", "expansion", "token_ids")
    if ref is None:
        return False
    below = choose.choice((-1, -2, -(2**31)))
    _change_ints(frames, ref, lambda numbers: numbers.__setitem__(choose.randrange(len(numbers)), below))
    return True


def more_expansion_than_ids(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    parts = message.supplied if isinstance(message, Score) else [message]
    found = [(part.lengths, part.expansion) for part in parts if isinstance(part, SuppliedTokens | Encode)]
    found = [(lengths, expansion) for lengths, expansion in found if lengths.shape[0]]
    if not found:
        return False
    lengths, expansion = choose.choice(found)
    most = array("i", frames[lengths.frame - 1])
    place = choose.randrange(len(most))
    extra = choose.choice((max(1, most[place]), most[place] + 1, 2**31 - 1))
    _change_ints(frames, expansion, lambda numbers: numbers.__setitem__(place, extra))
    return True


def texts_that_are_not_as_many(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    """One array has an element more, and says so."""
    parts = list(message.supplied) if isinstance(message, Score) else [message] if isinstance(message, Encode) else []
    if not parts:
        return False
    part = choose.choice(parts)
    names = ("rows", "prompt_tokens") if isinstance(part, SuppliedEmbeddings) else ("lengths", "expansion")
    wanted = getattr(part, choose.choice(names))
    for reference in _references(struct):
        if reference[2] == wanted.frame:
            reference[1] = [wanted.shape[0] + 1]
    frames[wanted.frame - 1] += bytes(4)
    return True


def a_name_that_is_none(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    struct[0] = choose.choice(("", "score", "Scored", "Ready", "Scores", "Failed", "\0", 1, None, [], b"Score"))
    return True


def a_field_too_many(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    struct += [choose.choice((None, 0, "", []))] * (1 + len(message.__struct_fields__) + 1 - len(struct))
    return True


def a_field_too_few(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    """Of those that have no default."""
    required = 1 + len(message.__struct_fields__) - len(message.__struct_defaults__)
    del struct[choose.randrange(1, required) :]
    return True


def a_field_of_another_type(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    place = choose.randrange(1, min(len(struct), 3))  # numbers, in all of them
    struct[place] = choose.choice((None, "1", b"1", [1], {}, 1.5, float("nan"), True))
    return True


def an_end_too_soon(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    share = choose.random()
    struct.append(_Bytes(lambda data: data[: int(share * len(data))]))
    return True


def bytes_after_the_end(choose: random.Random, message: Message, struct: Struct, frames: Frames) -> bool:
    more = choose.choice((b"\0", b"\xc0", b"x" * 20))
    struct.append(_Bytes(lambda data: data + more))
    return True


BREAKS: tuple[Break, ...] = (
    *(another_count, a_shape_that_does_not_fit, too_many_or_no_dimensions, a_frame_that_is_not_there, a_frame_too_few),
    *(a_frame_of_another_size, frames_that_nothing_names, very_many_frames, a_dtype_that_is_none),
    *(a_dtype_of_another_kind, a_place_outside, a_place_that_stands_twice, rows_that_do_not_add_up),
    *(a_number_below_zero, more_expansion_than_ids, texts_that_are_not_as_many, a_name_that_is_none),
    *(a_field_too_many, a_field_too_few, a_field_of_another_type, an_end_too_soon, bytes_after_the_end),
)

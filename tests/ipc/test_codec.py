"""Messages survive the wire; bytes that are not messages are refused, whatever they are."""

from __future__ import annotations

from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.arrays import FrameWriter
from ipc.codec import decode_to_client, decode_to_service, encode, num_pairs
from ipc.errors import MalformedMessage
from ipc.messages import (
    KEY_BYTES,
    MAX_ALIGNED_ROWS,
    MAX_STRUCT_BYTES,
    MAX_SUPPLIED,
    Alignment,
    ArrayRef,
    Cancel,
    Credits,
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
    Score,
    Scores,
    Statistics,
    Stats,
    SuppliedEmbeddings,
    SuppliedTokens,
    TextSpec,
)

CLIENT = b"someone!"
SHAPES: list[tuple[int, FloatDType, int]] = [(3, "float32", 4), (5, "float16", 2)]
ids = st.integers(0, 2**63 - 1)
small = st.integers(0, 5)


def as_parts(message: Message, writer: FrameWriter | None = None) -> list[memoryview]:
    return [memoryview(part).cast("B") for part in encode(message, writer.frames if writer else ())]


@st.composite
def token_frames(draw: st.DrawFn, writer: FrameWriter, count: int) -> tuple[ArrayRef, ArrayRef, ArrayRef]:
    lengths = draw(st.lists(small, min_size=count, max_size=count))
    expansion = [draw(st.integers(0, max(0, length - 1))) for length in lengths]
    token_ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=sum(lengths), max_size=sum(lengths)))
    return writer.add_ints(lengths), writer.add_ints(expansion), writer.add_ints(token_ids)


@st.composite
def scores_requests(draw: st.DrawFn) -> tuple[Score, FrameWriter]:
    writer = FrameWriter()
    queries, documents = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    texts = queries + documents
    keys = writer.add_keys([draw(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)) for _ in range(texts)])
    pairs = None
    if draw(st.booleans()):
        chosen = draw(
            st.lists(st.tuples(st.integers(0, queries - 1), st.integers(0, documents - 1)), min_size=1, max_size=6)
        )
        flat = array("i", [index for pair in chosen for index in pair])
        pairs = writer.add(flat, "int32", [len(chosen), 2])
    supplied: list[SuppliedEmbeddings | SuppliedTokens] = []
    for _ in range(draw(st.integers(0, 2))):
        which = draw(st.lists(st.integers(0, texts - 1), unique=True, max_size=texts))
        if draw(st.booleans()):
            rows = draw(st.lists(small, min_size=len(which), max_size=len(which)))
            dim, dtype, width = draw(st.sampled_from(SHAPES))
            data = draw(st.binary(min_size=sum(rows) * dim * width, max_size=sum(rows) * dim * width))
            supplied.append(
                SuppliedEmbeddings(
                    which=writer.add_ints(which),
                    rows=writer.add_ints(rows),
                    prompt_tokens=writer.add_ints(rows),
                    embeddings=writer.add(data, dtype, [sum(rows), dim]),
                    keep=draw(st.booleans()),
                )
            )
        else:
            place = writer.add_ints(which)
            supplied.append(SuppliedTokens("query", place, *draw(token_frames(writer, len(which)))))
    message = Score(
        *(draw(ids), draw(ids), CLIENT, draw(small), queries, documents, keys, pairs, supplied),
        deaths=draw(small),
        want_alignment=draw(st.booleans()),
    )
    return message, writer


@given(scores_requests())
def test_score_survives_the_wire(request: tuple[Score, FrameWriter]) -> None:
    message, writer = request
    decoded, frames = decode_to_service(as_parts(message, writer))
    assert decoded == message
    assert [bytes(frame) for frame in frames] == [bytes(memoryview(frame).cast("B")) for frame in writer.frames]


@given(st.data(), st.integers(1, 4))
def test_encode_survives_the_wire(data: st.DataObject, count: int) -> None:
    writer = FrameWriter()
    keys = writer.add_keys([bytes([index]) * KEY_BYTES for index in range(count)])
    message = Encode(1, 2, CLIENT, 3, "document", keys, *data.draw(token_frames(writer, count)))
    assert decode_to_service(as_parts(message, writer))[0] == message


@pytest.mark.parametrize("message", [Hello(1, 2, b"x" * 16), Hello(1), Cancel(7), Stats(8)], ids=str)
def test_plain_message_to_a_service_survives_the_wire(message: Message) -> None:
    assert decode_to_service(as_parts(message))[0] == message


def test_answers_survive_the_wire() -> None:
    writer = FrameWriter()
    credits = Credits(10, 20)
    spec = ModelSpec("m", 4, TextSpec(32, marker_ids=[5], expansion="fixed"), TextSpec(180, skip_token_ids=[1, 2]))
    tokenizer = writer.add(b"{}", "uint8", [2])
    ready = Ready(1, 2, b"f" * 16, 4, Limits(1, 2, 3), credits, spec=spec, tokenizer=tokenizer)
    assert decode_to_client(as_parts(ready, writer))[0] == ready
    writer = FrameWriter()
    floats = writer.add(array("f", [1.5, 2.5]), "float32", [2])
    scores = Scores(1, floats, writer.add_ints([1, 2, 3]), writer.add_ints([1, 2, 3]), credits, 5, 6)
    assert decode_to_client(as_parts(scores, writer))[0] == scores
    writer = FrameWriter()
    missing = Missing(1, writer.add_ints([0, 2]), credits)
    assert decode_to_client(as_parts(missing, writer))[0] == missing
    writer = FrameWriter()
    encoded = Encoded(1, writer.add_ints([1, 2]), writer.add(bytes(24), "float32", [3, 2]), credits)
    assert decode_to_client(as_parts(encoded, writer))[0] == encoded
    for plain in (Failed(1, ErrorCode.OVERLOADED, "full", 100, 3), Statistics(1, {"a": 1.0})):
        assert decode_to_client(as_parts(plain))[0] == plain


@st.composite
def scores_answers(draw: st.DrawFn) -> tuple[Scores, FrameWriter]:
    """Of one query with some documents, aligned or not."""
    writer = FrameWriter()
    rows = draw(st.lists(small, min_size=2, max_size=5))
    pairs = len(rows) - 1
    scores = writer.add(array("f", range(pairs)), "float32", [pairs])
    ints = writer.add_ints(rows)
    alignment = None
    if draw(st.booleans()):
        best = [draw(st.integers(0, count - 1)) for count in rows[1:] if count for _ in range(rows[0])]
        similarities = array("f", [draw(st.floats(-1, 1, width=32)) for _ in best])
        alignment = Alignment(writer.add_ints(best), writer.add(similarities, "float32", [len(best)]))
    return Scores(draw(ids), scores, ints, ints, Credits(1, 2), draw(small), draw(small), alignment), writer


@given(scores_answers())
def test_scores_survive_the_wire_with_their_alignment(answer: tuple[Scores, FrameWriter]) -> None:
    message, writer = answer
    decoded, frames = decode_to_client(as_parts(message, writer))
    assert decoded == message
    assert [bytes(frame) for frame in frames] == [bytes(memoryview(frame).cast("B")) for frame in writer.frames]


@given(scores_answers(), st.data())
def test_damaged_scores_are_refused_or_fit(answer: tuple[Scores, FrameWriter], data: st.DataObject) -> None:
    """What passes has an alignment of as many similarities as rows, none of them negative."""
    parts = [bytearray(part) for part in as_parts(*answer)]
    victim = data.draw(st.integers(0, len(parts) - 1))
    if parts[victim] and data.draw(st.booleans()):
        parts[victim][data.draw(st.integers(0, len(parts[victim]) - 1))] ^= data.draw(st.integers(1, 255))
    elif data.draw(st.booleans()):
        parts[victim] += bytes(4)
    else:
        del parts[victim][: data.draw(st.integers(1, 8))]
    try:
        message, frames = decode_to_client([memoryview(part) for part in parts])
    except MalformedMessage as error:
        assert str(error)
        return
    if isinstance(message, Scores) and message.alignment is not None:
        rows = frames[message.alignment.document_rows.frame - 1].cast("i")
        assert len(rows) == len(frames[message.alignment.similarities.frame - 1].cast("f"))
        assert all(row >= 0 for row in rows)


def aligned_scores(rows: int, similarities: int, low: int = 0) -> list[memoryview]:
    writer = FrameWriter()
    one = writer.add(array("f", [1.0]), "float32", [1])
    ints = writer.add_ints([1, 1])
    entries = writer.add(array("i", [low]) * rows, "int32", [rows])
    alignment = Alignment(entries, writer.add(array("f", [0.0]) * similarities, "float32", [similarities]))
    return as_parts(Scores(1, one, ints, ints, Credits(1, 2), alignment=alignment), writer)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        pytest.param(aligned_scores(2, 1), "similarities", id="fewer-similarities-than-rows"),
        pytest.param(aligned_scores(1, 1, low=-1), "document_rows", id="negative-row"),
        pytest.param(aligned_scores(MAX_ALIGNED_ROWS + 1, MAX_ALIGNED_ROWS + 1), "at most", id="too-many"),
    ],
)
def test_wrong_alignment_is_refused_by_name(parts: list[memoryview], field: str) -> None:
    with pytest.raises(MalformedMessage, match=field):
        decode_to_client(parts)


def test_largest_alignment_is_taken() -> None:
    decode_to_client(aligned_scores(MAX_ALIGNED_ROWS, MAX_ALIGNED_ROWS))


@pytest.mark.parametrize("want_alignment", [False, True])
def test_fewer_pairs_are_aligned_than_scored(want_alignment: bool) -> None:
    writer = FrameWriter()
    keys = writer.add_keys([b"k" * KEY_BYTES] * 2)
    count = MAX_ALIGNED_ROWS + 1
    pairs = writer.add(array("i", bytes(8 * count)), "int32", [count, 2])
    message = Score(1, 2, CLIENT, 3, 1, 1, keys, pairs, want_alignment=want_alignment)
    if not want_alignment:
        assert decode_to_service(as_parts(message, writer))[0] == message
        return
    with pytest.raises(MalformedMessage, match="pairs"):
        decode_to_service(as_parts(message, writer))


@given(scores_requests(), st.data())
def test_damaged_score_is_refused_or_equal_never_anything_else(
    request: tuple[Score, FrameWriter], data: st.DataObject
) -> None:
    """Any bytes changed, cut or added: MalformedMessage, or a message that passes every check."""
    parts = [bytearray(part) for part in as_parts(*request)]
    victim = data.draw(st.integers(0, len(parts) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "grow", "drop"])):
        case "flip" if parts[victim]:
            parts[victim][data.draw(st.integers(0, len(parts[victim]) - 1))] ^= data.draw(st.integers(1, 255))
        case "cut" if parts[victim]:
            del parts[victim][data.draw(st.integers(0, len(parts[victim]) - 1)) :]
        case "grow":
            parts[victim] += b"\0"
        case "drop":
            del parts[victim]
    try:
        decode_to_service([memoryview(part) for part in parts])
    except MalformedMessage as error:
        assert str(error)


@given(st.lists(st.binary(max_size=64), max_size=4))
def test_random_bytes_are_refused(parts: list[bytes]) -> None:
    for decode in (decode_to_service, decode_to_client):
        try:
            decode([memoryview(part) for part in parts])
        except MalformedMessage as error:
            assert str(error)


def one_pair(**changes: object) -> list[memoryview]:
    """A small correct Score, with some fields replaced."""
    writer = FrameWriter()
    keys = writer.add_keys([b"q" * KEY_BYTES, b"d" * KEY_BYTES])
    writer.add_ints([0, 1])
    writer.add_ints([1, 1])
    writer.add(bytes(32), "float32", [2, 4])
    writer.add(array("i", [0, 0]), "int32", [1, 2])
    message = Score(1, 2, CLIENT, 3, 1, 1, keys)
    return as_parts(msgspec.structs.replace(message, **changes), writer)


def rows_of(frame: int = 4, shape: tuple[int, int] = (2, 4), which: int = 2) -> list[SuppliedEmbeddings]:
    ints = ArrayRef("int32", [2], 3)
    return [SuppliedEmbeddings(ArrayRef("int32", [2], which), ints, ints, ArrayRef("float32", list(shape), frame))]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"num_queries": 0, "num_documents": 2}, "num_queries", id="no-query"),
        pytest.param({"num_documents": 2}, "keys", id="fewer-keys-than-texts"),
        pytest.param({"num_documents": 2**31 - 1}, "texts", id="too-many-texts"),
        pytest.param({"keys": ArrayRef("int32", [2, 16], 1)}, "keys", id="wrong-dtype"),
        pytest.param({"keys": ArrayRef("uint8", [2, 16], 99)}, "keys", id="frame-that-is-not-there"),
        pytest.param({"pairs": ArrayRef("int32", [1, 2], 2), "num_documents": 1}, "pairs", id="pair-outside"),
        pytest.param({"pairs": ArrayRef("int32", [0, 2], 5)}, "pairs", id="no-pairs"),
        pytest.param({"supplied": rows_of(shape=(3, 4))}, "embeddings", id="rows-do-not-add-up"),
        pytest.param({"supplied": rows_of(shape=(2, 5))}, "embeddings", id="wrong-byte-count"),
        pytest.param({"supplied": rows_of(which=3)}, "which", id="position-twice"),
        pytest.param({"epoch": -1}, "frame 0", id="negative-epoch"),
        pytest.param({"client": b"x"}, "frame 0", id="short-client"),
    ],
)
def test_wrong_score_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    with pytest.raises(MalformedMessage, match=field):
        decode_to_service(one_pair(**changes))


def test_supplied_embeddings_that_fit_are_taken() -> None:
    message, _ = decode_to_service(one_pair(supplied=rows_of()))
    assert isinstance(message, Score)
    assert num_pairs(message) == 1


def test_a_score_supplies_no_more_parts_than_there_are_kinds_of_them() -> None:
    """Each names up to 65,536 texts again, in frames that may be the same: what is made of them is not."""
    message, _ = decode_to_service(one_pair(supplied=rows_of() * MAX_SUPPLIED))
    assert isinstance(message, Score) and len(message.supplied) == MAX_SUPPLIED
    with pytest.raises(MalformedMessage, match="frame 0"):
        decode_to_service(one_pair(supplied=rows_of() * (MAX_SUPPLIED + 1)))


def test_a_struct_has_a_limit_of_its_own() -> None:
    """A message may have 64 MiB: as small values of a struct they would be many times that once they are decoded."""
    fits = MAX_STRUCT_BYTES - len(as_parts(Hello(1, 2))[0]) - 8
    assert decode_to_service(as_parts(Hello(1, 2, bytes(fits))))[0] == Hello(1, 2, bytes(fits))
    with pytest.raises(MalformedMessage, match="frame 0: 1048"):
        decode_to_service(as_parts(Hello(1, 2, bytes(fits + 16))))
    with pytest.raises(MalformedMessage, match="frame 0: 1048"):
        decode_to_client(as_parts(Failed(1, ErrorCode.INTERNAL, "x" * MAX_STRUCT_BYTES)))


@pytest.mark.parametrize(
    ("length", "extra", "is_fine"), [(3, 2, True), (3, 3, False), (3, 4, False), (0, 0, True), (0, 1, False)]
)
def test_expansion_leaves_an_id_of_the_text(length: int, extra: int, is_fine: bool) -> None:
    """A text without any is a message: it is answered, with the text's place, by whoever would encode it."""
    writer = FrameWriter()
    keys = writer.add_keys([b"k" * KEY_BYTES])
    ids = (writer.add_ints([length]), writer.add_ints([extra]), writer.add_ints([7] * length))
    message = Encode(1, 2, CLIENT, 3, "query", keys, *ids)
    if is_fine:
        assert decode_to_service(as_parts(message, writer))[0] == message
        return
    with pytest.raises(MalformedMessage, match="expansion"):
        decode_to_service(as_parts(message, writer))


def test_message_for_the_other_direction_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        decode_to_client(as_parts(Cancel(1)))
    with pytest.raises(MalformedMessage):
        decode_to_service(as_parts(Failed(1, ErrorCode.INTERNAL, "no")))

"""Safetensors bodies: what they decode to, and that nothing that is not one gets further than a 400."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.binary_body import decode_binary, is_binary
from frontend.errors import RequestFailed
from frontend.ranking import EmbeddingsInput
from frontend.safetensors_body import ITEM_BYTES, read_safetensors
from frontend.schemas import RerankBody, ScoreBody
from tests.frontend.surface import Surface, indices, message_of

HEADERS = {"content-type": "application/vnd.safetensors"}
Tensors = dict[str, tuple[str, list[int], bytes]]


def file_of(tensors: Tensors, metadata: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """A body; `changes` replace parts of the first tensor's entry."""
    header: dict[str, Any] = {}
    start = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(data)]}
        start += len(data)
    if changes:
        header[next(iter(tensors))].update(changes)
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def rows(count: int, value: float = 0.5, dim: int = 4) -> tuple[str, list[int], bytes]:
    return "F32", [count, dim], struct.pack(f"<{count * dim}f", *[value] * (count * dim))


def ints(*values: int, dtype: str = "I32") -> tuple[str, list[int], bytes]:
    return dtype, [len(values)], struct.pack(f"<{len(values)}{'i' if dtype == 'I32' else 'q'}", *values)


PACKED: Tensors = {"query": rows(2), "documents": rows(6), "cu_seqlens": ints(0, 1, 4, 6)}
SINGLE: Tensors = {"query": rows(2), "document.0": rows(1), "document.1": rows(3), "document.2": rows(2)}


tensor_shapes = st.lists(st.integers(0, 5), min_size=0, max_size=3)


@given(st.dictionaries(st.text(max_size=8), st.tuples(st.sampled_from(sorted(ITEM_BYTES)), tensor_shapes), max_size=6))
def test_every_file_is_read_as_it_was_written(wanted: dict[str, tuple[str, list[int]]]) -> None:
    tensors: Tensors = {}
    for number, (name, (dtype, shape)) in enumerate(wanted.items()):
        count = ITEM_BYTES[dtype]
        for length in shape:
            count *= length
        tensors[name] = dtype, shape, bytes([number]) * count
    tensors.pop("__metadata__", None)
    found = read_safetensors(file_of(tensors, {"a": "b"}))
    assert found.metadata == {"a": "b"}
    assert {name: (each.dtype, each.shape, bytes(each.data)) for name, each in found.tensors.items()} == tensors


@given(st.binary(max_size=300))
def test_bytes_are_a_file_or_a_refusal(body: bytes) -> None:
    try:
        read_safetensors(body)
    except RequestFailed as failed:
        assert failed.message


@given(st.integers(0, len(file_of(PACKED)) - 1), st.integers(0, 255), st.integers(0, 40))
def test_a_damaged_file_is_never_read_beyond_its_end(place: int, value: int, cut: int) -> None:
    body = bytearray(file_of(PACKED, {"top_n": "2"}))
    body[place] = value
    try:
        _, inputs = decode_binary(bytes(body[: len(body) - cut]), RerankBody)
    except RequestFailed as failed:
        assert len(failed.message) < 1000
        return
    for each in (*inputs.queries, *inputs.documents):
        assert len(each.embeddings) == each.rows * each.dim * {"float32": 4, "float16": 2, "bfloat16": 2}[each.dtype]


@pytest.mark.parametrize("tensors", [pytest.param(PACKED, id="packed"), pytest.param(SINGLE, id="one-by-one")])
@pytest.mark.parametrize("content_type", ["application/vnd.safetensors", "Application/Octet-Stream; x=y"])
def test_tensors_rank_as_base64_does(tensors: Tensors, content_type: str) -> None:
    surface = Surface()
    headers = {"content-type": content_type}
    response = surface.request("POST", "/rerank", content=file_of(tensors), headers=headers)
    assert indices(response) == [1, 2, 0]
    assert all("document" not in result for result in response.json()["results"])
    (task,) = surface.ranker.tasks
    assert [bytes_of(document) for document in task.documents] == [rows(count)[2] for count in (1, 3, 2)]
    scores = surface.request("POST", "/v1/score", content=file_of(tensors), headers=headers).json()["data"]
    assert [each["score"] for each in scores] == [1.0, 3.0, 2.0]


def bytes_of(value: object) -> bytes:
    assert isinstance(value, EmbeddingsInput)
    return bytes(value.embeddings)


def test_options_are_strings_beside_the_tensors() -> None:
    options = {"top_n": "2", "score_mode": "mean", "return_documents": "false", "format": "pt", "timeout_ms": "500"}
    response = Surface().request("POST", "/rerank", content=file_of(PACKED, options), headers=HEADERS)
    assert [(each["index"], each["relevance_score"]) for each in response.json()["results"]] == [(1, 0.75), (2, 0.5)]
    decoded, _ = decode_binary(file_of(PACKED, options), RerankBody)
    assert (decoded.top_n, decoded.return_documents, decoded.timeout_ms) == (2, False, 500)


def test_score_pairs_queries_and_documents() -> None:
    tensors: Tensors = {"query.0": rows(1), "query.1": rows(2), "document.0": rows(3), "document.1": rows(1)}
    scores = Surface().request("POST", "/score", content=file_of(tensors), headers=HEADERS).json()["data"]
    assert [each["score"] for each in scores] == [3.0, 1.0]
    refused = Surface().request("POST", "/rerank", content=file_of(tensors), headers=HEADERS)
    assert message_of(refused) == "query: 2 tensors, expected 1"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param({"documents": rows(1), "cu_seqlens": ints(0, 1)}, "query: required", id="no-query"),
        pytest.param({"query": rows(1)}, "documents: required", id="no-documents"),
        pytest.param({"query": rows(1), "documents": rows(1)}, "cu_seqlens: required", id="no-ends"),
        pytest.param({**PACKED, "cu_seqlens": ints(0, 7)}, "cu_seqlens: expected 0", id="ends-beyond"),
        pytest.param({**PACKED, "cu_seqlens": ints(0, 4, 4, 6)}, "cu_seqlens: expected 0", id="empty-document"),
        pytest.param({**PACKED, "cu_seqlens": ints(1, 6)}, "cu_seqlens: expected 0", id="not-from-0"),
        pytest.param({**PACKED, "cu_seqlens": ints(0, -1, 6)}, "cu_seqlens: expected 0", id="negative"),
        pytest.param({**PACKED, "cu_seqlens": rows(1)}, "cu_seqlens: F32", id="ends-of-floats"),
        pytest.param({**PACKED, "query": ints(1)}, "query.dtype: I32", id="query-of-ints"),
        pytest.param({**PACKED, "query": ("F32", [4], rows(1)[2])}, "query.shape: [4]", id="query-of-one-dimension"),
        pytest.param({**PACKED, "query": ("F32", [0, 4], b"")}, "query.shape: [0, 4]", id="query-of-no-rows"),
        pytest.param({**PACKED, "other": rows(1)}, "other: no such tensor", id="another-tensor"),
        pytest.param({**SINGLE, "document.7": rows(1)}, "document.7: no such tensor", id="a-number-left-out"),
    ],
)
def test_wrong_tensors_are_refused_by_name(tensors: Tensors, message: str) -> None:
    response = Surface().request("POST", "/rerank", content=file_of(tensors), headers=HEADERS)
    assert message_of(response).startswith(message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"", "body: 0 bytes", id="nothing"),
        pytest.param(b"\xff" * 8, "header: ", id="header-of-exabytes"),
        pytest.param((2).to_bytes(8, "little") + b"[]", "header: ", id="header-is-a-list"),
        pytest.param((2).to_bytes(8, "little") + b"{{", "body: not JSON", id="header-is-not-json"),
        pytest.param(file_of(PACKED)[:-1], "cu_seqlens.data_offsets: ", id="cut"),
        pytest.param(file_of(PACKED) + b"x", "body: ", id="too-long"),
        pytest.param(file_of(PACKED, shape=[2, 5]), "query: 32 bytes, expected 40", id="shape"),
        pytest.param(file_of(PACKED, shape=[2**53, 2**53]), "query: 32 bytes", id="shape-overflows"),
        pytest.param(file_of(PACKED, dtype="F64"), "query.dtype: 'F64'", id="dtype"),
        pytest.param(file_of(PACKED, data_offsets=[4, 36]), "query.data_offsets: ", id="hole"),
        pytest.param(file_of(PACKED, data_offsets=[0, 10**9]), "query.data_offsets: ", id="beyond-the-end"),
        pytest.param(file_of(PACKED, data_offsets=[0, -1]), "query.data_offsets[", id="negative"),
        pytest.param(file_of(PACKED, {"top_n": 3}), "__metadata__", id="option-is-a-number"),
        pytest.param(file_of(PACKED, {"top_n": "-1"}), "__metadata__.top_n: ", id="option-out-of-range"),
        pytest.param(file_of(PACKED, {"score_mode": "best"}), "__metadata__.score_mode: ", id="option-unknown"),
    ],
)
def test_what_is_not_such_a_file_is_refused(body: bytes, message: str) -> None:
    for path in ("/rerank", "/score"):
        response = Surface().request("POST", path, content=body, headers=HEADERS)
        if not ("top_n" in message and path == "/score"):
            assert message_of(response).startswith(message)


@pytest.mark.parametrize(
    "content_type", [None, "", "application/json", "text/plain", "application/json; charset=utf-8"]
)
def test_anything_else_is_json(content_type: str | None) -> None:
    assert not is_binary(content_type)


def test_the_limit_of_documents_holds_for_tensors() -> None:
    surface = Surface(max_documents_per_request=2)
    response = surface.request("POST", "/rerank", content=file_of(PACKED), headers=HEADERS)
    assert message_of(response).startswith("documents: 3, at most 2")


def test_bfloat16_and_float16_keep_their_bytes() -> None:
    tensors: Tensors = {"query": ("BF16", [1, 4], b"\x80\x3f" * 4), "document.0": ("F16", [1, 4], b"\x00\x3c" * 4)}
    _, inputs = decode_binary(file_of(tensors), ScoreBody)
    assert [(each.dtype, bytes(each.embeddings)) for each in (inputs.queries[0], inputs.documents[0])] == [
        ("bfloat16", b"\x80\x3f" * 4),
        ("float16", b"\x00\x3c" * 4),
    ]

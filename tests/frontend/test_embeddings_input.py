"""A client's own embeddings: what they decode to, and that what does not fit its shape is refused by name."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.embeddings_input import EmbeddingsPayload, decode_embeddings, decode_sent
from frontend.errors import RequestFailed
from frontend.ranking import EmbeddingsInput
from frontend.schemas import InputObject, decode_rerank
from ipc.messages import FloatDType

FORMATS: dict[FloatDType, str] = {"float32": "f", "float16": "e"}
FINE = base64.b64encode(struct.pack("<4f", 1, 2, 3, 4)).decode()


def payload_of(**changes: Any) -> EmbeddingsPayload:
    return EmbeddingsPayload(**{"data": FINE, "shape": [2, 2], **changes})


@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 9), st.integers(1, 9), st.data())
def test_embeddings_arrive_as_they_were_sent(dtype: FloatDType, rows: int, dim: int, data: st.DataObject) -> None:
    size = rows * dim
    floats = st.floats(width=16, allow_nan=False) if dtype == "float16" else st.floats(width=32, allow_nan=False)
    values = data.draw(st.lists(floats, min_size=size, max_size=size))
    packed = struct.pack(f"<{size}{FORMATS[dtype]}", *values)
    given_payload = EmbeddingsPayload(base64.b64encode(packed).decode(), [rows, dim], dtype)
    decoded = decode_embeddings(given_payload, "query")
    assert (decoded.embeddings, decoded.dtype, decoded.rows, decoded.dim) == (packed, dtype, rows, dim)


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        pytest.param(payload_of(data=""), "0 characters of base64, expected 24", id="nothing"),
        pytest.param(payload_of(data=FINE + FINE), "48 characters of base64, expected 24", id="too-much"),
        pytest.param(payload_of(data=FINE.rstrip("=")), "22 characters of base64, expected 24", id="no-padding"),
        pytest.param(payload_of(dtype="float16"), "expected 12 for float16 of shape [2, 2]", id="another-dtype"),
        pytest.param(payload_of(dtype="bfloat16"), "expected 12 for bfloat16 of shape [2, 2]", id="bfloat16"),
        pytest.param(payload_of(shape=[2, 3]), "expected 32 for float32 of shape [2, 3]", id="another-shape"),
        pytest.param(payload_of(shape=[2**31 - 1, 2**31 - 1]), "24 characters of base64", id="huge-shape"),
        pytest.param(payload_of(data="-_" * 11 + "=="), "not base64", id="url-safe-alphabet"),
        pytest.param(payload_of(data="é" * 24), "not base64", id="not-ascii"),
        pytest.param(payload_of(data=" " + FINE[1:]), "not base64", id="a-blank"),
        pytest.param(payload_of(data="A" * 24), "18 bytes, expected 16", id="bytes-in-place-of-padding"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_by_name(payload: EmbeddingsPayload, rule: str) -> None:
    with pytest.raises(RequestFailed) as caught:
        decode_embeddings(payload, "documents[3]")
    assert caught.value.param == "documents[3].embeddings.data"
    assert caught.value.message.startswith("documents[3].embeddings.data: ")
    assert rule in caught.value.message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"shape": [2]}, "shape", id="one-number"),
        pytest.param({"shape": [1, 2, 2]}, "shape", id="three-numbers"),
        pytest.param({"shape": [0, 2]}, "shape[0]", id="no-rows"),
        pytest.param({"shape": [2, -2]}, "shape[1]", id="negative-dim"),
        pytest.param({"shape": [2, 2.5]}, "shape[1]", id="fraction"),
        pytest.param({"shape": [True, 2]}, "shape[0]", id="boolean"),
        pytest.param({"shape": [2, 10**400]}, "shape[1]", id="beyond-a-float"),
        pytest.param({"shape": "2x2"}, "shape", id="string"),
        pytest.param({"dtype": "float8"}, "dtype", id="unknown-dtype"),
        pytest.param({"dtype": "float64"}, "dtype", id="float64"),
        pytest.param({"data": [1.0]}, "data", id="list-of-numbers"),
    ],
)
def test_a_wrong_type_is_refused_with_the_path_to_it(changes: dict[str, Any], field: str) -> None:
    document = {"embeddings": {"data": FINE, "shape": [2, 2], **changes}}
    with pytest.raises(RequestFailed) as caught:
        decode_document(document)
    assert caught.value.param == f"documents[1].embeddings.{field}"


def test_the_dtype_is_float32_unless_said() -> None:
    assert decode_document({"embeddings": {"data": FINE, "shape": [2, 2]}}) == decode_embeddings(payload_of(), "")


def test_rows_of_numbers_are_float32() -> None:
    decoded = decode_document({"embeddings": [[1, 2.5], [-3e-3, 4]]})
    assert decoded == EmbeddingsInput(struct.pack("<4f", 1, 2.5, -3e-3, 4), "float32", 2, 2)


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        pytest.param([], "", id="none"),
        pytest.param([[]], "", id="no-numbers"),
        pytest.param([[1, 2], [3]], "[1]", id="rows-of-other-lengths"),
        pytest.param([[1, "2"]], "[0][1]", id="a-string"),
        pytest.param([1, 2], "[0]", id="numbers-alone"),
    ],
)
def test_wrong_rows_are_refused_by_name(rows: Any, field: str) -> None:
    with pytest.raises(RequestFailed) as caught:
        decode_document({"embeddings": rows})
    assert caught.value.param == f"documents[1].embeddings{field}"


def decode_document(document: dict[str, Any]) -> EmbeddingsInput:
    """The second document of a request."""
    decoded = decode_rerank(json.dumps({"query": "q", "documents": ["d", document]}).encode())
    assert isinstance(decoded.documents, list)
    second = decoded.documents[1]
    assert isinstance(second, InputObject)
    return decode_sent(second.embeddings, "documents[1]")

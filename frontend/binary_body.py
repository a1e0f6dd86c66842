"""Bulk embeddings in: a query and documents as tensors of a safetensors body, for /rerank and /score.

    query                     [rows, dim]; or query.0, query.1, ... where there are several
    documents + cu_seqlens    [total rows, dim] and [n + 1] I32 or I64: 0, then where each document ends
    document.0, document.1    [rows, dim] each, in place of those two

Embeddings are F32, F16 or BF16. The request's options are the strings of `__metadata__`, by the names that they have in
JSON: "top_n": "10", "score_mode": "mean".
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import msgspec

from frontend.errors import invalid
from frontend.json_body import explain
from frontend.ranking import EmbeddingsInput
from frontend.safetensors_body import Tensor, read_safetensors
from frontend.schemas import CommonBody
from ipc.messages import FloatDType

MEDIA_TYPES = frozenset({"application/vnd.safetensors", "application/octet-stream"})

Body = TypeVar("Body", bound=CommonBody)

_DTYPES: Mapping[str, FloatDType] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_WORDS = {"I32": "i", "I64": "q"}  # array's type codes
_INPUTS = frozenset(
    {
        "query",
        "query_b64",
        "query_shape",
        "queries",
        "documents",
        "items",
        "texts",
        "data_1",
        "data_2",
        "text_1",
        "text_2",
    }
)


def is_binary(content_type: str | None) -> bool:
    """Whether a body of this type holds tensors."""
    return content_type is not None and content_type.partition(";")[0].strip().lower() in MEDIA_TYPES


@dataclass(frozen=True, slots=True)
class BinaryInputs:
    """The two sides; views of the body."""

    queries: list[EmbeddingsInput]
    documents: list[EmbeddingsInput]


def decode_binary(body: bytes, kind: type[Body]) -> tuple[Body, BinaryInputs]:
    """The options as a body of this kind, without its inputs, and the inputs.

    Raises:
        RequestFailed: 400, naming the tensor or option and the rule.
    """
    file = read_safetensors(body)
    options = {name: value for name, value in file.metadata.items() if name not in _INPUTS}
    try:
        decoded = msgspec.convert(options, kind, strict=False)
    except msgspec.ValidationError as error:
        raise explain(error, "__metadata__", kind) from None
    left = dict(file.tensors)
    queries = _one_or_numbered(left, "query")
    documents = _packed(left) if "documents" in left else _one_or_numbered(left, "document")
    if left:
        name = next(iter(left))[:64]
        raise invalid(f"{name}: no such tensor; expected query, documents with cu_seqlens, or document.0, ...", name)
    return decoded, BinaryInputs(queries, documents)


def _one_or_numbered(left: dict[str, Tensor], name: str) -> list[EmbeddingsInput]:
    """Tensor `name`, or `name`.0, `name`.1, ...; taken out of `left`."""
    if name in left and name != "document":
        return [_embeddings(name, left.pop(name))]
    found: list[EmbeddingsInput] = []
    while (numbered := f"{name}.{len(found)}") in left:
        found.append(_embeddings(numbered, left.pop(numbered)))
    if not found:
        raise invalid(f"{name if name == 'query' else 'documents'}: required", name)
    return found


def _packed(left: dict[str, Tensor]) -> list[EmbeddingsInput]:
    """`documents`, cut where `cu_seqlens` says; both taken out of `left`."""
    together = _embeddings("documents", left.pop("documents"))
    if "cu_seqlens" not in left:
        raise invalid("cu_seqlens: required beside documents", "cu_seqlens")
    ends = _ends(left.pop("cu_seqlens"), together.rows)
    data, row_bytes = memoryview(together.embeddings), len(together.embeddings) // together.rows
    return [
        EmbeddingsInput(data[start * row_bytes : end * row_bytes], together.dtype, end - start, together.dim)
        for start, end in pairwise(ends)
    ]


def _ends(tensor: Tensor, rows: int) -> array[int]:
    """Prefix sums of the documents' rows: from 0 to all of them, each document with one at least."""
    if tensor.dtype not in _WORDS or len(tensor.shape) != 1 or tensor.shape[0] < 2:
        raise invalid(
            f"cu_seqlens: {tensor.dtype} of shape {tensor.shape}, expected I32 or I64 of shape [n + 1]", "cu_seqlens"
        )
    ends = array(_WORDS[tensor.dtype], tensor.data.tobytes())
    is_rising = all(start < end for start, end in pairwise(ends))
    if ends[0] != 0 or ends[-1] != rows or not is_rising:
        raise invalid(f"cu_seqlens: expected 0, then rising ends of documents, the last {rows}", "cu_seqlens")
    return ends


def _embeddings(name: str, tensor: Tensor) -> EmbeddingsInput:
    if tensor.dtype not in _DTYPES:
        raise invalid(f"{name}.dtype: {tensor.dtype}, expected F32, F16 or BF16", name)
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise invalid(f"{name}.shape: {tensor.shape}, expected [rows, dim], at least 1 each", name)
    rows, dim = tensor.shape
    return EmbeddingsInput(tensor.data, _DTYPES[tensor.dtype], rows, dim)

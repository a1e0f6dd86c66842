"""A client's own embeddings in JSON: base64 with dtype and shape, or rows of numbers; checked before they are used."""

from __future__ import annotations

import binascii
from array import array
from itertools import chain
from typing import Annotated, get_args

import msgspec

from frontend.errors import invalid
from frontend.json_body import decode_body
from frontend.ranking import EmbeddingsInput
from ipc.arrays import ITEM_BYTES
from ipc.messages import FloatDType

Shape = Annotated[
    list[Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]],
    msgspec.Meta(min_length=2, max_length=2),
]
RowsOfNumbers = list[list[float]]


class EmbeddingsPayload(msgspec.Struct, frozen=True):
    """Token embeddings of one text.

    `data` is base64 (standard alphabet, padded) of the rows, one after the other, little-endian; `shape` is
    [rows, dim].
    """

    data: str
    shape: Shape
    dtype: FloatDType = "float32"


# Kept as JSON until its text's turn comes: rows of numbers take ten times their bytes once they are decoded.
SentEmbeddings = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="data in base64 with shape and dtype, or rows of numbers",
        extra_json_schema={
            "anyOf": [
                {
                    "type": "object",
                    "required": ["data", "shape"],
                    "properties": {
                        "data": {"type": "string"},
                        "shape": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                        "dtype": {"enum": list(get_args(FloatDType))},
                    },
                },
                {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
                {"type": "null"},
            ]
        },
    ),
]

_payload = msgspec.json.Decoder(EmbeddingsPayload)
_numbers = msgspec.json.Decoder(RowsOfNumbers)


def is_given(sent: msgspec.Raw) -> bool:
    """Whether the field is there, and not null."""
    return bytes(sent) not in (b"", b"null")


def decode_sent(sent: msgspec.Raw, field: str) -> EmbeddingsInput:
    """What a field `embeddings` holds; the rest as `decode_embeddings`."""
    if bytes(memoryview(sent)[:1]) == b"[":
        return from_numbers(decode_body(_numbers, sent, f"{field}.embeddings"), f"{field}.embeddings")
    return decode_embeddings(decode_body(_payload, sent, f"{field}.embeddings"), field)


def from_numbers(rows: RowsOfNumbers, name: str) -> EmbeddingsInput:
    """Rows of numbers as float32.

    Raises:
        RequestFailed: there is none, or they differ in length; names the field `name`.
    """
    dim = len(rows[0]) if rows else 0
    if not dim:
        raise invalid(f"{name}: empty, at least 1 row of 1 number", name)
    for place, row in enumerate(rows):
        if len(row) != dim:
            raise invalid(f"{name}[{place}]: {len(row)} numbers, {dim} in the rows before", f"{name}[{place}]")
    return EmbeddingsInput(array("f", chain.from_iterable(rows)).tobytes(), "float32", len(rows), dim)


def decode_embeddings(payload: EmbeddingsPayload, field: str, name: str = "") -> EmbeddingsInput:
    """The embeddings of one text. The reranker checks that their dim is the model's, the worker that they are finite
    (it reads them anyway).

    Raises:
        RequestFailed: length or base64 are wrong; names `name`, or else the `data` of `field`.
    """
    name = name or f"{field}.embeddings.data"
    rows, dim = payload.shape
    num_bytes = rows * dim * ITEM_BYTES[payload.dtype]
    num_characters = 4 * -(-num_bytes // 3)
    if len(payload.data) != num_characters:  # before anything of that size is allocated
        raise invalid(
            f"{name}: {len(payload.data)} characters of base64, expected {num_characters} for {payload.dtype} of shape "
            f"[{rows}, {dim}]",
            name,
        )
    try:
        data = binascii.a2b_base64(payload.data, strict_mode=True)
    except ValueError:
        raise invalid(f"{name}: not base64 (standard alphabet, padded)", name) from None
    if len(data) != num_bytes:  # padding in place of the last bytes
        raise invalid(
            f"{name}: {len(data)} bytes, expected {num_bytes} for {payload.dtype} of shape [{rows}, {dim}]", name
        )
    return EmbeddingsInput(data, payload.dtype, rows, dim)

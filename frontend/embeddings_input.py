"""A client's own embeddings in JSON: base64 with dtype and shape, checked before they are decoded."""

from __future__ import annotations

import binascii
from typing import Annotated

import msgspec

from frontend.errors import invalid
from frontend.ranking import EmbeddingsInput
from ipc.arrays import ITEM_BYTES
from ipc.messages import FloatDType


class EmbeddingsPayload(msgspec.Struct, frozen=True):
    """Token embeddings of one text.

    `data` is base64 (standard alphabet, padded) of the rows, one after the other, little-endian; `shape` is
    [rows, dim].
    """

    data: str
    shape: Annotated[
        list[Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]],
        msgspec.Meta(min_length=2, max_length=2),
    ]
    dtype: FloatDType = "float32"


def decode_embeddings(payload: EmbeddingsPayload, field: str) -> EmbeddingsInput:
    """The embeddings of one text. The reranker checks that their dim is the model's, the worker that they are finite
    (it reads them anyway).

    Raises:
        RequestFailed: length or base64 are wrong; names `field`.
    """
    name = f"{field}.embeddings.data"
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

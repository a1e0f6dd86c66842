"""A client's own embeddings in JSON: base64 with dtype and shape, checked before they are decoded."""

from __future__ import annotations

import binascii

import msgspec

from frontend.errors import invalid
from frontend.ranking import EmbeddingsInput
from ipc.arrays import ITEM_BYTES
from ipc.messages import FloatDType


class EmbeddingsPayload(msgspec.Struct, frozen=True):
    """Token embeddings of one text.

    `data` is base64 (standard alphabet, padded) of the rows, one after the other, little-endian; `shape` is [rows, dim].
    """

    data: str
    shape: list[int]
    dtype: FloatDType = "float32"


def decode_embeddings(payload: EmbeddingsPayload, field: str) -> EmbeddingsInput:
    """The embeddings of one text. Their dim and whether they are finite is checked where the model is known.

    Raises:
        RequestFailed: shape, length or base64 are wrong; names `field`.
    """
    if len(payload.shape) != 2 or any(isinstance(n, bool) or n < 1 for n in payload.shape):
        raise invalid(f"{field}.embeddings.shape: {payload.shape[:4]}, expected [rows, dim], each at least 1", field)
    rows, dim = payload.shape
    expected = rows * dim * ITEM_BYTES[payload.dtype]
    if len(payload.data) != 4 * -(-expected // 3):
        raise invalid(
            f"{field}.embeddings.data: {len(payload.data)} characters of base64, shape {payload.shape} of "
            f"{payload.dtype} needs {4 * -(-expected // 3)}",
            field,
        )
    try:
        data = binascii.a2b_base64(payload.data, strict_mode=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{field}.embeddings.data: not base64", field) from None
    if len(data) != expected:
        raise invalid(f"{field}.embeddings.data: {len(data)} bytes, shape and dtype need {expected}", field)
    return EmbeddingsInput(data, payload.dtype, rows, dim)

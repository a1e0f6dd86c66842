"""How token embeddings are written: numbers, base64, or bytes. Whole answers are large, so run these in a thread.

Numbers are encoded text by text: the encoder in C holds the interpreter lock for one text at a time, not for an answer.
"""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from typing import Literal

import msgspec

from frontend.embedding import EmbeddingResult
from ipc.arrays import ITEM_BYTES

Endianness = Literal["native", "big", "little"]

_encoder = msgspec.json.Encoder()
_WORDS = {2: "H", 4: "I"}  # array's type codes of unsigned words by their bytes


def as_numbers(result: EmbeddingResult) -> list[msgspec.Raw]:
    """Each text as JSON, [rows, dim] numbers. The embeddings are float32."""
    assert result.dtype == "float32"
    raw = []
    for text in result.texts:
        flat = text.embeddings.cast("f").tolist() if text.rows else []
        rows = [flat[start : start + result.dim] for start in range(0, len(flat), result.dim)]
        raw.append(msgspec.Raw(_encoder.encode(rows)))
    return raw


def as_bytes(result: EmbeddingResult, endianness: Endianness) -> list[bytes]:
    """Each text's rows, one after the other."""
    return [_in_order(text.embeddings, ITEM_BYTES[result.dtype], endianness) for text in result.texts]


def as_base64(result: EmbeddingResult, endianness: Endianness) -> list[str]:
    """Each text's rows, one after the other, in base64."""
    return [b64encode(data).decode() for data in as_bytes(result, endianness)]


def as_base64_rows(result: EmbeddingResult) -> list[list[str]]:
    """Each row of each text in base64: Jina's way."""
    row_bytes = result.dim * ITEM_BYTES[result.dtype]
    return [
        [b64encode(text.embeddings[row * row_bytes : (row + 1) * row_bytes]).decode() for row in range(text.rows)]
        for text in result.texts
    ]


def _in_order(data: memoryview, item_bytes: int, endianness: Endianness) -> bytes:
    """The wire between our processes is little-endian."""
    if endianness == "little" or (endianness == "native" and sys.byteorder == "little"):
        return bytes(data)
    words = array(_WORDS[item_bytes], bytes(data))
    words.byteswap()
    return words.tobytes()

"""A request body in safetensors: tensors by name as views of the body, and strings beside them.

    8 bytes     length of the header, little-endian
    header      JSON: {"name": {"dtype", "shape", "data_offsets": [start, end]}, ..., "__metadata__": {string: string}}
    the rest    the tensors' bytes, little-endian, row by row, without gaps

Everything is checked against the body's own length before it is used, and nothing is copied.
Source: the format's description at github.com/huggingface/safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from frontend.errors import invalid
from frontend.json_body import decode_body

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 4 * 2**20  # 40,000 tensors
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8}
_METADATA = "__metadata__"

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Entry(msgspec.Struct, frozen=True):
    """What the header says of one tensor."""

    dtype: str
    shape: Annotated[list[_Size], msgspec.Meta(max_length=8)]
    data_offsets: Annotated[list[_Size], msgspec.Meta(min_length=2, max_length=2)]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: `data` is as long as dtype and shape say."""

    dtype: str  # a key of ITEM_BYTES
    shape: list[int]
    data: memoryview


@dataclass(frozen=True, slots=True)
class SafetensorsBody:
    """A whole body."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


_header = msgspec.json.Decoder(dict[str, msgspec.Raw])
_entry = msgspec.json.Decoder(_Entry)
_metadata = msgspec.json.Decoder(dict[str, str])


def read_safetensors(body: bytes) -> SafetensorsBody:
    """
    Raises:
        RequestFailed: 400, naming the tensor and the rule.
    """
    if len(body) < LENGTH_BYTES:
        raise invalid(f"body: {len(body)} bytes, a safetensors file has at least {LENGTH_BYTES}")
    length = int.from_bytes(body[:LENGTH_BYTES], "little")
    if length > min(len(body) - LENGTH_BYTES, MAX_HEADER_BYTES):
        raise invalid(
            f"header: {length} bytes, at most {MAX_HEADER_BYTES}, and within the body of {len(body)}", "header"
        )
    view = memoryview(body)
    sections = decode_body(_header, bytes(view[LENGTH_BYTES : LENGTH_BYTES + length]), "header")
    metadata = decode_body(_metadata, sections.pop(_METADATA), _METADATA) if _METADATA in sections else {}
    entries = {name: decode_body(_entry, raw, _shown(name)) for name, raw in sections.items()}
    data = view[LENGTH_BYTES + length :]
    _check_layout(entries, len(data))
    return SafetensorsBody({name: _tensor(name, entry, data) for name, entry in entries.items()}, metadata)


def _shown(name: str) -> str:
    """A tensor's name in a message: the client's own words are echoed only in part."""
    return name[:64]


def _check_layout(entries: Mapping[str, _Entry], num_bytes: int) -> None:
    """The tensors lie one after the other, and fill the file."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        if start != end or stop < start or stop > num_bytes:
            raise invalid(
                f"{_shown(name)}.data_offsets: [{start}, {stop}], expected a start at {end}, an end within {num_bytes}",
                _shown(name),
            )
        end = stop
    if end != num_bytes:
        raise invalid(f"body: {num_bytes} bytes after the header, the tensors take {end}")


def _tensor(name: str, entry: _Entry, data: memoryview) -> Tensor:
    shown = _shown(name)
    if entry.dtype not in ITEM_BYTES:
        raise invalid(f"{shown}.dtype: {entry.dtype[:40]!r}, expected one of {', '.join(ITEM_BYTES)}", shown)
    start, stop = entry.data_offsets
    expected = math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
    if stop - start != expected:
        shape = ", ".join(map(str, entry.shape))
        raise invalid(f"{shown}: {stop - start} bytes, expected {expected} for {entry.dtype} of shape [{shape}]", shown)
    return Tensor(entry.dtype, entry.shape, data[start:stop])

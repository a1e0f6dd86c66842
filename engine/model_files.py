"""The files of a checkpoint's directory, read with care: what is missing, cut short or of another type is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class ModelError(Exception):
    """A model cannot be served. One line for a person: what was found, in which file and key, what to do."""


@dataclass(frozen=True, slots=True)
class JsonFile:
    """A JSON object and where it was read; getters name both in their errors."""

    path: Path
    values: Mapping[str, Any]

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get_int(self, key: str, default: int) -> int:
        """A whole number above 0; `default` where the key is missing or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, "a whole number above 0")
        return value

    def get_bool(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def get_str(self, key: str, default: str) -> str:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def get_words(self, key: str, default: list[str]) -> list[str]:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self.error(key, "a list of strings")
        return list(value)

    def get_object(self, key: str) -> JsonFile:
        """An object inside this one; empty where the key is missing or null."""
        value = self.values.get(key)
        if value is None:
            return JsonFile(self.path, {})
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return JsonFile(self.path, value)

    def error(self, key: str, expected: str) -> ModelError:
        """What to raise where `key` has a value that cannot be used."""
        return ModelError(f"{self.path}: {key} is {self.values.get(key)!r}, expected {expected}")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A safetensors file that is all there; or, of a dummy, the place where it would be."""

    path: Path
    header: bytes
    tensors: Mapping[str, Any]  # name -> dtype, shape, data_offsets
    is_dummy: bool = False  # has no tensors: random ones take their places, in the shapes that the configuration says

    def shape_of(self, name: str) -> list[int] | None:
        """None: no such tensor."""
        entry = self.tensors.get(name)
        return list(entry["shape"]) if entry is not None else None

    def start_of(self, name: str) -> int:
        """Where in the file the tensor's bytes begin."""
        return 8 + len(self.header) + int(self.tensors[name]["data_offsets"][0])


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checkpoint's directory, and what has been read of it (the fingerprint is made of that)."""

    directory: Path
    is_dummy: bool = False  # weights are not read, even if they are there
    contents: dict[str, bytes] = field(default_factory=dict)  # path inside the directory -> content
    weights: dict[str, WeightsFile] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        return (self.directory / name).is_file()

    def read_json(self, name: str) -> JsonFile:
        """A JSON object.

        Raises:
            ModelError: the file is not there or holds something else.
        """
        path = self.directory / name
        value = self._parse(name)
        if not isinstance(value, dict):
            raise ModelError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
        return JsonFile(path, value)

    def read_json_if_there(self, name: str) -> JsonFile:
        """As `read_json`; an empty object where there is no such file."""
        return self.read_json(name) if self.has(name) else JsonFile(self.directory / name, {})

    def read_modules(self, name: str) -> list[JsonFile]:
        """The objects of a JSON list, by their `idx`."""
        path = self.directory / name
        modules = self._parse(name)
        if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
            raise ModelError(f"{path}: expected a JSON list of modules")
        entries = [JsonFile(path, module) for module in modules]
        for entry in entries:
            if not isinstance(entry.values.get("idx"), int):
                raise entry.error("idx", "the module's number")
        return sorted(entries, key=lambda entry: int(entry.values["idx"]))

    def read_weights(self, folder: str = "") -> WeightsFile:
        """The header of `folder`'s model.safetensors; nothing of a dummy.

        Raises:
            ModelError: it is not there (perhaps weights are pickled or split), or shorter than its header says.
        """
        name = str(Path(folder) / "model.safetensors")
        path = self.directory / name
        if self.is_dummy:
            return WeightsFile(path, b"", {}, is_dummy=True)
        if not path.is_file():
            raise ModelError(_why_no_weights(path))
        self.weights[name] = _read_weights(path)
        return self.weights[name]

    def _parse(self, name: str) -> Any:
        path = self.directory / name
        try:
            content = path.read_bytes()
            value = json.loads(content)
        except FileNotFoundError:
            raise ModelError(f"{path}: not there; not a checkpoint, or not downloaded whole") from None
        except (ValueError, RecursionError, OSError) as error:
            raise ModelError(f"{path}: not readable as JSON ({error})") from None
        self.contents[name] = content
        return value


def _why_no_weights(path: Path) -> str:
    if path.with_name("model.safetensors.index.json").is_file():
        return f"{path}: not there, but an index of split weights is; save the model in one file"
    pickled = sorted(found for pattern in PICKLED for found in path.parent.glob(pattern))
    if pickled:
        return f"{pickled[0]}: pickled weights can run code and are not loaded; save the model as model.safetensors"
    return f"{path}: not there; the checkpoint was not downloaded whole"


def _read_weights(path: Path) -> WeightsFile:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = file.read(length)
        entries = json.loads(header)
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        end = max((_end_of(entry) for entry in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file ({error}); download it again") from None
    expected, size = 8 + length + end, path.stat().st_size
    if size != expected:
        raise ModelError(f"{path}: {size} bytes, but its header says {expected}; download it again")
    return WeightsFile(path, header, tensors)


def _end_of(entry: Mapping[str, Any]) -> int:
    """Where a tensor ends, after the header. What else a header can get wrong, safetensors finds on loading."""
    start, end = entry["data_offsets"]
    for number in (start, end, *entry["shape"]):
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"{number!r} in its header, expected a whole number from 0")
    return int(end)

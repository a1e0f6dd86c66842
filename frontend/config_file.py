"""--config: the settings as a TOML file, by the names of their flags without the dashes.

    model = "path/to/colbert"
    api-server-count = 4
    api-key = ["first", "second"]
    embedding-cache-size = "8GiB"

A flag wins over its environment variable, a variable over the file, the file over the default. Values obey the same
rules as on the command line.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from frontend.options import ConfigError, NamedOption

LARGEST = 2**20  # bytes: a settings file is small


def read_config_file(path: str, options: Sequence[NamedOption]) -> dict[str, list[str]]:
    """The file's settings as words, by field.

    Raises:
        ConfigError: it cannot be read, is no TOML, has a key that is no setting, or a value of a kind that none takes.
    """
    known = {_key(named): named for named in options if named.field != "config"}
    found = {}
    for key, value in _load(path).items():
        named = known.get(key)
        if named is None:
            close = key.lower().replace("_", "-").lstrip("-")
            hint = f"; did you mean {close}?" if close in known else ""
            raise ConfigError(f"--config {path}: {key[:100]} is no setting{hint}")
        values = value if isinstance(value, list) else [value]
        if isinstance(value, list) and not named.option.repeatable:
            raise ConfigError(f"--config {path}: {key}: takes one value, got a list")
        found[named.field] = [_word(each, f"--config {path}: {key}") for each in values]
    return found


def source_of(path: str, named: NamedOption) -> str:
    """How an error names a setting of the file."""
    return f"--config {path}: {_key(named)}"


def _key(named: NamedOption) -> str:
    return named.field.replace("_", "-")


def _load(path: str) -> Mapping[str, object]:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}") from None
    if len(content) > LARGEST:
        raise ConfigError(f"--config: {path}: more than {LARGEST} bytes")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"--config: {path} is not TOML: {error}") from None


def _word(value: object, source: str) -> str:
    """As it would be written on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigError(f"{source}: expected a text, a number, true or false, got a {type(value).__name__}")

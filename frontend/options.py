"""How a setting is written on the command line and in the environment, and how its text becomes a value.

A settings struct annotates each field with an `Option`; `read` fills the struct's fields from argv and the environment
(a flag wins over its variable, a variable over the default), `build_parser` makes the manual that `--help` prints.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn, get_type_hints

import msgspec

ENVIRONMENT_PREFIX = "MAXSIMD_"
TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})
SIZE_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
SECONDS_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class ConfigError(ValueError):
    """A setting that is wrong. The text names the flag or variable, and the rule it breaks."""


@dataclass(frozen=True, slots=True)
class Option:
    """How one field of a settings struct is documented and read.

    Attributes:
        group: heading in the manual.
        help: what it does and how to choose a value.
        parse: text to value; raises ValueError with the rule ("must be ...").
        metavar: stands for the value in the manual; empty for a switch.
        default_text: the default in words, where it is computed or not obvious from the value.
        repeatable: the flag may be given several times; its variable holds a comma-separated list.
        positional: given without a flag.
        empty_is_wrong: an empty variable does not count as unset: a secret that is missing must not open the server.
    """

    group: str
    help: str
    parse: Callable[[str], object]
    metavar: str = ""
    default_text: str = ""
    repeatable: bool = False
    positional: bool = False
    empty_is_wrong: bool = False

    @property
    def is_switch(self) -> bool:
        return not self.metavar


@dataclass(frozen=True, slots=True)
class NamedOption:
    """An option with the names that follow from its field."""

    field: str
    option: Option
    default: object

    @property
    def flag(self) -> str:
        return self.option.metavar if self.option.positional else "--" + self.field.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.field.upper()

    @property
    def shown_default(self) -> str:
        if self.option.default_text:
            return self.option.default_text
        if self.option.is_switch:
            return "off"
        if self.option.metavar == "SIZE" and isinstance(self.default, int):
            return format_size(self.default)
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


# --- what a value may be --------------------------------------------------------------------------------------


def text(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


def switch(value: str) -> bool:
    if value.lower() in TRUE_WORDS:
        return True
    if value.lower() in FALSE_WORDS:
        return False
    raise ValueError(f"must be 1 or 0 (or true, false, yes, no, on, off), got {value!r}")


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, got {value!r}")
        return value

    return parse


def root_path(value: str) -> str:
    """A path that begins with a slash; one at its end is taken off."""
    path = value.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path) or {".", ".."} & set(path.split("/")):
        raise ValueError(f"must be a path such as /rerankers/colbert, got {value!r}")
    return path


def origin(value: str) -> str:
    """`*`, or an origin as browsers send it, which is in lower case."""
    if value != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@\\,*]+", value.lower()):
        raise ValueError(f"must be * or an origin such as https://app.example.org, got {value!r}")
    return value.lower()


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(value: str) -> int:
        rule = f"must be a whole number from {low} to {high}, got {value!r}"
        if not re.fullmatch(r"-?[0-9]{1,18}", value):
            raise ValueError(rule)
        if not low <= int(value) <= high:
            raise ValueError(rule)
        return int(value)

    return parse


def size(low: int, high: int) -> Callable[[str], int]:
    """A parser of sizes in bytes from `low` to `high`, such as 4GiB, 512MiB or 1048576."""

    def parse(value: str) -> int:
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]*)", value)
        if match is None or match[2].upper() not in SIZE_UNITS:
            raise ValueError(f"must be a size such as 512MiB or 4GiB, got {value!r}")
        number = int(float(match[1]) * SIZE_UNITS[match[2].upper()])
        if not low <= number <= high:
            raise ValueError(f"must be from {format_size(low)} to {format_size(high)}, got {value!r}")
        return number

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    """A parser of durations in seconds from `low` to `high`; 500ms, 30s, 5m and 1h are understood too."""

    def parse(value: str) -> float:
        match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|)", value)
        if match is None:
            raise ValueError(f"must be a number of seconds such as 30, 0.5, 500ms or 5m, got {value!r}")
        number = float(match[1]) * SECONDS_UNITS[match[2]]
        if not low <= number <= high:
            raise ValueError(f"must be from {low:g} to {high:g} seconds, got {value!r}")
        return number

    return parse


def share(value: str) -> float:
    """A part of a whole."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0.0 < number <= 1.0:
        raise ValueError("must be a number above 0 and at most 1")
    return number


def format_size(number: int) -> str:
    """4294967296 as '4GiB': the largest binary unit that divides it."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number and number % factor == 0:
            return f"{number // factor}{unit}"
    return str(number)


# --- reading --------------------------------------------------------------------------------------------------


def named_options(kind: type[msgspec.Struct]) -> list[NamedOption]:
    """The options of a settings struct, in the order of its fields."""
    hints = get_type_hints(kind, include_extras=True)
    named = []
    for field in msgspec.structs.fields(kind):
        options = [extra for extra in getattr(hints[field.name], "__metadata__", ()) if isinstance(extra, Option)]
        if len(options) != 1:
            raise TypeError(f"{kind.__name__}.{field.name} needs exactly one Option")
        default = field.default if field.default is not msgspec.NODEFAULT else None
        named.append(NamedOption(field.name, options[0], default))
    return named


def read(
    options: Sequence[NamedOption],
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    file: Mapping[str, Sequence[str]] = {},
    source_in_file: Callable[[NamedOption], str] = lambda named: named.field,
) -> dict[str, object]:
    """The values that were given, by field; a field that was not given is absent.

    Args:
        file: words of a settings file, by field; flags and variables win over it.
        source_in_file: how an error names a setting of the file.

    Raises:
        ConfigError: a value breaks its rule.
    """
    given = {}
    for named in options:
        if hasattr(arguments, named.field):
            given[named.field] = _parse(named, named.flag, getattr(arguments, named.field))
        elif (words := _words_of_variable(named, environment)) is not None:
            given[named.field] = _parse(named, named.variable, words)
        elif named.field in file:
            given[named.field] = _parse(named, source_in_file(named), file[named.field])
    return given


def misspelt_variables(options: Sequence[NamedOption], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that are no setting's but look like one's, and which: a key in MAXSIMD_API_KEYS closes no door."""
    known = [named.variable for named in options]
    close = {
        name: get_close_matches(name, known, n=1, cutoff=0.9)
        for name in environment
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known
    }
    return {name: matches[0] for name, matches in close.items() if matches}


def _words_of_variable(named: NamedOption, environment: Mapping[str, str]) -> list[str] | None:
    """None: it is not set, or empty, which counts as that but for secrets."""
    value = environment.get(named.variable)
    if value is None or not (value.strip() or named.option.empty_is_wrong):
        return None
    return [word.strip() for word in (value.split(",") if named.option.repeatable else [value])]


def _parse(named: NamedOption, source: str, words: Iterable[str]) -> object:
    try:
        values = [named.option.parse(word) for word in words]
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    return tuple(values) if named.option.repeatable else values[-1]


class ManualParser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def add_options(parser: argparse.ArgumentParser, options: Sequence[NamedOption]) -> None:
    """Add every option to the parser, under its heading. Values stay text: `read` judges them."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for named in options:
        option = named.option
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        _add(groups[option.group], named)


def _add(group: argparse._ArgumentGroup, named: NamedOption) -> None:
    option = named.option
    description = f"{option.help} [default: {named.shown_default}; {named.variable}]".replace("%", "%%")
    if option.positional:
        group.add_argument(
            named.field,
            nargs="?",
            metavar=option.metavar,
            action=_Positional,
            default=argparse.SUPPRESS,
            help=description,
        )
    elif option.is_switch:
        group.add_argument(
            named.flag,
            dest=named.field,
            action="append_const",
            const="true",
            default=argparse.SUPPRESS,
            help=description,
        )
    else:
        group.add_argument(
            named.flag,
            dest=named.field,
            metavar=option.metavar,
            action="append",
            default=argparse.SUPPRESS,
            help=description,
        )


class _Positional(argparse.Action):
    """Stores one positional argument as a list of one, as the flags store theirs; nothing where none was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if isinstance(values, str):
            setattr(namespace, self.dest, [values])

"""JSON in: a typed decoder's complaint becomes a 400 that names the field and the rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from frontend.errors import MAX_ECHO, RequestFailed, invalid

ScoreMode = Literal["raw", "mean", "unit"]
AnyBody = TypeVar("AnyBody")

_MISSING = "Object missing required field "
_NOTHING = msgspec.Raw(b"")


def decode_body(decoder: msgspec.json.Decoder[AnyBody], body: bytes | msgspec.Raw, within: str = "") -> AnyBody:
    """A body of any kind, or a part of one.

    Args:
        within: the field that `body` is the value of.

    Raises:
        RequestFailed: 400, naming the field and the rule.
    """
    if not body:
        raise invalid("body: empty, expected a JSON object")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise explain(error, within, decoder.type) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"body: not JSON ({str(error)[:MAX_ECHO]})") from None


def explain(error: msgspec.ValidationError, within: str = "", kind: Any = None) -> RequestFailed:
    """The field and the rule, from "Expected `int`, got `str` - at `$.top_n`". Values are echoed only in part.

    Args:
        kind: the type that was expected; says what the values of an enumeration are, which msgspec does not.
    """
    text = str(error)
    problem, is_placed, place = text.rpartition(" - at `$")
    field = place.rstrip("`").lstrip(".") if is_placed else ""
    problem = problem if is_placed else text
    if len(problem) > MAX_ECHO:
        problem = f"{problem[:MAX_ECHO]}..."
    if problem.startswith(_MISSING):
        problem, field = "required", ".".join(filter(None, (field, problem[len(_MISSING) :].strip("`"))))
    if problem.startswith("Invalid enum value") and (choices := _choices(kind, field)):
        problem = f"{problem}; expected {' or '.join(filter(None, (', '.join(choices[:-1]), choices[-1])))}"
    if within:
        field = within + (field if field.startswith("[") else f".{field}" if field else "")
    return invalid(f"{field or 'body'}: {problem}", field or None)


def sent_fields(body: bytes, *names: str) -> Mapping[str, msgspec.Raw]:
    """Those of these fields that a body has and that are not null; none if it is not JSON. Says whose language somebody
    speaks whose body could not be decoded.
    """
    try:
        sent = _raw_fields(names).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    values = {name: getattr(sent, name) for name in names}
    return {name: value for name, value in values.items() if bytes(memoryview(value)[:4]) not in (b"", b"null")}


@lru_cache(maxsize=16)
def _raw_fields(names: tuple[str, ...]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(msgspec.defstruct("Sent", [(name, msgspec.Raw, _NOTHING) for name in names]))


def _choices(kind: Any, path: str) -> tuple[str, ...]:
    """The values that a field within a type may have, as strings; empty where it is no enumeration."""
    name, _, rest = path.partition(".")
    hint = get_type_hints(kind).get(name.partition("[")[0]) if isinstance(kind, type) else None
    if rest:
        return next(filter(None, (_choices(part, rest) for part in get_args(hint))), ())
    return tuple(_literals(hint))


def _literals(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield from map(str, get_args(hint))
    else:
        for part in get_args(hint):
            yield from _literals(part)

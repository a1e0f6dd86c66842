"""JSON in: a typed decoder's complaint becomes a 400 that names the field and the rule."""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

import msgspec

from frontend.errors import MAX_ECHO, RequestFailed, invalid
from ipc.messages import FloatDType

ScoreMode = Literal["raw", "mean", "unit"]
AnyBody = TypeVar("AnyBody")

_MISSING = "Object missing required field "
_ALLOWED = {  # what msgspec's own message does not say
    "score_mode": get_args(ScoreMode),
    "dtype": get_args(FloatDType),
    "relevant_spans.mode": ("enabled", "disabled"),
}


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
        raise explain(error, within) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"body: not JSON ({str(error)[:MAX_ECHO]})") from None


def explain(error: msgspec.ValidationError, within: str = "") -> RequestFailed:
    """The field and the rule, from "Expected `int`, got `str` - at `$.top_n`". Values are echoed only in part."""
    text = str(error)
    problem, is_placed, place = text.rpartition(" - at `$")
    field = place.rstrip("`").lstrip(".") if is_placed else ""
    problem = problem if is_placed else text
    if len(problem) > MAX_ECHO:
        problem = f"{problem[:MAX_ECHO]}..."
    if problem.startswith(_MISSING):
        problem, field = "required", ".".join(filter(None, (field, problem[len(_MISSING) :].strip("`"))))
    rule = _ALLOWED.get(field) or _ALLOWED.get(field.rpartition(".")[2])
    if rule is not None:
        problem = f"{problem}; expected {', '.join(rule[:-1])} or {rule[-1]}"
    if within:
        field = within + (field if field.startswith("[") else f".{field}" if field else "")
    return invalid(f"{field or 'body'}: {problem}", field or None)

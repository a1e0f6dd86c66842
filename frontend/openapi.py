"""The OpenAPI 3.1 document, made of the types that requests are decoded with and answers are encoded from.

What a field means is said once, at the field (`msgspec.Meta`), and what a route does in its handler's docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.dialect import Dialect
from frontend.docs_page import docs_page
from frontend.error_bodies import ERROR_OF, ErrorBody, VllmError
from frontend.version import VERSION

Json = dict[str, Any]

TITLE = "maxsimd"
DESCRIPTION = (
    "Late-interaction reranking: MaxSim over token embeddings. Unknown fields are ignored, and every optional field "
    "may be null. A wrong request gets a 4xx that names field and rule."
)
_REFERENCE = "#/components/schemas/{name}"
_JSON = "application/json"
_BINARY = {"type": "string", "format": "binary"}
_ERRORS = {
    400: "The request is wrong",
    401: "No key, or not one of the server's",
    404: "No such model (with --strict-model-name)",
    408: "The body did not come within --request-timeout, or the headers within 10 s",
    413: "The body is larger than --max-body-bytes",
    429: "Too much waits to be encoded; in a flood decided before the body is read",
    431: "More than 100 headers, or 32 KiB of them",
    500: "Our fault; the log has the request id",
    503: "A service is away, the deadline has passed, or the server stops",
}
_OF_BODIES = frozenset({404, 408, 413, 429})  # only where there is a body
_OF_CONNECTIONS = frozenset({400, 408, 431})  # may come before the path is known, and so in vLLM's words
_RETRY = {
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"},
    "retry-after-ms": {"schema": {"type": "integer"}, "description": "Milliseconds"},
}
_TIMEOUT = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds; lowers --request-timeout",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of request.

    Attributes:
        handler: its docstring is the description.
        body: type of the JSON body; None: no body.
        body_media: other content types that the body may have; tensors, in all of them.
        answers: types of the JSON answers, one of which comes.
        answer_media: other content types that an answer may have.
        dialects: in whose words errors come.
        example: a JSON body that is answered with a 200.
        is_probe: needs no key.
    """

    paths: tuple[str, ...]
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    method: Literal["GET", "POST"] = "GET"
    body: type | None = None
    body_media: tuple[str, ...] = ()
    answers: tuple[Any, ...] = ()
    answer_media: tuple[str, ...] = ()
    dialects: tuple[Dialect, ...] = (Dialect.VLLM,)
    example: Json | None = None
    is_probe: bool = False

    @property
    def errors(self) -> list[type[ErrorBody]]:
        return [ERROR_OF[dialect] for dialect in self.dialects]


class Documentation:
    """The document, and the page that shows it; made when first asked for."""

    def __init__(self, operations: Sequence[Operation], is_keyed: bool, root_path: str = "") -> None:
        self._operations = operations
        self._is_keyed = is_keyed
        self._root_path = root_path

    @cached_property
    def document(self) -> Json:
        return openapi_document(self._operations, self._is_keyed, self._root_path)

    @cached_property
    def json(self) -> bytes:
        return msgspec.json.encode(self.document)

    @cached_property
    def page(self) -> bytes:
        return docs_page(self.document).encode()


def openapi_document(operations: Sequence[Operation], is_keyed: bool, root_path: str = "") -> Json:
    """The OpenAPI 3.1 document, as JSON's objects.

    Args:
        is_keyed: whether requests need an API key.
        root_path: what a proxy puts before the paths.
    """
    types = _types(operations)
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: Json = {}
    for operation in operations:
        for path in operation.paths:
            paths[path] = {operation.method.lower(): _operation(operation, path, schema_of, is_keyed)}
    parts: Json = {"schemas": components}
    if is_keyed:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": VERSION, "description": DESCRIPTION},
        **({"servers": [{"url": root_path}]} if root_path else {}),
        "paths": paths,
        "components": parts,
    }


def _types(operations: Sequence[Operation]) -> list[Any]:
    """Every type that is in a body or an answer, once."""
    found: dict[str, Any] = {}
    for operation in operations:
        for kind in (*filter(None, [operation.body]), *operation.answers, *operation.errors, VllmError):
            found.setdefault(repr(kind), kind)
    return list(found.values())


def _operation(operation: Operation, path: str, schema_of: Json, is_keyed: bool) -> Json:
    described: Json = {
        "operationId": f"{operation.method.lower()}{path.replace('/', '_').replace('.', '_')}",
        "summary": operation.summary,
        "description": inspect.getdoc(operation.handler) or "",
        "responses": {"200": _answer(operation, schema_of), **_errors(operation, schema_of, is_keyed)},
    }
    if is_keyed and not operation.is_probe:
        described["security"] = [{"key": []}]
    if operation.body is not None:
        described["parameters"] = [_TIMEOUT]
        described["requestBody"] = _body(operation, schema_of)
    return described


def _body(operation: Operation, schema_of: Json) -> Json:
    content: Json = {_JSON: {"schema": schema_of[repr(operation.body)]}}
    if operation.example is not None:
        content[_JSON]["example"] = operation.example
    content.update({media: {"schema": _BINARY} for media in operation.body_media})
    return {"required": True, "content": content}


def _answer(operation: Operation, schema_of: Json) -> Json:
    content: Json = {media: {} if media == _JSON else {"schema": _BINARY} for media in operation.answer_media}
    if operation.answers:
        content[_JSON] = {"schema": _any_of([schema_of[repr(kind)] for kind in operation.answers])}
    return {"description": "The answer", **({"content": content} if content else {})}


def _errors(operation: Operation, schema_of: Json, is_keyed: bool) -> Json:
    errors: Json = {}
    for status, description in _ERRORS.items():
        if status in _OF_BODIES and operation.body is None and status not in _OF_CONNECTIONS:
            continue
        if status == 401 and (not is_keyed or operation.is_probe):
            continue
        kinds = [*operation.errors, *([VllmError] if status in _OF_CONNECTIONS else [])]
        schema = _any_of(list({repr(kind): schema_of[repr(kind)] for kind in kinds}.values()))
        errors[str(status)] = {"description": description, "content": {_JSON: {"schema": schema}}}
        if status in (429, 503):
            errors[str(status)]["headers"] = _RETRY
    return errors


def _any_of(schemas: list[Json]) -> Json:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}

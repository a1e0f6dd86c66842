"""Whose language a request speaks: chosen by its path and its keys, it decides how answers and errors are written."""

from __future__ import annotations

import enum

from starlette.types import Scope

_KEY = "maxsimd.dialect"


class Dialect(enum.StrEnum):
    """The vocabularies that clients know. VLLM's is also OpenAI's and, but for names of fields, Jina's."""

    VLLM = "vllm"
    COHERE = "cohere"
    TEI = "tei"
    INFINITY = "infinity"
    JINA = "jina"
    NEXT_PLAID = "next-plaid"


_BY_PATH = {
    "/embed_all": Dialect.TEI,
    "/encode": Dialect.NEXT_PLAID,
    "/rerank_with_encoding": Dialect.NEXT_PLAID,
    "/v1/multi-vector": Dialect.JINA,
}


def dialect_of(scope: Scope) -> Dialect:
    """What `speak` has found out, else what the path says."""
    known = scope.get(_KEY)
    if isinstance(known, Dialect):
        return known
    path = scope["path"]
    return _BY_PATH.get(path, Dialect.COHERE if path.startswith("/v2/") else Dialect.VLLM)


def speak(scope: Scope, dialect: Dialect) -> None:
    """The request's keys or the server's settings have said more than its path."""
    scope[_KEY] = dialect

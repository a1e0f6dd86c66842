"""How an error is written, in each dialect."""

from __future__ import annotations

import msgspec

from frontend.dialect import Dialect


class VllmErrorDetail(msgspec.Struct, frozen=True):
    """`param` is the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: int


class VllmError(msgspec.Struct, frozen=True):
    """vLLM's, which is OpenAI's; `detail` and `message` are for Jina's rerankers and Cohere's v1."""

    error: VllmErrorDetail
    detail: str
    message: str


class CohereError(msgspec.Struct, frozen=True):
    """Cohere's; `id` is the request's."""

    message: str
    id: str


class TeiError(msgspec.Struct, frozen=True):
    """TEI's."""

    error: str
    error_type: str


class NextPlaidError(msgspec.Struct, frozen=True):
    """next-plaid's."""

    code: str
    message: str


class JinaError(msgspec.Struct, frozen=True):
    """Jina's."""

    detail: str
    code: str
    request_id: str


ErrorBody = VllmError | CohereError | TeiError | NextPlaidError | JinaError

ERROR_OF: dict[Dialect, type[ErrorBody]] = {
    Dialect.VLLM: VllmError,
    Dialect.COHERE: CohereError,
    Dialect.TEI: TeiError,
    Dialect.INFINITY: VllmError,
    Dialect.JINA: JinaError,
    Dialect.NEXT_PLAID: NextPlaidError,
}

"""What GET routes say of the server: its models, in vLLM's and Infinity's words, and TEI's /info."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Version(msgspec.Struct, frozen=True):
    version: str


class ServerLoad(msgspec.Struct, frozen=True):
    """vLLM's."""

    server_load: int


class InfinityHealth(msgspec.Struct, frozen=True):
    """Infinity's: the time."""

    unix: float


class NimHealth(msgspec.Struct, frozen=True):
    """NIM's."""

    status: str
    message: str
    object: str = "health.response"


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's and OpenAI's; means nothing here."""

    id: str
    created: int
    object: str = "model_permission"
    allow_create_engine: bool = False
    allow_sampling: bool = False
    allow_logprobs: bool = False
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class CheckResult(msgspec.Struct, frozen=True):
    """How far the encoder's scores lay from a plain one's, and what was allowed."""

    passed: bool
    pairs: int
    largest_difference: float
    tolerance: float
    dtype: str
    device: str
    checked_at: Annotated[int, Meta(description="Unix time in seconds")]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A name under which the model is served."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "maxsimd"
    root: str
    parent: str | None = None
    max_model_len: Annotated[int, Meta(description="The longer of the limits of queries and documents, in tokens")]
    permission: list[Permission]
    self_check: Annotated[CheckResult | None, Meta(description="null: no encoder, or not ready")]


class ModelList(msgspec.Struct, frozen=True):
    """vLLM's and OpenAI's."""

    data: list[Model]
    object: str = "list"


class InfinityStats(msgspec.Struct, frozen=True):
    """Always 0: /metrics has the numbers."""

    queue_fraction: float = 0.0
    queue_absolute: int = 0
    results_pending: int = 0
    batch_size: int = 0


class InfinityModel(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    stats: InfinityStats = InfinityStats()
    object: str = "model"
    owned_by: str = "infinity"
    created: int
    backend: str = "torch"
    capabilities: tuple[str, ...] = ("rerank",)


class InfinityModelList(msgspec.Struct, frozen=True):
    """Infinity's."""

    data: list[InfinityModel]
    object: str = "list"


class TeiReranker(msgspec.Struct, frozen=True):
    id2label: dict[str, str]
    label2id: dict[str, int]


class TeiModelType(msgspec.Struct, frozen=True):
    """Dify looks for `reranker`."""

    reranker: TeiReranker


class TeiInfo(msgspec.Struct, frozen=True, kw_only=True):
    """TEI's description of the server."""

    model_id: str
    model_sha: str | None = None
    model_dtype: str
    served_model_name: str
    model_type: TeiModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int
    auto_truncate: bool = True
    tokenization_workers: int = 1
    version: str
    sha: str | None = None
    docker_label: str | None = None

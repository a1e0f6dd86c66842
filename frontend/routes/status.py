"""GET /health, /live, /ready, /version, /metrics, /v1/models and others' words for them: what the server is, and how it
is.
"""

from __future__ import annotations

import time

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from frontend.call import api_of
from frontend.errors import RequestFailed, error_response
from frontend.status_schemas import (
    CheckResult,
    InfinityHealth,
    InfinityModel,
    InfinityModelList,
    Model,
    ModelList,
    NimHealth,
    Permission,
    ServerLoad,
    TeiInfo,
    TeiModelType,
    TeiReranker,
    Version,
)
from frontend.version import VERSION
from ipc.messages import ErrorCode, SelfCheck

_STARTED = int(time.time())


async def live(request: Request) -> Response:
    """200 while this process answers at all: a reason to leave it running."""
    return Response(b"", 200)


async def health(request: Request) -> Response:
    """200 while requests can be answered, 503 while worker or engine are away (as vLLM's). Infinity's clients, under
    --dialect infinity, find the time in it.
    """
    api = api_of(request)
    if api.config.dialect == "infinity" and api.ranker.is_ready:
        return _json(InfinityHealth(time.time()))
    return _probe(request, api.ranker.is_ready, "the worker or the encoder is away")


async def ready(request: Request) -> Response:
    """200 while this server should be sent requests: healthy, and not about to stop."""
    api = api_of(request)
    if api.is_draining():
        return _probe(request, False, "stopping")
    return _probe(request, api.ranker.is_ready, "the worker or the encoder is not there yet")


async def nim_live(request: Request) -> Response:
    """NIM's /live."""
    return _json(NimHealth("live", "Service is live."))


async def nim_ready(request: Request) -> Response:
    """NIM's /ready."""
    answer = await ready(request)
    return _json(NimHealth("ready", "Service is ready.")) if answer.status_code == 200 else answer


async def load(request: Request) -> Response:
    """vLLM's: how many requests this API server has let in that have not ended."""
    return _json(ServerLoad(api_of(request).admission.outstanding))


async def version(request: Request) -> Response:
    """This software's."""
    return _json(Version(VERSION))


async def metrics(request: Request) -> Response:
    """Prometheus text: all API servers of this launch added up, worker and engine beside them."""
    api = api_of(request)
    return Response(api.metrics.render(await api.ranker.statistics()), 200, media_type=CONTENT_TYPE_LATEST)


async def models(request: Request) -> Response:
    """vLLM's list, one entry per served name, and what the encoder's self-check found."""
    api = api_of(request)
    spec = api.ranker.spec
    names = api.model_names
    max_length = max(spec.query.max_length, spec.document.max_length) if spec is not None else 0
    self_check = _describe_check(api.ranker.self_check)
    data = [_model(name, names[0], max_length, self_check) for name in names]
    return _json(ModelList(data))


async def infinity_models(request: Request) -> Response:
    """Infinity's list."""
    api = api_of(request)
    return _json(InfinityModelList([InfinityModel(id=name, created=_STARTED) for name in api.model_names]))


async def tei_info(request: Request) -> Response:
    """TEI's description of the server; Dify looks for `reranker` in `model_type`."""
    api = api_of(request)
    spec = api.ranker.spec
    check = api.ranker.self_check
    limit = api.config.max_documents_per_request
    max_length = max(spec.query.max_length, spec.document.max_length) if spec is not None else 0
    return _json(
        TeiInfo(
            model_id=api.model_names[0],
            model_dtype=check.dtype if check is not None else "float32",
            served_model_name=api.model_names[0],
            model_type=TeiModelType(TeiReranker({"0": "MaxSim"}, {"MaxSim": 0})),
            max_concurrent_requests=limit,
            max_input_length=max_length,
            max_batch_tokens=max_length,
            max_client_batch_size=limit,
            version=VERSION,
        )
    )


def _describe_check(check: SelfCheck | None) -> CheckResult | None:
    return None if check is None else CheckResult(passed=check.passes, **msgspec.structs.asdict(check))


def _model(name: str, root: str, max_length: int, self_check: CheckResult | None) -> Model:
    return Model(
        id=name,
        created=_STARTED,
        root=root,
        max_model_len=max_length,
        permission=[Permission(id=f"modelperm-{name}", created=_STARTED)],
        self_check=self_check,
    )


def _probe(request: Request, is_fine: bool, reason: str) -> Response:
    if is_fine:
        return Response(b"", 200)
    failure = RequestFailed(ErrorCode.UNAVAILABLE, reason, retry_after_ms=1000)
    return error_response(request.scope, failure)


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), 200, media_type="application/json")

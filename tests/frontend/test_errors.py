"""Errors as clients see them: one status per code, each dialect's shape, and never more than a client should know."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Scope

from frontend.errors import HTTP_STATUS, MAX_MESSAGE, HttpError, RequestFailed, error_response, invalid
from ipc.errors import ServiceFailed
from ipc.messages import ErrorCode
from tests.frontend.surface import Surface


def scope_of(path: str, request_id: str) -> Scope:
    return {"type": "http", "path": path, "maxsimd.request_id": request_id}


def content(response: Response) -> Any:
    return json.loads(bytes(response.body))


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.INVALID_REQUEST, 400),
        (HttpError.UNAUTHORIZED, 401),
        (HttpError.NOT_FOUND, 404),
        (HttpError.METHOD_NOT_ALLOWED, 405),
        (HttpError.REQUEST_TIMEOUT, 408),
        (HttpError.BODY_TOO_LARGE, 413),
        (ErrorCode.OVERLOADED, 429),
        (ErrorCode.WORKER_CRASHED, 500),
        (ErrorCode.INTERNAL, 500),
        (ErrorCode.UNAVAILABLE, 503),
        (ErrorCode.DEADLINE_EXCEEDED, 503),
        (ErrorCode.STALE_EPOCH, 503),
    ],
)
def test_each_code_has_its_status(code: ErrorCode | HttpError, status: int) -> None:
    assert error_response(scope_of("/rerank", "id"), RequestFailed(code, "m")).status_code == status


def test_no_code_is_without_a_status() -> None:
    assert set(HTTP_STATUS) == {*ErrorCode, *HttpError}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/score", "/nowhere", "/v2"])
def test_the_error_is_in_vllms_shape_with_what_jinas_clients_read(path: str) -> None:
    response = error_response(scope_of(path, "id"), invalid("top_n: wrong", "top_n"))
    assert content(response) == {
        "error": {"message": "top_n: wrong", "type": "BadRequestError", "param": "top_n", "code": 400},
        "detail": "top_n: wrong",
        "message": "top_n: wrong",
    }


def test_on_v2_the_error_is_in_coheres_shape() -> None:
    response = error_response(scope_of("/v2/rerank", "the-id"), invalid("top_n: wrong", "top_n"))
    assert (response.status_code, content(response)) == (400, {"message": "top_n: wrong", "id": "the-id"})


def test_a_services_failure_has_the_same_shape_and_no_param() -> None:
    response = error_response(scope_of("/rerank", "id"), ServiceFailed(ErrorCode.WORKER_CRASHED, "died twice"))
    assert response.status_code == 500
    assert content(response)["error"] == {
        "message": "died twice",
        "type": "WorkerCrashedError",
        "param": None,
        "code": 500,
    }


@pytest.mark.parametrize(
    ("retry_after_ms", "seconds", "milliseconds"),
    [
        pytest.param(2500, "3", "2500", id="seconds-are-rounded-up"),
        pytest.param(1, "1", "1", id="never-zero"),
        pytest.param(0, "1", "1000", id="unknown"),
    ],
)
@pytest.mark.parametrize("code", [ErrorCode.OVERLOADED, ErrorCode.UNAVAILABLE, ErrorCode.DEADLINE_EXCEEDED])
def test_429_and_503_say_when_to_try_again(
    code: ErrorCode, retry_after_ms: int, seconds: str, milliseconds: str
) -> None:
    response = error_response(scope_of("/v2/rerank", "id"), ServiceFailed(code, "m", retry_after_ms))
    assert response.headers["retry-after"] == seconds
    assert response.headers["retry-after-ms"] == milliseconds


@pytest.mark.parametrize("code", [ErrorCode.INVALID_REQUEST, ErrorCode.INTERNAL, ErrorCode.WORKER_CRASHED])
def test_other_errors_do_not_invite_to_try_again(code: ErrorCode) -> None:
    response = error_response(scope_of("/rerank", "id"), RequestFailed(code, "m", retry_after_ms=1000))
    assert "retry-after" not in response.headers and "retry-after-ms" not in response.headers


def test_a_401_says_how_to_authenticate() -> None:
    response = error_response(scope_of("/rerank", "id"), RequestFailed(HttpError.UNAUTHORIZED, "m"))
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank"])
def test_a_message_is_capped(path: str) -> None:
    """A body of one long wrong field is not sent back three times over."""
    response = error_response(scope_of(path, "id"), invalid("x" * 1_000_000))
    assert len(content(response)["message"]) <= MAX_MESSAGE + 3
    assert len(bytes(response.body)) < 4 * MAX_MESSAGE


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/rerank/", "did you mean /rerank?"),
        ("//v1/rerank", "did you mean /v1/rerank?"),
        ("/v1/v2/rerank", "did you mean /v2/rerank?"),
        ("/v1/rerank/rerank", "did you mean /rerank?"),
        ("/", "/docs lists what is"),
        ("/v1/chat/completions", "/docs lists what is"),
    ],
)
def test_a_path_that_a_base_url_has_spoilt_is_put_right(path: str, hint: str) -> None:
    response = Surface().request("POST", f"http://server{path}", json={})
    assert response.status_code == 404
    assert response.json()["message"] == f"path: {path} is not served; {hint}"

"""schemathesis makes requests of the OpenAPI document; a real server answers each as it says, never with a 500.

The same requests each time; more of them, and new ones: pytest -m long tests/end_to_end/test_schemathesis.py
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, Response
from schemathesis.specs.openapi import checks

from frontend.openapi import Documentation
from frontend.operations import OPERATIONS
from tests.end_to_end.running_server import Server

AS_DOCUMENTED = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
LIMIT = 60.0  # seconds for one answer
unhealthy = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]


@schemathesis.serializer("application/vnd.safetensors")
def tensors(context: Any, value: Any) -> Any:
    """Tensors as schemathesis makes them: any bytes."""
    return value if isinstance(value, bytes) else str(value).encode()


schema = schemathesis.openapi.from_dict(json.loads(Documentation(OPERATIONS, is_keyed=False).json))


def test_the_document_is_the_servers(shared_server: Server) -> None:
    assert httpx.get(f"{shared_server.url}/openapi.json").json() == schema.raw_schema


@schema.parametrize()
@settings(max_examples=12, derandomize=True, deadline=None, database=None, suppress_health_check=unhealthy)
def test_every_answer_is_as_the_document_says(case: Case[Any], shared_server: Server) -> None:
    check(case, shared_server)


@pytest.mark.long
@schema.parametrize()
@settings(max_examples=400, deadline=None, database=None, suppress_health_check=unhealthy)
def test_every_answer_to_many_more_is_as_the_document_says(case: Case[Any], shared_server: Server) -> None:
    check(case, shared_server)


def check(case: Case[Any], server: Server) -> None:
    response = case.call(base_url=server.url, timeout=LIMIT)
    case.validate_response(response, checks=[no_failure_of_ours, *AS_DOCUMENTED])


def no_failure_of_ours(context: Any, response: Response, case: Case[Any]) -> None:
    """A 503 is an answer only where the request set a deadline."""
    body = case.body if isinstance(case.body, dict) else {}
    has_deadline = body.get("timeout_ms") is not None or "X-Request-Timeout" in (case.headers or {})
    assert response.status_code < 500 or (response.status_code == 503 and has_deadline), response.text

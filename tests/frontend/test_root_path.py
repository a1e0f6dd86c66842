"""--root-path: a proxy's prefix, left on or taken off; what lies behind it decides who needs a key."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.auth import PUBLIC_PATHS, digest_of
from frontend.cli import parse_command_line
from frontend.options import ConfigError
from tests.frontend.surface import DOCUMENTS, QUERY, Surface, indices

ROOT = "/rerankers/colbert"
KEYED: dict[str, Any] = {"api_key_digests": (digest_of("key"),), "root_path": ROOT}
BODY = {"query": QUERY, "documents": DOCUMENTS}


@pytest.mark.parametrize("path", ["/rerank", f"{ROOT}/rerank", f"{ROOT}/v1/rerank"])
def test_the_prefix_may_be_left_on_or_taken_off(path: str) -> None:
    assert indices(Surface(root_path=ROOT).post(path, BODY))[0] == 3


def test_the_dialect_is_that_of_the_path_behind() -> None:
    surface = Surface(root_path=ROOT)
    assert set(surface.post(f"{ROOT}/v2/rerank", {"query": QUERY}).json()) == {"message", "id"}
    assert surface.post(f"{ROOT}/v2/rerank", BODY).json()["meta"]["api_version"] == {"version": "2"}


@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS))
def test_probes_behind_the_prefix_need_no_key(path: str) -> None:
    surface = Surface(**KEYED)
    assert surface.request("GET", ROOT + path).status_code == 200
    assert surface.request("GET", path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        f"{ROOT}/rerank",
        f"{ROOT}/v1/models",
        f"{ROOT}",
        f"{ROOT}/",
        f"{ROOT}{ROOT}/health",
        f"{ROOT}//health",
        f"/{ROOT}/health",
        f"{ROOT}/health/",
        f"{ROOT}/health/../v1/models",
        f"{ROOT}/%2e%2e/health",
        f"{ROOT}x/health",
        f"{ROOT.upper()}/health",
        "/rerankers/health",
        "/health/rerankers/colbert/v1/models",
        "/health;/v1/models",
        "/health%2f..%2fv1/models",
        "/health%00",
        "/v1/models",
    ],
)
def test_everything_else_needs_one(path: str) -> None:
    surface = Surface(**KEYED)
    assert surface.request("GET", path).status_code == 401
    assert surface.request("POST", path, json=BODY).status_code == 401


def test_the_documentation_is_right_behind_it() -> None:
    surface = Surface(root_path=ROOT)
    assert surface.request("GET", f"{ROOT}/openapi.json").json()["servers"] == [{"url": ROOT}]
    assert f"http://127.0.0.1:8000{ROOT}/rerank" in surface.request("GET", f"{ROOT}/docs").text
    assert "servers" not in Surface().request("GET", "/openapi.json").json()


def test_the_metrics_name_the_path_behind() -> None:
    surface = Surface(root_path=ROOT)
    surface.post(f"{ROOT}/rerank", BODY)
    assert 'maxsimd_requests_total{path="/rerank",status="200"} 1.0' in surface.request("GET", "/metrics").text


@pytest.mark.parametrize("given", ["rerankers", "/", "//a", "/a//b", "/a/../b", "/a?b", "/a b", "/ä"])
def test_what_is_no_prefix_is_refused_at_start(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^--root-path: must be a path"):
        parse_command_line(["serve", "--root-path", given], {})


def test_a_slash_at_the_end_does_not_count() -> None:
    assert parse_command_line(["serve", "--root-path", "/a/b/"], {}).root_path == "/a/b"

"""What /metrics counts, and that it adds up over API servers and their restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import values

from frontend.metrics import DIRECTORY_VARIABLE, Metrics
from tests.frontend.surface import DOCUMENTS, QUERY, Surface


def samples(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_count_requests_by_path_and_status_and_show_the_services() -> None:
    surface = Surface()
    surface.rerank()
    surface.rerank(top_n=-1)
    surface.request("GET", "/nowhere/" + "x" * 50)
    response = surface.request("GET", "/metrics")
    values_now = samples(response.text)
    assert response.headers["content-type"].startswith("text/plain")
    assert values_now['maxsimd_requests_total{path="/rerank",status="200"}'] == 1
    assert values_now['maxsimd_requests_total{path="/rerank",status="400"}'] == 1
    assert values_now['maxsimd_requests_total{path="other",status="404"}'] == 1
    assert values_now['maxsimd_request_seconds_count{path="/rerank"}'] == 2
    assert values_now['maxsimd_stage_seconds_count{stage="score"}'] == 1
    assert values_now["maxsimd_pairs_total"] == 4
    assert values_now["maxsimd_prompt_tokens_total"] == len(QUERY) + sum(map(len, DOCUMENTS))
    assert values_now["maxsimd_worker_store_hits"] == 7
    assert values_now["maxsimd_engine_encoded_texts"] == 3


@pytest.fixture
def metrics_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A launch's directory of metrics; afterwards values are this process's own again."""
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    return tmp_path


def test_metrics_add_up_over_api_servers_and_their_restarts(metrics_directory: Path) -> None:
    for slot, requests in ((0, 2), (1, 3), (0, 4)):  # the third is slot 0 again, started anew
        metrics = Metrics(slot)
        for _ in range(requests):
            metrics.requests.labels("/rerank", "200").inc()
    assert samples(metrics.render({}).decode())['maxsimd_requests_total{path="/rerank",status="200"}'] == 9
    assert sorted(path.name for path in metrics_directory.glob("counter_*")) == ["counter_0.db", "counter_1.db"]

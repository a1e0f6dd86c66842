"""Minutes of mixed traffic: every answer right, and nothing grows. Half an hour: `python -m benchmarks.bench_soak`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.sampling import slope
from tests.chaos.soak import Sample, soak
from tests.chaos.truth import Truth
from tests.end_to_end.running_server import Server

SECONDS, WARM_UP, INTERVAL = 240.0, 120.0, 4.0
MOST_GROWTH = 24.0  # MiB over the measured minutes, of what a heap still learns of its traffic; a leak goes on


@pytest.mark.long
def test_nothing_grows_in_minutes_of_mixed_traffic(start: Callable[..., Server], truth: Truth) -> None:
    server = start("--api-server-count", "2", "--embedding-cache-size", "32MiB")
    samples, traffic = soak(server, truth, SECONDS, INTERVAL, connections=8, pause=0.1)
    warm = [sample for sample in samples if sample.seconds >= WARM_UP]
    assert traffic.problems == []
    assert traffic.lost == 0, traffic.reset_errors
    for name in warm[0].holdings:
        growth = slope([each.seconds for each in warm], [memory(each, name) for each in warm]) * (SECONDS - WARM_UP)
        assert growth < MOST_GROWTH, f"{name}: {growth:.0f} MiB in {SECONDS - WARM_UP:.0f} s"
        files = [each.holdings[name].files for each in warm]
        assert slope([each.seconds for each in warm], files) == 0, f"{name}: open files {files}"


def memory(sample: Sample, name: str) -> float:
    return sample.holdings[name].own_mib

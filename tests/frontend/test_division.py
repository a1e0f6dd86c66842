"""Who gets how many threads."""

from __future__ import annotations

from itertools import product

import pytest

from frontend.division import TOKENISING_THREADS, Division, divide_cores


@pytest.mark.parametrize(
    ("cores", "api_servers", "has_engine", "uses_cuda", "expected"),
    [
        (1, 1, True, False, Division(1, 1, 1, 1)),
        (2, 2, True, False, Division(2, 1, 2, 2)),
        (4, 1, True, False, Division(4, 1, 4, 4)),
        (16, 1, True, False, Division(16, 2, 9, 4)),
        (16, 2, True, False, Division(16, 2, 8, 4)),
        (64, 1, True, False, Division(64, 2, 45, 16)),
        (64, 1, False, False, Division(64, 2, 0, 61)),
        (16, 8, True, True, Division(16, 1, 0, 2)),
        (16, 1, True, True, Division(16, 2, 0, 2)),
    ],
)
def test_cores_are_divided(cores: int, api_servers: int, has_engine: bool, uses_cuda: bool, expected: Division) -> None:
    assert divide_cores(cores, api_servers, has_engine, uses_cuda) == expected


def test_nobody_is_left_without_and_large_machines_are_used_up() -> None:
    for cores, api_servers in product(range(5, 130), (1, 2, 3, 8)):
        division = divide_cores(cores, api_servers, True)
        assert 1 <= division.api_server <= TOKENISING_THREADS
        assert division.engine + division.worker <= cores
        used = api_servers * (1 + division.api_server) + division.engine + division.worker
        assert used >= cores, division

"""What children are told about their threads."""

from __future__ import annotations

import pytest

from frontend.division import SPINS, thread_environment

SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture(autouse=True)
def no_setting_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SPINNING:
        monkeypatch.delenv(name, raising=False)


def test_threads_of_openmp_do_not_spin_for_long() -> None:
    assert thread_environment(3) == {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "RAYON_NUM_THREADS": "3",
        "GOMP_SPINCOUNT": SPINS,
    }


@pytest.mark.parametrize("name", SPINNING)
def test_a_user_s_own_setting_of_that_wins(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")  # a child inherits it
    assert not set(SPINNING) & set(thread_environment(3))

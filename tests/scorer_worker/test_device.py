"""The device, and how its memory is divided."""

from __future__ import annotations

import pytest
import torch

from scorer_worker.device import DeviceError, open_device, store_dtype
from scorer_worker.memory_plan import SPARE_BYTES, TooLittleMemory, plan_memory

GIB = 2**30
CUDA = torch.device("cuda", 0)


def test_cuda_without_a_device_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"^--device cuda: torch .*; give --device cpu, or install what is missing$"):
        open_device("cuda")


def test_auto_stores_what_the_device_is_fast_with() -> None:
    assert store_dtype("auto", torch.device("cpu")) == torch.float32
    assert store_dtype("auto", CUDA) == torch.float16
    assert store_dtype("float32", CUDA) == torch.float32


def has(monkeypatch: pytest.MonkeyPatch, free: int, total: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))


def test_the_store_takes_what_is_left_of_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, free=74 * GIB, total=80 * GIB)
    plan = plan_memory(CUDA, GIB, 0.9, None)
    assert (plan.at_start, plan.encoder) == (GIB, 5 * GIB)
    assert plan.store == (72 * GIB - 5 * GIB - SPARE_BYTES) // 2**21 * 2**21
    assert sum(float(line.split()[-2]) for line in list(plan.describe())[:-1]) == pytest.approx(80, abs=0.05)


def test_others_on_the_device_leave_less(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, free=10 * GIB, total=80 * GIB)
    assert plan_memory(CUDA, 60 * GIB, 0.9, None).store == 10 * GIB - SPARE_BYTES


@pytest.mark.parametrize(("utilization", "wanted"), [(0.05, None), (0.5, 60 * GIB)])
def test_what_has_no_room_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, utilization: float, wanted: int | None
) -> None:
    has(monkeypatch, free=74 * GIB, total=80 * GIB)
    with pytest.raises(TooLittleMemory, match="--gpu-memory-utilization 0"):
        plan_memory(CUDA, GIB, utilization, wanted)

"""What `--device auto` finds, without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontend import device
from frontend.device import find_device, has_device_node


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["nvidia0", "nvidiactl"], True),
        (["nvidia7"], True),
        (["dxg"], True),
        (["nvidiactl", "nvidia-uvm"], False),  # the driver without a device
        (["null"], False),
    ],
)
def test_a_device_is_a_numbered_node(tmp_path: Path, names: list[str], expected: bool) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert has_device_node(tmp_path) == expected


@pytest.mark.parametrize(
    ("has_node", "has_torch", "expected"),
    [(True, True, "cuda"), (True, False, "cpu"), (False, True, "cpu"), (False, False, "cpu")],
)
def test_auto_is_cuda_where_device_and_torch_are(
    monkeypatch: pytest.MonkeyPatch, has_node: bool, has_torch: bool, expected: str
) -> None:
    monkeypatch.setattr(device, "has_device_node", lambda directory: has_node)
    monkeypatch.setattr(device, "has_cuda_torch", lambda: has_torch)
    assert find_device("auto") == expected
    assert (find_device("cpu"), find_device("cuda")) == ("cpu", "cuda"), "what was asked for is not changed"

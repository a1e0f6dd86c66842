"""Which device `--device auto` means, found without torch: the launcher never loads it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal


def find_device(asked: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """What was asked for; `auto` is cuda where there is a device and a torch that can use it."""
    if asked != "auto":
        return asked
    return "cuda" if has_device_node(Path("/dev")) and has_cuda_torch() else "cpu"


def has_device_node(directory: Path) -> bool:
    """Whether the kernel shows an NVIDIA device (on WSL: /dev/dxg)."""
    return (
        any(node.name.removeprefix("nvidia").isdigit() for node in directory.glob("nvidia*"))
        or (directory / "dxg").exists()
    )


def has_cuda_torch() -> bool:
    """Whether the torch that is installed was built with CUDA: its library lies there. Imports nothing."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    return (Path(found.origin).parent / "lib" / "libtorch_cuda.so").exists()

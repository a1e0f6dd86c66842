"""What the launcher tells the services at their start: one JSON line on stdin (`ipc.child`).

Nothing reads the environment.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Device = Literal["cpu", "cuda"]
LoadFormat = Literal["auto", "dummy"]
EncoderDType = Literal["auto", "float32", "float16", "bfloat16"]
StoreDType = Literal["auto", "float32", "float16"]


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model, and in what the user departs from what its files say."""

    model: str | None = None  # a directory or a hub name; None: the embedded default
    query_length: int | None = None
    document_length: int | None = None
    dtype: EncoderDType = "auto"
    deterministic: bool = False  # each text is encoded by itself
    load_format: LoadFormat = "auto"  # dummy: random weights in the shapes that config.json says


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the CPU engine process."""

    address: str
    running_path: str  # survives the process: see ipc.running
    model: ModelSettings
    cache_directory: str | None = None  # where results of self-checks are kept; None: nowhere
    max_batch_tokens: int = 1024  # per forward pass; on a CPU more does not pay
    horizon: float = 20.0  # seconds of work that clients together may have outstanding: within a request's timeout
    threads: int = 1
    log_level: str = "info"


class WorkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the scorer worker."""

    address: str
    running_path: str
    model: ModelSettings | None = None  # None: no model, only embeddings by value of `dim`
    dim: int | None = None
    cache_directory: str | None = None  # where results of self-checks are kept; None: nowhere
    hosts_encoder: bool = False
    device: Device = "cpu"  # the launcher has found out what auto means
    gpu_memory_utilization: float = 0.9
    embedding_dtype: StoreDType = "auto"
    cache_bytes: int | None = None  # None, on CUDA only: what the memory plan leaves
    keep_entries: bool = True  # False: entries live for one job
    max_batch_pairs: int = 65_536  # per scoring launch; larger requests are sliced
    max_batch_tokens: int = 1024  # per forward pass of a hosted encoder
    horizon: float = 20.0  # seconds of a hosted encoder's work that clients together may have outstanding
    threads: int = 1
    log_level: str = "info"

    def __post_init__(self) -> None:
        if (self.model is None) == (self.dim is None):
            raise ValueError("model, dim: exactly one of them")
        if self.hosts_encoder and self.model is None:
            raise ValueError("hosts_encoder: needs a model")

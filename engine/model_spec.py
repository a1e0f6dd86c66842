"""Which model is served and how its texts become token ids: all that can be known before torch is imported."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from engine.encoder_config import EncoderConfig
from engine.find_model import find_model
from engine.formats import Projection, check_lengths, read_checkpoint
from engine.model_files import ModelError, ModelFiles, WeightsFile
from ipc.messages import ModelSpec, TextSpec
from ipc.settings import ModelSettings

__all__ = ["LoadedModel", "ModelError", "load_model"]

SAMPLES: Final = 64  # of each weights file, spread over it, for the fingerprint
SAMPLE_BYTES: Final = 65_536
TENSOR_SAMPLE_BYTES: Final = 4_096  # and of each tensor, from its start: most lie between the samples


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that has been understood; its weights have not been read."""

    spec: ModelSpec
    fingerprint: bytes  # 16 bytes; equal for equal files and settings, wherever they lie
    tokenizer_json: bytes  # without truncation and padding
    directory: Path
    config: EncoderConfig
    weights: WeightsFile
    projections: Sequence[Projection]

    @property
    def max_positions(self) -> int:
        """The most ids that one text may have."""
        return self.config.max_tokens

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self.config.vocab_size


def load_model(settings: ModelSettings) -> LoadedModel:
    """Find a model and read everything of it but its weights.

    Raises:
        ModelError: it is not there, not whole, or not one that can be served exactly.
    """
    directory = find_model(settings.model)
    files = ModelFiles(directory, is_dummy=settings.load_format == "dummy")
    checkpoint = read_checkpoint(files, _name_of(settings.model, directory))
    positions = checkpoint.config.max_tokens
    check_lengths(checkpoint.spec, positions, f"{directory}: the checkpoint's own settings")
    spec = _with_lengths(checkpoint.spec, settings)
    check_lengths(spec, positions, "--query-length, --document-length")
    if checkpoint.tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise ModelError(
            f"{checkpoint.tokenizer.path}: {checkpoint.tokenizer.vocab_size} tokens, but config.json's vocab_size is "
            f"{checkpoint.config.vocab_size}"
        )
    tokenizer_json = checkpoint.tokenizer.json
    return LoadedModel(
        spec=spec,
        fingerprint=_fingerprint(
            files,
            [msgspec.msgpack.encode(spec), tokenizer_json, settings.dtype.encode(), settings.load_format.encode()],
        ),
        tokenizer_json=tokenizer_json,
        directory=directory,
        config=checkpoint.config,
        weights=checkpoint.weights,
        projections=checkpoint.projections,
    )


def _name_of(model: str | None, directory: Path) -> str | None:
    """A directory's own name; a hub name as it is."""
    is_directory = model is not None and directory == Path(model).expanduser()
    return directory.resolve().name if is_directory else model


def _with_lengths(spec: ModelSpec, settings: ModelSettings) -> ModelSpec:
    """The user's lengths in place of the checkpoint's."""
    query, document = spec.query, spec.document
    if settings.query_length is not None:
        query = _with_query_length(query, settings.query_length)
    if settings.document_length is not None:
        document = msgspec.structs.replace(document, max_length=settings.document_length)
    return msgspec.structs.replace(spec, query=query, document=document)


def _with_query_length(query: TextSpec, length: int) -> TextSpec:
    if query.expansion == "min" and length < query.expansion_length:
        raise ModelError(f"--query-length: {length}, but the model expands queries to {query.expansion_length} ids")
    expansion_length = length if query.expansion == "fixed" else query.expansion_length
    return msgspec.structs.replace(query, max_length=length, expansion_length=expansion_length)


def _fingerprint(files: ModelFiles, settings: Sequence[bytes]) -> bytes:
    """Who the model is: every settings file that was read, the effective spec, and of each weights file its header, its
    size, samples spread over it and the start of every tensor (a 2 GB file then costs milliseconds; training changes a
    tensor everywhere or, where it is frozen, nowhere)."""
    digest = hashlib.blake2b(digest_size=16)

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    for part in settings:
        add(part)
    for name, content in sorted(files.contents.items()):
        add(name.encode())
        add(content)
    for name, weights in sorted(files.weights.items()):
        add(name.encode())
        add(weights.header)
        for sample in _samples(weights):
            add(sample)
    return digest.digest()


def _samples(weights: WeightsFile) -> list[bytes]:
    size = weights.path.stat().st_size
    samples = [size.to_bytes(8, "little")]
    with weights.path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            samples.append(file.read(SAMPLE_BYTES))
        for name in sorted(weights.tensors):
            file.seek(weights.start_of(name))
            samples.append(file.read(TENSOR_SAMPLE_BYTES))
    return samples

"""A fault for tests: Python runs this at the start of every process whose PYTHONPATH names this folder.

A scorer worker that scores a document of exactly DEADLY_ROWS rows or makes room for one of DEADLY_ROOM rows, an
encoder that encodes a text of exactly DEADLY_TOKENS token ids, and an engine that reads a request for one of
DEADLY_TO_READ kill their process with SIGKILL: what a fault of a
kernel or a driver does. The programs themselves have no such switch, so none can be left on.
"""

from __future__ import annotations

import importlib.abc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

DEADLY_ROWS = 77
DEADLY_TOKENS = 91
DEADLY_ROOM = 83
DEADLY_TO_READ = 97


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def poison_scorer(module: Any) -> None:
    """Scorer.score, with a fault."""
    score = module.Scorer.score

    def score_or_die(self: Any, groups: Sequence[Any]) -> Any:
        if any(document.rows == DEADLY_ROWS for group in groups for document in group.documents):
            die()
        return score(self, groups)

    module.Scorer.score = score_or_die


def poison_encoder(module: Any) -> None:
    """Encoder.encode, with a fault."""
    encode = module.Encoder.encode

    def encode_or_die(self: Any, texts: Any) -> Any:
        if DEADLY_TOKENS in texts.lengths:
            die()
        return encode(self, texts)

    module.Encoder.encode = encode_or_die


def poison_store(module: Any) -> None:
    """StoreDirectory.admit, with a fault."""
    admit = module.StoreDirectory.admit

    def admit_or_die(self: Any, resident: Sequence[Any], new: Sequence[Any]) -> Any:
        if any(text.rows == DEADLY_ROOM for text in new):
            die()
        return admit(self, resident, new)

    module.StoreDirectory.admit = admit_or_die


def poison_reader(module: Any) -> None:
    """EncodeRequests.take, with a fault."""
    take = module.EncodeRequests.take

    def take_or_die(self: Any, request: Any, message: Any, is_suspect: bool) -> Any:
        if DEADLY_TO_READ in request.frames[message.lengths.frame - 1].cast("i"):
            die()
        return take(self, request, message, is_suspect)

    module.EncodeRequests.take = take_or_die


FAULTS: dict[str, Callable[[Any], None]] = {
    "scorer_worker.scorer": poison_scorer,
    "scorer_worker.store": poison_store,
    "engine.encoder": poison_encoder,
    "engine.encode_requests": poison_reader,
}


class Poisoner(importlib.abc.MetaPathFinder):
    """Loads the modules of FAULTS as ever, and then gives them their fault."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in FAULTS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def run_and_poison(module: ModuleType) -> None:
            run(module)
            FAULTS[fullname](module)

        spec.loader.exec_module = run_and_poison  # type: ignore[method-assign]
        return spec


if __name__ == "sitecustomize":  # not where a test imports this file: it would kill the tests
    sys.meta_path.insert(0, Poisoner())

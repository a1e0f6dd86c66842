"""Batches that are run before anybody asks leave nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from engine.encode_queue import QueuedText
from engine.encoder import Encoder
from engine.encoder_thread import EncoderThread, Write
from engine.model_spec import load_model
from ipc.settings import ModelSettings
from scorer_worker.arena import Arena
from scorer_worker.rehearsal import BATCHES, rehearse
from tests.engine.checkpoints import write_stanford


class Counted(EncoderThread):
    """Notes what it is given."""

    def __init__(self, encoder: Encoder) -> None:
        self.lengths: list[int] = []
        self.tokens: list[int] = []
        super().__init__(encoder)

    def submit(self, texts: Sequence[QueuedText], write: Write | None = None) -> None:
        self.lengths.append(len(texts[0].token_ids))
        self.tokens.append(sum(len(text.token_ids) for text in texts))
        super().submit(texts, write)


def test_every_length_is_run_and_the_store_is_empty_again(tmp_path: Path) -> None:
    model = load_model(ModelSettings(str(write_stanford(tmp_path / "model"))))
    encoder = Encoder.load(model, "cpu", "float32", 1)
    thread = Counted(encoder)
    arena = Arena(2**20, model.spec.dim, torch.float32, torch.device("cpu"))
    rehearse(thread, arena, encoder.rules.num_rows, 200, longest=96)
    thread.close()
    assert thread.lengths == [8] * BATCHES + [32] * BATCHES + [96] * BATCHES
    assert thread.tokens == [200] * BATCHES + [192] * 2 * BATCHES
    assert thread.is_idle
    store = arena.directory.statistics()
    assert store.insertions > 0
    assert (store.entries, store.used_rows) == (0, 0)


def test_a_store_that_is_too_small_is_left_alone(tmp_path: Path) -> None:
    model = load_model(ModelSettings(str(write_stanford(tmp_path / "model"))))
    encoder = Encoder.load(model, "cpu", "float32", 1)
    thread = EncoderThread(encoder)
    arena = Arena(2**16, model.spec.dim, torch.float32, torch.device("cpu"))
    rehearse(thread, arena, encoder.rules.num_rows, 4096, longest=96)
    thread.close()
    assert arena.directory.statistics().insertions == 0

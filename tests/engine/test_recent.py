"""What was encoded last is found, whole batches at a time, within its bytes."""

from __future__ import annotations

import torch

from engine.recent import TEXT_BYTES, RecentEmbeddings

ROW = 4 * 8  # bytes


def rows(count: int, value: float) -> torch.Tensor:
    return torch.full((count, 8), value)


def test_the_last_batches_are_found_and_the_oldest_is_forgotten_as_a_whole() -> None:
    recent = RecentEmbeddings(5 * ROW + 3 * TEXT_BYTES)
    recent.add([b"a", b"b"], [rows(2, 1.0), rows(1, 2.0)])
    recent.add([b"c"], [rows(2, 3.0)])
    found = recent.find(b"a")
    assert found is not None and found.tolist() == rows(2, 1.0).tolist()
    recent.add([b"d"], [rows(1, 4.0)])
    assert recent.find(b"a") is None and recent.find(b"b") is None
    assert recent.find(b"c") is not None and recent.find(b"d") is not None


def test_a_text_that_was_encoded_again_stays_as_long_as_its_last_batch() -> None:
    recent = RecentEmbeddings(2 * ROW + 2 * TEXT_BYTES)
    recent.add([b"a"], [rows(1, 1.0)])
    recent.add([b"a"], [rows(1, 2.0)])
    recent.add([b"b"], [rows(1, 3.0)])
    found = recent.find(b"a")
    assert found is not None and found.tolist() == rows(1, 2.0).tolist()
    recent.add([b"c"], [rows(1, 4.0)])
    assert recent.find(b"a") is None


def test_a_batch_above_the_bytes_is_not_kept_and_texts_without_rows_are() -> None:
    recent = RecentEmbeddings(ROW + TEXT_BYTES)
    recent.add([b"a"], [rows(0, 0.0)])
    assert recent.find(b"a") is not None
    recent.add([b"b"], [rows(2, 1.0)])
    assert recent.find(b"b") is None


def test_texts_without_rows_are_not_kept_for_ever() -> None:
    recent = RecentEmbeddings(10 * TEXT_BYTES)
    for number in range(100):
        recent.add([bytes([number])], [rows(0, 0.0)])
    assert sum(recent.find(bytes([number])) is not None for number in range(100)) == 10

"""Small batches through CUDA graphs are those that are launched one by one."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
import torch

from engine.encoder import EncodedTexts, Encoder
from engine.graphs import SmallBatches
from engine.model_spec import load_model
from engine.packing import PackedTexts
from ipc.settings import ModelSettings
from tests.engine.checkpoints import write_stanford, write_xlmr

pytestmark = pytest.mark.gpu

LENGTHS = [[1], [16], [64], [65], [5, 16, 40], [16] * 8, [90, 90, 90, 90, 90], [96] * 5, [2, 96, 96, 96, 96, 96]]
LENGTHS += [[96] * 11, [96, 5] * 40, [1] * 129, [16] * 65, [96] * 43]


def texts(lengths: list[int]) -> PackedTexts:
    ids = array("i", [3 + (7 * place) % 90 for place in range(sum(lengths))])
    roles = ["query" if length == 16 else "document" for length in lengths]
    return PackedTexts(roles, ids, lengths, [9 if length == 16 else 0 for length in lengths])  # type: ignore[arg-type]


@pytest.mark.parametrize("is_rotary", [False, True])
@pytest.mark.parametrize("attends", [False, True])
def test_a_graph_computes_what_launches_do(tmp_path: Path, is_rotary: bool, attends: bool) -> None:
    path = tmp_path / "model"
    directory = (
        write_xlmr(path, is_rotary=True, attend_to_mask_tokens=attends)
        if is_rotary
        else write_stanford(path, attend_to_mask_tokens=attends)
    )
    encoder = Encoder.load(load_model(ModelSettings(model=str(directory))), "cuda", "float16", 2)
    expected = [encoder.encode(texts(lengths)) for lengths in LENGTHS]
    encoder.warm_up(1024)
    assert encoder._small_batches is not None
    for _ in range(2):  # a replay must not depend on the one before
        for lengths, before in zip(LENGTHS, expected, strict=True):
            assert SmallBatches.takes(lengths) == (lengths not in ([1] * 129, [16] * 65, [96] * 43))
            same(encoder.encode(texts(lengths)), before)


def same(ours: EncodedTexts, theirs: EncodedTexts) -> None:
    assert ours.rows == theirs.rows
    torch.testing.assert_close(ours.embeddings, theirs.embeddings, atol=2e-3, rtol=0)

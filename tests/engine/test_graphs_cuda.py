"""Small batches through CUDA graphs are those that are launched one by one."""

from __future__ import annotations

import random
import threading
from array import array
from pathlib import Path

import pytest
import torch

from engine.encode_queue import QueuedText
from engine.encoder import EncodedTexts, Encoder
from engine.encoder_thread import EncoderThread
from engine.packing import PackedTexts
from tests.engine.test_families_cuda import FAMILIES, LEAST_COSINE, load_family

pytestmark = pytest.mark.gpu

LENGTHS = [[1], [16], [64], [65], [5, 16, 40], [16] * 8, [90, 90, 90, 90, 90], [96] * 5, [2, 96, 96, 96, 96, 96]]
LENGTHS += [[96] * 11, [96, 5] * 40, [1] * 129, [4] * 200, [16] * 65, [9] * 256, [96] * 43, [96] * 49]


def texts(lengths: list[int]) -> PackedTexts:
    ids = array("i", [3 + (7 * place) % 90 for place in range(sum(lengths))])
    roles = ["query" if length == 16 else "document" for length in lengths]
    return PackedTexts(roles, ids, lengths, [9 if length == 16 else 0 for length in lengths])  # type: ignore[arg-type]


@pytest.mark.parametrize("heads", [1, 4], ids=["own-kernels", "torchs-kernels"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_computes_what_launches_do(tmp_path: Path, family: str, heads: int) -> None:
    encoder = Encoder.load(load_family(family, tmp_path / "model", heads), "cuda", "float16", 2)
    expected = [encoder.encode(texts(lengths)) for lengths in LENGTHS]
    encoder.warm_up(4608)
    if family.startswith("modern") and heads != 1:
        assert encoder._graphs is None  # its windows are looked at text by text
        return
    assert encoder._graphs is not None
    for _ in range(2):  # a replay must not depend on the one before
        for lengths, before in zip(LENGTHS, expected, strict=True):
            assert encoder._graphs.takes(lengths) == (lengths not in ([1] * 129, [4] * 200, [96] * 49))
            same(encoder.encode(texts(lengths)), before)


def same(ours: EncodedTexts, theirs: EncodedTexts) -> None:
    assert ours.rows == theirs.rows
    # by rounding they differ: a graph's blocks of attention are those of long texts
    cosines = (ours.embeddings * theirs.embeddings).sum(1)
    assert float(cosines.min()) >= LEAST_COSINE["float16"]


def test_small_batches_are_launched_by_who_submits_them_and_come_in_order(tmp_path: Path) -> None:
    encoder = Encoder.load(load_family("bert", tmp_path / "model", 1), "cuda", "float16", 2)
    thread = EncoderThread(encoder)
    thread.call(lambda: encoder.warm_up(4608))
    queued = {count: [queued_text(count, place) for place in range(count)] for count in (2, 64, 190, 220)}
    expected = {count: encoder.encode(PackedTexts.of(some)) for count, some in queued.items()}
    torch.cuda.synchronize()
    choose = random.Random(0)
    launched_by: list[int] = []
    order: list[int] = []
    for _ in range(400):
        while thread.has_room:
            count = choose.choice(list(queued))
            order.append(count)
            before = thread._queued
            thread.submit(queued[count], lambda texts, encoded: launched_by.append(threading.get_ident()))
            if thread._queued == before:
                assert count <= 190 and launched_by[-1] == threading.get_ident()
        finished = None
        while finished is None:
            thread.wait()
            finished = thread.take()
        count = order.pop(0)
        assert len(finished.texts) == count
        assert torch.equal(finished.embeddings, expected[count].embeddings)
    assert len(set(launched_by)) == 2
    torch.cuda.synchronize()
    thread.close()


def queued_text(count: int, place: int) -> QueuedText:
    ids = array("i", [3 + (count + 7 * place + each) % 90 for each in range(1 + place % 40)])
    return QueuedText(place.to_bytes(16, "little"), "document", memoryview(ids), 0)

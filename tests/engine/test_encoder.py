"""Packed encoding: what a text's embeddings depend on, and what is refused."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.encode_queue import QueuedText
from engine.encoder import Encoder
from engine.model_spec import ModelError, load_model
from engine.packing import PackedTexts, pack
from ipc.messages import Role
from ipc.settings import ModelSettings
from tests.engine.checkpoints import POSITIONS, VOCAB_SIZE, write_pylate, write_stanford, write_xlmr

TOLERANCE = 1e-5  # float32; the same sums in another order

Text = tuple[Role, list[int], int]  # role, ids, expansion rows

CLS, SEP, MASK, BANG = 101, 102, 103, 999  # "!" is skipped in documents


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stanford(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def encoder(directory: Path) -> Iterator[Encoder]:
    threads = torch.get_num_threads()
    yield Encoder.load(load_model(ModelSettings(model=str(directory))), "cpu", "auto", threads)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def deterministic(directory: Path, encoder: Encoder) -> Encoder:
    model = load_model(ModelSettings(model=str(directory)))
    return Encoder.load(model, "cpu", "auto", torch.get_num_threads(), is_deterministic=True)


def packed(*texts: Text) -> PackedTexts:
    ids = [array("i", ids) for _, ids, _ in texts]
    queued = [
        QueuedText(bytes(16), role, memoryview(own), expansion)
        for (role, _, expansion), own in zip(texts, ids, strict=True)
    ]
    return PackedTexts.of(queued)


def encode(encoder: Encoder, *texts: Text) -> list[torch.Tensor]:
    encoded = encoder.encode(packed(*texts))
    assert encoded.embeddings.is_contiguous()
    assert encoded.embeddings.dtype == torch.float32
    return list(torch.split(encoded.embeddings, encoded.rows))


def assert_close(ours: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)


@st.composite
def any_text(draw: st.DrawFn) -> Text:
    ids = draw(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=30))
    role: Role = draw(st.sampled_from(["query", "document"]))
    return role, ids, draw(st.integers(0, len(ids) - 1)) if role == "query" else 0


@given(texts=st.lists(any_text(), min_size=1, max_size=6))
def test_text_has_the_same_embeddings_in_any_batch(encoder: Encoder, texts: list[Text]) -> None:
    alone = [encode(encoder, text)[0] for text in texts]
    assert_close(encode(encoder, *texts), alone)
    assert_close(encode(encoder, *reversed(texts)), alone[::-1])


@given(texts=st.lists(any_text(), min_size=1, max_size=6))
def test_deterministic_text_is_bitwise_the_same_in_any_batch(deterministic: Encoder, texts: list[Text]) -> None:
    alone = [encode(deterministic, text)[0] for text in texts]
    together = encode(deterministic, *texts)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(together, alone, strict=True))


def test_rows_are_of_length_one(encoder: Encoder) -> None:
    (rows,) = encode(encoder, ("query", [CLS, 1, 2000, SEP], 0))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))


def test_skipped_words_have_no_rows_in_documents_only(encoder: Encoder) -> None:
    ids = [CLS, 2, BANG, 2000, BANG, SEP]
    as_document, as_query = encode(encoder, ("document", ids, 0), ("query", ids, 0))
    assert (len(as_document), len(as_query)) == (4, 6)
    # left out after the encoder: the others have attended to them
    torch.testing.assert_close(as_document, as_query[[0, 1, 3, 5]])


def test_text_of_skipped_words_alone_has_no_rows(encoder: Encoder) -> None:
    before, none, after = encode(encoder, ("document", [CLS], 0), ("document", [BANG], 0), ("document", [SEP], 0))
    assert [len(rows) for rows in (before, none, after)] == [1, 0, 1]


def test_expansion_rows_are_scored_but_nobody_attends_to_them(encoder: Encoder) -> None:
    short = [CLS, 1, 2000, SEP]
    (plain,), (expanded,) = encode(encoder, ("query", short, 0)), encode(encoder, ("query", [*short, MASK, MASK], 2))
    assert len(expanded) == 6
    torch.testing.assert_close(expanded[:4], plain, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(expanded[4], expanded[5], atol=1e-3)  # their positions differ


def test_expansion_rows_that_are_attended_to_change_the_others(tmp_path: Path) -> None:
    model = load_model(ModelSettings(model=str(write_pylate(tmp_path / "model", attend_to_expansion_tokens=True))))
    attending = Encoder.load(model, "cpu", "auto", torch.get_num_threads())
    short = [CLS, 1, 2000, SEP]
    (plain,) = encode(attending, ("query", short, 0))
    (expanded,) = encode(attending, ("query", [*short, MASK, MASK], 2))
    assert not torch.allclose(expanded[:4], plain, atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 5e-3), ("bfloat16", 5e-2)])
def test_smaller_dtypes_stay_near(encoder: Encoder, directory: Path, dtype: str, tolerance: float) -> None:
    other = Encoder.load(load_model(ModelSettings(model=str(directory))), "cpu", dtype, torch.get_num_threads())
    text: Text = ("document", [CLS, 2, *range(2000, 2030), SEP], 0)
    (expected,), (rows,) = encode(encoder, text), encode(other, text)
    assert rows.dtype == torch.float32
    assert (rows * expected).sum(dim=1).min() > 1 - tolerance  # cosine


@pytest.mark.parametrize(
    ("ids", "expansion", "message"),
    [
        pytest.param([], 0, f"token_ids: 0 ids, expected 1 to {POSITIONS}", id="empty"),
        pytest.param([5] * (POSITIONS + 1), 0, f"token_ids: {POSITIONS + 1} ids, expected 1 to {POSITIONS}", id="long"),
        pytest.param([CLS, VOCAB_SIZE], 0, f"token_ids: {VOCAB_SIZE}, expected 0 to {VOCAB_SIZE - 1}", id="large"),
        pytest.param([CLS, -1], 0, f"token_ids: -1, expected 0 to {VOCAB_SIZE - 1}", id="negative"),
        pytest.param([CLS, SEP], 2, "expansion: 2 rows of a text of 2 ids", id="nothing-but-expansion"),
        pytest.param([CLS, SEP], -1, "expansion: -1 rows", id="negative-expansion"),
    ],
)
def test_wrong_text_is_named(encoder: Encoder, ids: list[int], expansion: int, message: str) -> None:
    problem = encoder.rules.check(memoryview(array("i", ids)), expansion)
    assert problem is not None
    assert message in problem
    with pytest.raises(ValueError, match="text 1: ") as raised:
        encoder.encode(packed(("document", [CLS, SEP], 0), ("query", ids, expansion)))
    assert message in str(raised.value)


@pytest.mark.parametrize("ids", [[0], [VOCAB_SIZE - 1] * POSITIONS], ids=["shortest", "longest"])
def test_text_at_the_limits_is_encoded(encoder: Encoder, ids: list[int]) -> None:
    assert encoder.rules.check(memoryview(array("i", ids))) is None
    assert [len(rows) for rows in encode(encoder, ("query", ids, 0))] == [len(ids)]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        pytest.param(PackedTexts([], array("i"), [], []), "lengths: expected at least one text", id="no-texts"),
        pytest.param(PackedTexts(["query"], array("i", [1, 2]), [1], [0]), "token_ids: 2, but", id="too-many-ids"),
        pytest.param(PackedTexts([], array("i", [1]), [1], [0]), "roles: 0 values for 1 lengths", id="no-roles"),
        pytest.param(PackedTexts(["query"], array("i", [1]), [1], []), "expansion: 0 values", id="no-expansion"),
    ],
)
def test_fields_that_do_not_fit_are_named(encoder: Encoder, texts: PackedTexts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.encode(texts)


def test_packed_batch_counts_positions_in_every_text() -> None:
    batch = pack(packed(("document", [7, 8, 9], 0), ("query", [5, MASK], 1), ("query", [6], 0)), [False] * 3)
    assert batch.token_ids.tolist() == [7, 8, 9, 5, MASK, 6]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 0]
    assert list(batch.cu_seqlens) == [0, 3, 5, 6]
    assert list(batch.attended) == [3, 1, 1]


@pytest.mark.parametrize(("device", "dtype", "field"), [("mps", "auto", "device"), ("cpu", "int8", "dtype")])
def test_other_device_or_dtype_is_named(directory: Path, device: str, dtype: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: "):
        Encoder.load(load_model(ModelSettings(model=str(directory))), device, dtype, 1)


def test_a_dummy_has_random_weights_in_the_shapes_of_its_config(tmp_path: Path) -> None:
    for number, directory in enumerate(
        [write_stanford(tmp_path / "a", dim=8), write_pylate(tmp_path / "b", dims=(12, 8)), write_xlmr(tmp_path / "c")]
    ):
        for weights in directory.rglob("model.safetensors"):
            weights.unlink()
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            load_model(ModelSettings(str(directory)))
        model = load_model(ModelSettings(str(directory), load_format="dummy"))
        texts = PackedTexts(["query"] * 2, array("i", range(5, 14)), [4, 5], [0, 0])
        first, second = (Encoder.load(model, "cpu", "float32", 1).encode(texts) for _ in range(2))
        assert torch.equal(first.embeddings, second.embeddings), number
        assert first.embeddings.shape == (sum(first.rows), 8)
        assert not torch.equal(first.embeddings[0], first.embeddings[1])


def test_rows_that_will_be_scored_are_known_before(encoder: Encoder) -> None:
    ids = array("i", [CLS, BANG, 2000, BANG, SEP])
    for role, expected in (("query", 5), ("document", 3)):
        assert encoder.rules.num_rows(role, memoryview(ids)) == expected  # type: ignore[arg-type]
        rows = encoder.encode(PackedTexts([role], ids, [5], [0])).rows  # type: ignore[list-item]
        assert rows == [expected]

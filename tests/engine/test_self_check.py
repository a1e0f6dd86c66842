"""The self-check finds a fast path that computes something else; `maxsimd check` says so with its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import self_check
from engine.encoder import EncodedTexts, Encoder
from engine.model_spec import LoadedModel, ModelError, load_model
from engine.packing import PackedTexts
from engine.self_check import run_self_check
from engine.self_check_record import ensure_checked
from frontend.check import describe
from ipc.check_report import CheckReport
from ipc.messages import SelfCheck
from ipc.settings import ModelSettings
from tests.engine.checkpoints import change_json, write_modern, write_stanford, write_xlmr

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("value", [0.99, float("nan")])
def test_a_wrong_fast_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    model = load_model(ModelSettings(model=str(write_stanford(tmp_path / "model"))))
    encoder = Encoder.load(model, "cpu", "auto", torch.get_num_threads())
    make_wrong(encoder, value, monkeypatch)
    assert not run_self_check(model, encoder).passes


@pytest.mark.parametrize("write", [write_stanford, write_modern, write_xlmr], ids=["bert", "modern", "xlmr"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_halfs_own_rounding_is_allowed_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path], dtype: str
) -> None:
    """With random weights it can be more than the fixed tolerance."""
    for half in (torch.float16, torch.bfloat16):
        monkeypatch.setitem(self_check.ROUNDING, half, 1e-6)
    model = load_model(ModelSettings(model=str(write(tmp_path / "model"))))
    encoder = Encoder.load(model, "cpu", dtype, torch.get_num_threads())
    check = run_self_check(model, encoder)
    assert 1e-6 < check.largest_difference <= check.tolerance
    make_wrong(encoder, -1.0, monkeypatch)
    assert not run_self_check(model, encoder).passes


def test_texts_among_many_are_the_last_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, encoder = load(tmp_path)
    sizes = []
    encode = encoder.encode

    def encode_and_count(texts: PackedTexts) -> EncodedTexts:
        sizes.append((len(texts.token_ids), len(texts.lengths)))
        return encode(texts)

    monkeypatch.setattr(encoder, "encode", encode_and_count)
    texts = [self_check._Text("document", [5, 6, 7], 0), self_check._Text("document", [8], 0)]
    alone, among = self_check._encode_packed(encoder, texts), self_check._encode_among_many(encoder, texts)
    assert sizes == [(4, 2), (self_check.MANY_ROWS, self_check.MANY_ROWS // 2)]
    for one, other in zip(alone, among, strict=True):
        torch.testing.assert_close(one, other)


def test_rounding_has_a_limit() -> None:
    """However far the plain path in halves is from itself in float32."""
    own = [self_check._Difference(0, 10, 5.0, 0.1)]
    assert self_check._with_own_rounding(self_check._Difference(0, 10, 0.3, 0.1), own).allowed == 0.5


def make_wrong(encoder: Encoder, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of each batch is `value` times what it should be."""
    encode = encoder.encode

    def encode_wrongly(texts: PackedTexts) -> EncodedTexts:
        result = encode(texts)
        result.embeddings[0] *= value
        return result

    monkeypatch.setattr(encoder, "encode", encode_wrongly)


def test_a_wrong_fast_path_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder = load(tmp_path)
    make_wrong(encoder, 0.5, monkeypatch)
    with pytest.raises(ModelError, match="self-check failed: of 24 scores one differs by"):
        ensure_checked(model, encoder, str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists(), "a failed check is not kept"


def test_a_check_that_passed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder = load(tmp_path)
    cache = tmp_path / "cache"
    first = ensure_checked(model, encoder, str(cache))
    make_wrong(encoder, 0.5, monkeypatch)  # it would fail if it ran again
    assert ensure_checked(model, encoder, str(cache)) == first
    assert len(list((cache / "self-checks").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"subject": 1}'])
def test_a_damaged_record_is_no_record(tmp_path: Path, damage: bytes) -> None:
    model, encoder = load(tmp_path)
    cache = tmp_path / "cache"
    ensure_checked(model, encoder, str(cache))
    (record,) = (cache / "self-checks").iterdir()
    whole = record.read_bytes()
    record.write_bytes(damage)
    assert ensure_checked(model, encoder, str(cache)).passes
    assert len(record.read_bytes()) == len(whole), "written again"


def test_a_record_of_other_versions_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder = load(tmp_path)
    ensure_checked(model, encoder, str(tmp_path / "cache"))
    monkeypatch.setattr("importlib.metadata.version", lambda package: "another")
    ensure_checked(model, encoder, str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache" / "self-checks").iterdir())) == 2


def test_without_room_for_records_the_check_runs_each_time(tmp_path: Path) -> None:
    model, encoder = load(tmp_path)
    (tmp_path / "file").write_text("not a directory")
    assert ensure_checked(model, encoder, str(tmp_path / "file")).passes
    assert ensure_checked(model, encoder, None).passes


def load(tmp_path: Path) -> tuple[LoadedModel, Encoder]:
    model = load_model(ModelSettings(model=str(write_stanford(tmp_path / "model"))))
    return model, Encoder.load(model, "cpu", "auto", torch.get_num_threads())


def check(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "frontend.cli", "check", *argv],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_check_shows_what_texts_become(tmp_path: Path) -> None:
    result = check(str(write_stanford(tmp_path / "model")))
    assert result.returncode == 0, result.stderr
    assert "format       Stanford ColBERT" in result.stdout
    assert "expanded to 16, scored, not attended to; nothing skipped" in result.stdout
    assert "  [CLS] [unused0] which animal has three hearts ? [SEP] " + " ".join(["[MASK]"] * 7) + "\n" in result.stdout
    assert "[CLS] [unused1] an octopus has three hearts (,) and its blood is blue (.) [SEP]" in result.stdout
    assert "self-check   passed: 24 scores" in result.stdout


def test_check_of_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    result = check(str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[1:] == [
        f"maxsimd: {tmp_path / 'config.json'}: not there; not a checkpoint, or not downloaded whole"
    ]


def test_check_of_a_wrong_dim_names_file_and_key(tmp_path: Path) -> None:
    directory = write_stanford(tmp_path / "model")
    change_json(directory / "artifact.metadata", dim=9)
    result = check(str(directory))
    assert result.returncode == 2
    assert "artifact.metadata" in result.stderr and "dim" in result.stderr and "Traceback" not in result.stderr


def test_a_failed_check_is_shown_as_one(tmp_path: Path) -> None:
    model = load_model(ModelSettings(model=str(write_stanford(tmp_path / "model"))))
    check = SelfCheck(24, float("nan"), 1e-3, "float32", "cpu", 0)
    report = CheckReport(model.spec, model.tokenizer_json, "", model.fingerprint, "", check)
    assert not report.self_check.passes
    assert "self-check   FAILED" in describe(report)

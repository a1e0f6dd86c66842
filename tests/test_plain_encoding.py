"""docs/plain-encoding.md is what the code computes, and its first line is the reference's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.plain_encoding import DOCUMENTS, QUERY, page, scores, write_checkpoint
from engine.model_spec import load_model
from ipc.settings import ModelSettings

PAGE = Path(__file__).parent.parent / "docs" / "plain-encoding.md"
NUMBER = r"\d+\.\d+"


def test_the_page_is_current(tmp_path: Path) -> None:
    with torch.inference_mode():
        computed = page(tmp_path)
    written = PAGE.read_text("utf-8")
    assert re.sub(NUMBER, "x", computed) == re.sub(NUMBER, "x", written)
    # the last digit may be rounded in another way elsewhere
    assert numbers(computed) == pytest.approx(numbers(written), abs=0.011)


def test_what_the_files_say_is_the_reference_s(tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    directory = write_checkpoint(tmp_path / "model")
    reference: Any = MultiVectorEncoder(str(directory), device="cpu")
    query = torch.as_tensor(reference.encode_query([QUERY])[0])
    documents = [torch.as_tensor(rows) for rows in reference.encode_document(DOCUMENTS)]
    expected = [float((query @ rows.T).amax(1).sum()) for rows in documents]
    ours, _, _ = scores(load_model(ModelSettings(model=str(directory))))
    assert ours == pytest.approx(expected, abs=1e-3)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(NUMBER, text)]

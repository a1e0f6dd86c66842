"""The workload of vLLM PR 35330 over HTTP on one CUDA device, and one of many new documents, beside the encoder alone.

    python -m benchmarks.bench_pr35330

A model of jina-colbert-v2's shape with random weights. One query of about 1,380 tokens for all requests, one document
of about 673 tokens in each, sampled as `vllm bench serve --dataset-name random-rerank` samples them. "Nothing cached"
means no store between requests, and a cache_salt of its own in every request: query and document are encoded for each,
which the worker's own count of encoded tokens shows. The encoder alone is measured in the same run, between the
servers, on texts of the same lengths.
"""

from __future__ import annotations

import re
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_encoder_cuda import PR_MIX, fill, in_a_row
from benchmarks.bench_serving_cuda import WARM_UPS, bench, gpu_name
from benchmarks.jina_shape import make_checkpoint
from benchmarks.measuring import parser, spread, write
from benchmarks.running import Server
from engine.encoder import Encoder
from engine.model_spec import load_model
from ipc.settings import ModelSettings

PR_REQUESTS = ["--random-input-len", "2048", "--random-range-ratio", "0.5"]
NEW_DOCUMENTS = ["--dataset-name", "synthetic", "--documents", "100", "--document-len", "256", "--query-len", "32"]
SPECIAL = 3  # tokens of every text besides its words: <s>, a marker, </s>
NEW_TEXTS = (32 + SPECIAL, *[256 + SPECIAL] * 100)
API_SERVERS = 4
COUNTERS = ("encoded_tokens", "encode_seconds")


class EncoderAlone:
    """The rate of the encoder without a server, sampled in turns with the servers."""

    def __init__(self, directory: str, dtype: str, budget: int) -> None:
        model = load_model(ModelSettings(directory, load_format="dummy"))
        self._encoder = Encoder.load(model, "cuda", dtype, 1)
        self._encoder.warm_up(budget)
        self._budget = budget
        self.dtype = self._encoder.dtype_name

    def tokens_per_second(self, lengths: Sequence[int]) -> float:
        texts = fill(self._budget, lengths)
        run = in_a_row(lambda: self._encoder.encode(texts))
        return self._budget / spread([run() for _ in range(5)])["median"]


def main() -> None:
    arguments = parser(__doc__ or "", "pr35330-cuda")
    arguments.set_defaults(runs=2)
    arguments.add_argument("--dtype", default="auto", choices=["auto", "float16", "bfloat16"])
    arguments.add_argument("--max-batch-tokens", type=int, default=16_384)
    arguments.add_argument("--num-prompts", type=int, default=2000)
    options = arguments.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as directory:
        make_checkpoint(Path(directory))
        alone = EncoderAlone(directory, options.dtype, options.max_batch_tokens)
        serve = [directory, "--load-format", "dummy", "--device", "cuda", "--dtype", options.dtype]
        serve += ["--api-server-count", str(API_SERVERS), "--max-batch-tokens", str(options.max_batch_tokens)]
        serve += ["--embedding-cache-size", "8GiB", "--cache-directory", f"{directory}/cache"]
        ask = ["--tokenizer", directory]
        pr = [*PR_REQUESTS, *ask, "--seed", str(options.seed)]
        results: dict[str, Any] = {"gpu": gpu_name(), "dtype": alone.dtype, "api_servers": API_SERVERS}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("nothing_cached", "new_100_documents", "cached")}
        for number in range(options.runs):
            with Server(*serve, "--no-embedding-cache") as server:
                load = [*pr, "--unique-cache-salt"]
                runs["nothing_cached"].append(measure(server, load, options.num_prompts, 64, alone, PR_MIX))
                load = [*NEW_DOCUMENTS, *ask, "--seed", str(number)]
                runs["new_100_documents"].append(measure(server, load, 200, 16, alone, NEW_TEXTS))
            with Server(*serve) as server:
                runs["cached"].append(measure(server, pr, options.num_prompts, 64, alone, PR_MIX[1:]))
    results |= {name: each[-1] | {"all_runs": [brief(run) for run in each]} for name, each in runs.items()}
    write(options.out, results)


def measure(
    server: Server, load: list[str], count: int, at_a_time: int, alone: EncoderAlone, lengths: Sequence[int]
) -> dict[str, Any]:
    """One load on a server, with the encoder alone before and after it."""
    before = alone.tokens_per_second(lengths)
    encoded, busy = (worker_counter(server, name) for name in COUNTERS)
    result = bench(server, load, count, at_a_time)
    # warm-ups are requests like the others, but not in the duration
    encoded, busy = (
        (worker_counter(server, name) - earlier) * count / (count + WARM_UPS)
        for name, earlier in zip(COUNTERS, (encoded, busy), strict=True)
    )
    rate = (before + alone.tokens_per_second(lengths)) / 2
    return {
        **result,
        "encoded_tokens": encoded,
        "encoder_busy_share": busy / result["duration_s"],
        "encoder_alone_tokens_per_second": rate,
        "share_of_encoder_alone": encoded / result["duration_s"] / rate,
    }


def brief(run: dict[str, Any]) -> dict[str, Any]:
    kept = ("request_throughput", "document_throughput", "latency", "share_of_encoder_alone", "encoder_busy_share")
    return {name: run[name] for name in kept}


def worker_counter(server: Server, name: str) -> float:
    """Since the worker started."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
        text = response.read().decode()
    found = re.search(rf"^maxsimd_worker_{name} (\S+)", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


if __name__ == "__main__":
    main()

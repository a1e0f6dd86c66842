"""The encoder alone on one CUDA device, as a share of the measured rate of an 8192^3 matrix product.

    python -m benchmarks.bench_encoder_cuda

The model has jina-colbert-v2's shape and random weights. A batch is timed from its token ids on the host to its
normalised embeddings on the device, ten in a row without a pause between, as a busy server runs them. Share = floating
point operations of matrix products and attention / time / rate of the large product, which takes turns with the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.jina_shape import VOCABULARY, flops, make_checkpoint
from benchmarks.measuring import interleave, parser, spread, write
from engine.attention import attend_varlen
from engine.bert import Bert
from engine.bert_config import BertEncoderConfig
from engine.checkpoint import load_bert_weights
from engine.encoder import Encoder
from engine.model_spec import LoadedModel, load_model
from engine.packing import PackedTexts, pack
from ipc.settings import ModelSettings

PR_MIX = (1380, 673)  # tokens of a query and of a document of vLLM PR 35330's benchmark, on average
LENGTHS = {"1024": (1024,), "300": (300,), "PR 35330's mix": PR_MIX, "32": (32,)}
BUDGETS = (32_768, 16_384, 4_096)
MATMUL = 8192
IN_A_ROW = 10


def main() -> None:
    arguments = parser(__doc__ or "", "encoder-cuda")
    arguments.add_argument("--dtype", default="bfloat16", choices=["float16", "bfloat16"])
    options = arguments.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as directory:
        make_checkpoint(Path(directory))
        model = load_model(ModelSettings(directory, load_format="dummy"))
    ours = Encoder.load(model, "cuda", options.dtype, 1)
    ours.warm_up(max(BUDGETS))
    torchs = torchs_network(model, ours.dtype)
    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "dtype": options.dtype, "shapes": {}}
    for budget in BUDGETS:
        for name, lengths in LENGTHS.items():
            sides = sides_of(fill(budget, lengths), ours, torchs)
            results["shapes"][f"{budget} tokens, texts of {name}"] = measure(sides, fill(budget, lengths), options)
    write(options.out, results)


def torchs_network(model: LoadedModel, dtype: torch.dtype) -> Bert:
    """The same model without our kernels: torch's operations one after the other, FlashAttention 2 inside."""
    config = model.config
    assert isinstance(config, BertEncoderConfig)
    weights = load_bert_weights(model.weights, config, dtype)
    return Bert(config, {name: weight.cuda() for name, weight in weights.items()}, attend_varlen)


def sides_of(texts: PackedTexts, ours: Encoder, torchs: Bert) -> dict[str, Callable[[], object]]:
    """Ours whole; torch's without projection and normalisation, which is less work."""
    attends = [True] * len(texts.lengths)
    return {
        "maxsimd": lambda: ours.encode(texts),
        "torch's varlen_attn, eager": lambda: torchs(pack(texts, attends, ours.device)),
    }


def fill(budget: int, lengths: Sequence[int]) -> PackedTexts:
    """Texts of these lengths in turns, the last one cut, so that all together have `budget` tokens."""
    chosen: list[int] = []
    while sum(chosen) < budget:
        chosen.append(min(lengths[len(chosen) % len(lengths)], budget - sum(chosen)))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCABULARY - 3, (budget,), generator=generator, dtype=torch.int32)
    return PackedTexts(["document"] * len(chosen), array("i", ids.tolist()), chosen, [0] * len(chosen))


def measure(
    sides: Mapping[str, Callable[[], object]], texts: PackedTexts, options: argparse.Namespace
) -> dict[str, Any]:
    """Tokens per second and share of each side."""
    dtype = getattr(torch, options.dtype)
    left, right = (torch.randn(MATMUL, MATMUL, device="cuda", dtype=dtype) for _ in range(2))
    variants = {**sides, "matmul": lambda: left @ right}
    seconds = interleave({name: in_a_row(work) for name, work in variants.items()}, options.runs)
    rate = 2 * MATMUL**3 / spread(seconds.pop("matmul"))["median"]
    tokens, work = sum(texts.lengths), flops(texts.lengths)
    result: dict[str, Any] = {"matmul_tflops": rate / 1e12}
    for name, times in seconds.items():
        took = spread(times)
        result[name] = {
            "share": work / took["median"] / rate,
            "tokens_per_second": tokens / took["median"],
            "milliseconds": spread(times, 1e3),
        }
    print(f"{tokens} tokens in {len(texts.lengths)} texts:", {name: result[name] for name in result}, flush=True)
    return result


def in_a_row(work: Callable[[], object]) -> Callable[[], float]:
    """Seconds of one of ten that follow each other without a pause; the host runs ahead of the device."""

    def run() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(IN_A_ROW):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / IN_A_ROW

    return run


if __name__ == "__main__":
    main()

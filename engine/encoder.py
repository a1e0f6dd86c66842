"""The encoder: a packed batch of token ids in, normalised token embeddings out. Knows no socket, request or store."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from engine.attention import attend_in_window, attend_per_text, attend_varlen
from engine.bert import Bert
from engine.checkpoint import load_bert_weights, load_modern_bert_weights, load_projection
from engine.encoder_config import EncoderConfig
from engine.graphs import GraphedBatches
from engine.linear import Linear
from engine.model_spec import LoadedModel
from engine.modern_bert import ModernBert
from engine.modern_bert_config import ModernBertConfig
from engine.packing import Numbers, PackedBatch, PackedTexts, fill_up, pack, pack_numbers, split
from engine.pinned import on_device
from engine.text_rules import TextRules
from ipc.messages import Role, TextSpec

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda rows: rows,
    "tanh": torch.tanh,
    "relu": functional.relu,
    "gelu": functional.gelu,
}
CPU = torch.device("cpu")
QUICK_TOKENS = 4096  # of a batch that is launched in 0.8 ms where it has 64 texts, in 1.5 where it has 256: by hand
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """The scored rows of a batch, one text after the other."""

    embeddings: torch.Tensor  # [sum(rows), dim] float32, contiguous, every row of length 1
    rows: list[int]  # [n]; 0 where every token is skipped


class Encoder:
    """Encoder, projections, normalisation and skip list of one model, in the order of its reference (docs/models.md).

    Args:
        model: whose weights are read.
        dtype: what encoder and projections compute in; the normalisation is in float32.
        is_deterministic: encode each text by itself, so that its embeddings are bitwise the same whatever else is in
            the batch (P4). Without it they differ by rounding, as a product of more rows adds in another order.

    Raises:
        ModelError: weights are missing or have another shape than the configuration says.
    """

    def __init__(
        self,
        model: LoadedModel,
        dtype: torch.dtype,
        is_deterministic: bool = False,
        device: torch.device = CPU,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.is_deterministic = is_deterministic
        self.dim = model.spec.dim
        self._specs: dict[Role, TextSpec] = {"query": model.spec.query, "document": model.spec.document}
        network = _load_network(model, dtype, device)
        self._network, self._is_same_launches = network.forward, network.is_same_launches
        self._graphs: GraphedBatches | None = None
        self._projections = [
            (Linear(*_to(device, load_projection(projection, dtype))), _ACTIVATIONS[projection.activation])
            for projection in model.projections
        ]
        skipped: dict[Role, Sequence[int]] = {role: spec.skip_token_ids for role, spec in self._specs.items()}
        self.rules = TextRules(model.vocab_size, model.max_positions, skipped)

    @classmethod
    def load(cls, model: LoadedModel, device: str, dtype: str, threads: int, is_deterministic: bool = False) -> Encoder:
        """Read the weights.

        Args:
            device: "cpu" or "cuda".
            dtype: "float32", "float16", "bfloat16", or "auto": float32 on a CPU; on CUDA float16 where the activations
                of a self-check's texts stay finite, else bfloat16.
            threads: of this process's matrix products; set for the whole process.

        Raises:
            ModelError: weights are missing or have another shape than the configuration says.
            ValueError: another device or dtype; the message names it.
        """
        if torch.device(device).type not in ("cpu", "cuda"):
            raise ValueError(f"device: {device!r}, expected 'cpu' or 'cuda'")
        if dtype != "auto" and dtype not in _DTYPES:
            raise ValueError(f"dtype: {dtype!r}, expected one of auto, {', '.join(_DTYPES)}")
        torch.set_num_threads(threads)
        where = torch.device(device)
        if dtype != "auto":
            return cls(model, _DTYPES[dtype], is_deterministic, where)
        if where.type == "cpu":
            return cls(model, torch.float32, is_deterministic, where)
        encoder = cls(model, torch.float16, is_deterministic, where)
        return encoder if encoder.stays_finite() else cls(model, torch.bfloat16, is_deterministic, where)

    def stays_finite(self) -> bool:
        """Whether texts of many random ids, as long as the model takes them, have finite embeddings."""
        generator = torch.Generator().manual_seed(0)
        length = min(self.rules.max_positions, 512)
        ids = torch.randint(self.rules.vocab_size, (8 * length,), generator=generator, dtype=torch.int32)
        texts = PackedTexts(["document"] * 8, array("i", ids.tolist()), [length] * 8, [0] * 8)
        return bool(torch.isfinite(self.encode(texts).embeddings).all())

    @property
    def dtype_name(self) -> str:
        """As `--dtype` names it, never "auto"."""
        return str(self.dtype).removeprefix("torch.")

    @torch.inference_mode()
    def encode(self, texts: PackedTexts) -> EncodedTexts:
        """The embeddings of a batch, which may mix roles.

        Raises:
            ValueError: its rules find a text wrong, or fields do not fit each other; the message names text and field.
        """
        self._check_all(texts)
        if not self.is_deterministic or len(texts.lengths) == 1:
            return self._encode(texts)
        alone = [self._encode(text) for text in split(texts)]
        return EncodedTexts(torch.cat([text.embeddings for text in alone]), [text.rows[0] for text in alone])

    def is_quick_to_launch(self, lengths: Sequence[int]) -> bool:
        """Whether `encode` returns in 1.5 ms at most for texts of these lengths; what the device has to do is no part
        of it."""
        if self._graphs is None or self.is_deterministic:
            return False
        return sum(lengths) <= QUICK_TOKENS and self._graphs.takes(lengths)

    @torch.inference_mode()
    def warm_up(self, max_batch_tokens: int) -> float:
        """Run the largest batches, of long texts and of short ones, and on CUDA capture their graphs.
        Afterwards no batch up to this size takes more memory. Run it on the stream that will encode.

        Returns:
            The seconds of a full batch.
        """
        seconds = 0.0
        for length in (32, min(self.rules.max_positions, 8192, max_batch_tokens), min(self.rules.max_positions, 256)):
            count = max(1, max_batch_tokens // length)
            texts = PackedTexts(["document"] * count, array("i", [0] * (length * count)), [length] * count, [0] * count)
            kept: deque[EncodedTexts] = deque(maxlen=2)  # as many batches may be on their way
            for _ in range(3):
                started = time.perf_counter()
                kept.append(self.encode(texts))
                self._synchronize()
                seconds = time.perf_counter() - started
            seconds *= max_batch_tokens / (length * count)
        if self._is_same_launches:
            self._graphs = GraphedBatches(self._forward, self.device, max_batch_tokens)
        return seconds

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()

    def _encode(self, texts: PackedTexts) -> EncodedTexts:
        attends = [self._specs[role].attend_expansion for role in texts.roles]
        if self._graphs is not None and self._graphs.takes(texts.lengths):
            numbers = pack_numbers(texts, attends)
            kept, rows = self._kept_rows(texts)
            return EncodedTexts(self._graphs(numbers, kept), rows)
        if self.device.type == "cpu":
            embeddings = self._forward(fill_up(pack(texts, attends)))[: len(texts.token_ids)]
        else:
            embeddings = self._forward(pack(texts, attends, self.device))
        kept, rows = self._kept_rows(texts)
        if kept is None:
            return EncodedTexts(embeddings, rows)
        which = torch.from_numpy(kept) if self.device.type == "cpu" else on_device(kept, self.device)
        return EncodedTexts(embeddings[which], rows)

    def _forward(self, batch: PackedBatch) -> torch.Tensor:
        """[total_tokens, dim] float32, every row of length 1."""
        rows = self._network(batch)  # [total_tokens, hidden]
        for project, activation in self._projections:
            rows = activation(project(rows))
        # p=2, epsilon 1e-12: as the reference's Normalize
        return functional.normalize(rows.float(), dim=-1)

    def _check_all(self, texts: PackedTexts) -> None:
        if self._are_fine(texts):
            return
        token_ids, start = memoryview(texts.token_ids), 0
        for number, (length, expansion) in enumerate(zip(texts.lengths, texts.expansion, strict=False)):
            problem = self.rules.check(token_ids[start : start + length], expansion)
            if problem is not None:
                raise ValueError(f"text {number}: {problem}")
            start += length

    def _are_fine(self, texts: PackedTexts) -> bool:
        """Whether the rules pass them all, in a few steps for all of them. False says nothing."""
        if len(texts.lengths) != len(texts.expansion) or not self.rules.are_fine(texts.token_ids, texts.lengths):
            return False
        expansion = np.array(texts.expansion)
        return bool((expansion >= 0).all() and (expansion < texts.lengths).all())

    def _kept_rows(self, texts: PackedTexts) -> tuple[Numbers | None, list[int]]:
        """Which rows of a batch are scored, None for all of them, and how many of each text.

        It is found out on the CPU, where the ids come from: nothing waits for the device.
        """
        tables = {role: table for role in self._specs if (table := self.rules.skip_table(role)) is not None}
        if tables.keys().isdisjoint(texts.roles):
            return None, list(texts.lengths)
        token_ids, lengths = np.frombuffer(texts.token_ids, np.int32), np.array(texts.lengths)
        is_kept = np.ones(len(token_ids), np.bool_)
        for role, table in tables.items():
            has_role = np.repeat(np.array([each == role for each in texts.roles]), lengths)
            is_kept &= ~(table.take(token_ids) & has_role)
        kept = np.flatnonzero(is_kept)
        owners = np.repeat(np.arange(len(lengths)), lengths)[kept]
        rows: list[int] = np.bincount(owners, minlength=len(lengths)).tolist()
        return kept, rows


@dataclass(frozen=True, slots=True)
class _Network:
    """An encoder without its projections."""

    forward: Callable[[PackedBatch], torch.Tensor]  # a batch -> [total_tokens, hidden]
    is_same_launches: bool  # whatever the lengths of the texts are, so that a CUDA graph can hold them


def _load_network(model: LoadedModel, dtype: torch.dtype, device: torch.device) -> _Network:
    """The fastest one there is for this model; float32 on CUDA is for checks, not for speed."""
    config = model.config
    weights = (
        load_modern_bert_weights(model.weights, config, dtype)
        if isinstance(config, ModernBertConfig)
        else load_bert_weights(model.weights, config, dtype)
    )
    weights = {name: weight.to(device) for name, weight in weights.items()}
    if device.type == "cuda" and dtype != torch.float32:
        from engine.attention_triton import can_attend  # triton: there on CUDA machines only

        if can_attend(config.head_dim, dtype):
            return _Network(_load_fused(config, weights), is_same_launches=True)
        if isinstance(config, ModernBertConfig):
            return _Network(ModernBert(config, weights, attend_varlen, attend_in_window), is_same_launches=False)
        return _Network(Bert(config, weights, attend_varlen), is_same_launches=True)
    if isinstance(config, ModernBertConfig):
        return _Network(ModernBert(config, weights, attend_per_text, attend_in_window), is_same_launches=False)
    return _Network(Bert(config, weights, attend_per_text), is_same_launches=False)


def _load_fused(config: EncoderConfig, weights: Mapping[str, torch.Tensor]) -> Callable[[PackedBatch], torch.Tensor]:
    """With own kernels, all of them compiled."""
    from engine.attention_triton import attend_triton, compile_kernels
    from engine.fused_bert import FusedBert

    if not isinstance(config, ModernBertConfig):
        return FusedBert(config, weights)
    first = next(iter(weights.values()))
    row = first.new_zeros(1, 3, config.num_attention_heads, config.head_dim)
    compile_kernels(row)
    compile_kernels(row, config.local_attention // 2)
    return ModernBert(config, weights, attend_triton, attend_triton)


def _to(
    device: torch.device, tensors: tuple[torch.Tensor, torch.Tensor | None]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight, bias = tensors
    return weight.to(device), bias.to(device) if bias is not None else None

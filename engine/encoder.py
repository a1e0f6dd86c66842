"""The encoder: a packed batch of token ids in, normalised token embeddings out. Knows no socket, request or store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.bert import Bert
from engine.checkpoint import load_bert_weights, load_projection
from engine.model_spec import LoadedModel
from engine.packing import PackedTexts
from ipc.messages import TextSpec

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
}
_DTYPES = {"auto": torch.float32, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """The scored rows of a batch, one text after the other."""

    embeddings: torch.Tensor  # [sum(rows), dim] float32, L2-normalised
    rows: list[int]  # [n]


class Encoder:
    """Encoder, projections, normalisation and skip list of one model, as its reference has them.

    Order of operations (docs: fidelity): encoder, projections, L2 normalisation, then rows of skipped tokens are left out.
    Expansion rows are scored; unless the model says so, nobody attends to them.
    """

    def __init__(self, model: LoadedModel, dtype: torch.dtype) -> None:
        self._config = model.config
        self._spec = model.spec
        weights = load_bert_weights(model.weights, model.config)
        self._bert = Bert(model.config, {name: tensor.to(dtype) for name, tensor in weights.items()})
        self._projections = [
            (*load_projection(projection, dtype), _ACTIVATIONS[projection.activation])
            for projection in model.projections
        ]
        self._skipped = {
            role: torch.tensor(spec.skip_token_ids, dtype=torch.int64)
            for role, spec in (("query", model.spec.query), ("document", model.spec.document))
        }

    @classmethod
    def load(cls, model: LoadedModel, device: str, dtype: str, threads: int) -> Encoder:
        """Read the weights.

        Args:
            device: "cpu".
            dtype: "auto" (float32 on a CPU), "float32", "float16" or "bfloat16".
            threads: of this process's matmuls.

        Raises:
            ModelError: weights are missing or have another shape than the configuration says.
        """
        assert device == "cpu", device
        torch.set_num_threads(threads)
        return cls(model, _DTYPES[dtype])

    def check(self, token_ids: memoryview) -> str | None:
        """What is wrong with a text's ids, naming the rule; None if nothing is."""
        if not len(token_ids):
            return "token_ids: at least 1"
        if len(token_ids) > self._config.max_position_embeddings:
            return f"token_ids: {len(token_ids)}, at most {self._config.max_position_embeddings}"
        if max(token_ids) >= self._config.vocab_size:
            return f"token_ids: {max(token_ids)} is outside the vocabulary of {self._config.vocab_size}"
        return None

    @torch.inference_mode()
    def encode(self, texts: PackedTexts) -> EncodedTexts:
        """The embeddings of a batch. Every text must pass `check`."""
        lengths = list(texts.lengths)
        token_ids = torch.frombuffer(texts.token_ids, dtype=torch.int32).long()  # [total_tokens]
        position_ids = torch.cat([torch.arange(length) for length in lengths])
        attended = [self._attended(*text) for text in zip(texts.roles, lengths, texts.expansion, strict=True)]
        embeddings = self._bert(token_ids, position_ids, lengths, attended)  # [total_tokens, hidden]
        for weight, bias, activation in self._projections:
            embeddings = activation(F.linear(embeddings, weight, bias))
        embeddings = F.normalize(embeddings.float(), dim=-1)  # [total_tokens, dim]
        return self._leave_out_skipped(embeddings, token_ids, texts.roles, lengths)

    def _attended(self, role: str, length: int, expansion: int) -> int:
        """How many leading rows of a text others attend to."""
        spec: TextSpec = self._spec.query if role == "query" else self._spec.document
        return length if spec.attend_expansion else length - expansion

    def _leave_out_skipped(
        self, embeddings: torch.Tensor, token_ids: torch.Tensor, roles: Sequence[str], lengths: list[int]
    ) -> EncodedTexts:
        if not any(len(self._skipped[role]) for role in set(roles)):
            return EncodedTexts(embeddings, lengths)
        kept = [~torch.isin(ids, self._skipped[role]) for role, ids in zip(roles, torch.split(token_ids, lengths), strict=True)]
        rows = [int(mask.sum()) for mask in kept]
        return EncodedTexts(embeddings[torch.cat(kept)], rows)

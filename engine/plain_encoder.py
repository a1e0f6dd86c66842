"""The plain path of every family: from one text's ids to its token embeddings, with nothing fused, packed or prepared.

Source: Khattab & Zaharia 2020 (ColBERT).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from engine.checkpoint import load_projection
from engine.model_spec import LoadedModel
from engine.modern_bert_config import ModernBertConfig
from engine.plain_bert import PlainBert, gelu
from engine.plain_modern_bert import PlainModernBert
from ipc.messages import Role

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda rows: rows,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": gelu,
}


class PlainEncoder:
    """One text's ids in, its token embeddings out, on the CPU.

    Args:
        dtype: float32; or what a half's own rounding comes to is asked, as `plain_bert` says.

    Raises:
        ModelError: weights are missing or have another shape than the configuration says.
    """

    def __init__(self, model: LoadedModel, dtype: torch.dtype = torch.float32) -> None:
        self._model = model
        config = model.config
        self._network = (
            PlainModernBert(model.weights, config, dtype)
            if isinstance(config, ModernBertConfig)
            else PlainBert(model.weights, config, dtype)
        )
        self._projections = [
            (*load_projection(projection, dtype), _ACTIVATIONS[projection.activation])
            for projection in model.projections
        ]

    def encode(self, role: Role, token_ids: Sequence[int], expansion: int) -> torch.Tensor:
        """[rows, dim] float32; tokens on the skip list have no row.

        Args:
            expansion: how many of the last ids are expansion rows.
        """
        spec = self._model.spec.query if role == "query" else self._model.spec.document
        attended = torch.ones(len(token_ids), dtype=torch.bool)
        if expansion and not spec.attend_expansion:
            attended[-expansion:] = False
        rows = self._network.hidden(torch.tensor(token_ids), attended)
        for weight, bias, activation in self._projections:
            rows = rows @ weight.T
            rows = activation(rows if bias is None else rows + bias)
        rows = rows.float()
        rows = rows / rows.pow(2).sum(1, keepdim=True).sqrt().clamp_min(1e-12)
        skipped = set(spec.skip_token_ids)
        return rows[[place for place, token_id in enumerate(token_ids) if token_id not in skipped]]

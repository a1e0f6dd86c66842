"""Whether the fast path computes what the plain one does, on this machine, with these weights.

The texts are fixed: made-up ids of every kind of length, queries and documents in one packed batch. That token ids are
right is another matter: tests/engine/test_parity.py holds them, and both paths' embeddings, against the reference.
"""

from __future__ import annotations

import math
import random
import time
from array import array
from dataclasses import dataclass

import torch

from engine.encoder import Encoder
from engine.model_spec import LoadedModel
from engine.packing import PackedTexts
from engine.plain_encoder import PlainEncoder
from ipc.messages import Role, SelfCheck, TextSpec

QUERY_LENGTHS = (1, 7, 32, 512)  # before expansion; cut to the model's
DOCUMENT_LENGTHS = (1, 2, 17, 64, 180, 512)
FP32_TOLERANCE, FP32_TOLERANCE_PER_ROW = 1e-3, 2e-5  # promise P3: up to 64 query rows, and for each beyond
ROUNDING = {torch.float32: 1.0, torch.float16: 8.0, torch.bfloat16: 64.0}  # times P3's distance: their own rounding


@dataclass(frozen=True, slots=True)
class _Text:
    role: Role
    token_ids: list[int]
    expansion: int


@torch.inference_mode()
def run_self_check(model: LoadedModel, encoder: Encoder) -> SelfCheck:
    """Score every fixed query with every fixed document by both paths. In halves the tolerance is 8 (float16) and 64
    (bfloat16) times wider.
    """
    choose = random.Random(0)
    queries = [_make_text(model, "query", model.spec.query, length, choose) for length in QUERY_LENGTHS]
    documents = [_make_text(model, "document", model.spec.document, length, choose) for length in DOCUMENT_LENGTHS]
    texts = [*queries, *documents]
    fast = _encode_packed(encoder, texts)
    plain_encoder = PlainEncoder(model)
    plain = [plain_encoder.encode(text.role, text.token_ids, text.expansion) for text in texts]
    worst: tuple[float, float, float] = (-1.0, 0.0, 0.0)  # share of what is allowed, difference, what is allowed
    for query in range(len(queries)):
        rows = len(plain[query])
        allowed = ROUNDING[encoder.dtype] * (FP32_TOLERANCE + FP32_TOLERANCE_PER_ROW * max(0, rows - 64))
        for document in range(len(queries), len(texts)):
            difference = abs(_maxsim(fast[query], fast[document]) - _maxsim(plain[query], plain[document]))
            share = math.inf if math.isnan(difference) else difference / allowed
            worst = max(worst, (share, difference, allowed), key=lambda pair: pair[0])
    return SelfCheck(
        pairs=len(queries) * len(documents),
        largest_difference=worst[1],
        tolerance=worst[2],
        dtype=encoder.dtype_name,
        device=str(encoder.device),
        checked_at=int(time.time()),
    )


def _make_text(model: LoadedModel, role: Role, spec: TextSpec, length: int, choose: random.Random) -> _Text:
    """Random ids, with the expansion rows that a text of this length gets."""
    length = min(length, spec.max_length)
    token_ids = [choose.randrange(model.vocab_size) for _ in range(length)]
    total = spec.expansion_length if spec.expansion != "none" else length
    expansion = max(0, total - length)
    return _Text(role, token_ids + [spec.expansion_token_id] * expansion, expansion)


def _encode_packed(encoder: Encoder, texts: list[_Text]) -> list[torch.Tensor]:
    ids = array("i")
    for text in texts:
        ids.extend(text.token_ids)
    result = encoder.encode(
        PackedTexts(
            roles=[text.role for text in texts],
            token_ids=ids,
            lengths=[len(text.token_ids) for text in texts],
            expansion=[text.expansion for text in texts],
        )
    )
    return list(torch.split(result.embeddings, result.rows))


def _maxsim(query: torch.Tensor, document: torch.Tensor) -> float:
    if not len(query) or not len(document):
        return 0.0
    return float((query.double() @ document.double().T).max(1).values.sum())

"""Whether the fast path computes what the plain one does, on this machine, with these weights.

The texts are fixed: made-up ids of every kind of length, queries and documents in one packed batch. That token ids are
right is another matter: tests/engine/test_parity.py holds them, and both paths' embeddings, against the reference.
"""

from __future__ import annotations

import math
import random
import time
from array import array
from dataclasses import dataclass, replace

import torch

from engine.encoder import Encoder
from engine.model_spec import LoadedModel
from engine.packing import PackedTexts
from engine.plain_encoder import PlainEncoder
from ipc.messages import Role, SelfCheck, TextSpec

QUERY_LENGTHS = (1, 7, 32, 512)  # ascending, before expansion; cut to the model's
DOCUMENT_LENGTHS = (1, 2, 17, 64, 180, 512)
FP32_TOLERANCE, FP32_TOLERANCE_PER_ROW = 1e-3, 2e-5  # promise P3: up to 64 query rows, and for each beyond
ROUNDING = {torch.float32: 1.0, torch.float16: 8.0, torch.bfloat16: 64.0}  # times P3's distance: their own rounding
OWN_ROUNDING = 4.0  # times what the plain path differs by when it computes in the same half
MOST_ROUNDING = 0.05  # of a query's rows: more is not taken for rounding, whatever the plain path does
MANY_ROWS = 4096  # in one batch: on CUDA those have kernels of their own (`linear_triton`)


@dataclass(frozen=True, slots=True)
class _Text:
    role: Role
    token_ids: list[int]
    expansion: int


@dataclass(frozen=True, slots=True)
class _Difference:
    """Between two paths, of one score."""

    query: int
    rows: int  # of the query
    size: float
    allowed: float

    @property
    def share(self) -> float:
        """Of what is allowed; infinite for what is no number."""
        return math.inf if math.isnan(self.size) else self.size / self.allowed


@torch.inference_mode()
def run_self_check(model: LoadedModel, encoder: Encoder) -> SelfCheck:
    """Score every fixed query with every fixed document by both paths.

    In halves the tolerance is 8 (float16) and 64 (bfloat16) times wider. Where that is not enough it is what the
    rounding itself comes to with these weights: four times the plain path's difference when it computes in that half.

    On CUDA the texts are encoded twice: in a batch of their own, and as the last ones of a batch of MANY_ROWS.
    """
    choose = random.Random(0)
    queries = [_make_text(model, "query", model.spec.query, length, choose) for length in QUERY_LENGTHS]
    documents = [_make_text(model, "document", model.spec.document, length, choose) for length in DOCUMENT_LENGTHS]
    texts = [*queries, *documents]
    plain = _encode_plain(model, texts, torch.float32)
    differences = _compare(_encode_packed(encoder, texts), plain, encoder.dtype)
    if encoder.device.type == "cuda":
        differences += _compare(_encode_among_many(encoder, texts), plain, encoder.dtype)
    worst = max(differences, key=lambda each: each.share)
    if worst.share > 1 and encoder.dtype != torch.float32 and math.isfinite(worst.size):
        own = _compare(_encode_plain(model, texts, encoder.dtype), plain, encoder.dtype)
        if all(math.isfinite(each.size) for each in own):
            worst = max((_with_own_rounding(each, own) for each in differences), key=lambda each: each.share)
    return SelfCheck(
        pairs=len(queries) * len(documents),
        largest_difference=worst.size,
        tolerance=worst.allowed,
        dtype=encoder.dtype_name,
        device=str(encoder.device),
        checked_at=int(time.time()),
    )


def _compare(ours: list[torch.Tensor], plain: list[torch.Tensor], dtype: torch.dtype) -> list[_Difference]:
    """Of every query's score with every document, and what is allowed in this dtype."""
    num_queries = len(QUERY_LENGTHS)
    differences = []
    for query in range(num_queries):
        rows = len(plain[query])
        allowed = ROUNDING[dtype] * (FP32_TOLERANCE + FP32_TOLERANCE_PER_ROW * max(0, rows - 64))
        for document in range(num_queries, len(plain)):
            size = abs(_maxsim(ours[query], ours[document]) - _maxsim(plain[query], plain[document]))
            differences.append(_Difference(query, rows, size, allowed))
    return differences


def _with_own_rounding(difference: _Difference, own: list[_Difference]) -> _Difference:
    """As much more allowed as the half's own rounding was seen to make of the same query, or of a shorter one."""
    seen = max(each.size for each in own if each.query <= difference.query)
    rounding = min(OWN_ROUNDING * seen, MOST_ROUNDING * difference.rows)
    return replace(difference, allowed=max(difference.allowed, rounding))


def _encode_plain(model: LoadedModel, texts: list[_Text], dtype: torch.dtype) -> list[torch.Tensor]:
    encoder = PlainEncoder(model, dtype)
    return [encoder.encode(text.role, text.token_ids, text.expansion) for text in texts]


def _make_text(model: LoadedModel, role: Role, spec: TextSpec, length: int, choose: random.Random) -> _Text:
    """Random ids, with the expansion rows that a text of this length gets."""
    length = min(length, spec.max_length)
    token_ids = [choose.randrange(model.vocab_size) for _ in range(length)]
    total = spec.expansion_length if spec.expansion != "none" else length
    expansion = max(0, total - length)
    return _Text(role, token_ids + [spec.expansion_token_id] * expansion, expansion)


def _encode_among_many(encoder: Encoder, texts: list[_Text]) -> list[torch.Tensor]:
    """As `_encode_packed`, in a batch of MANY_ROWS or more, whose last texts they are."""
    rows = sum(len(text.token_ids) for text in texts)
    return _encode_packed(encoder, texts * -(-MANY_ROWS // rows))[-len(texts) :]


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

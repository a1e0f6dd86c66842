"""The queries and documents that the traffic is made of, and the reference's score of each pair of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from tests.end_to_end.running_server import Floats, as_input, maxsim, random_embeddings

DIM = 384
TOLERANCE = 1e-3  # P3, up to 64 query rows

QUERIES = ["Which animal sleeps outside?", "why do leaves change their colour in autumn", "a!"]
TEXTS = [
    f"{subject} {verb} {place}"
    for subject in ("a cat", "the dog", "one bird")
    for verb in ("sleeps", "runs")
    for place in ("at home", "outside", "in the garden of the neighbour, until somebody comes")
] + ["", "?!", "Chlorophyll ist ein grüner Farbstoff. 葉緑素は緑色の色素です。", "a leaf falls. " * 40, "autumn"]


@dataclass(frozen=True)
class Truth:
    """What may be asked, as a request's JSON carries it, and what must be answered."""

    queries: Sequence[Any]
    documents: Sequence[Any]
    scores: Mapping[tuple[int, int], float]  # by (query, document)
    embeddings: Mapping[str, Mapping[str, Floats]]  # by role and text


def compute_truth(reference: Any) -> Truth:
    """Texts and embeddings by value on both sides, each pair scored once in float64 from the reference's embeddings.

    Args:
        reference: sentence-transformers' MultiVectorEncoder of the served model, or what encodes as that does.
    """
    query_values = [random_embeddings(rows, DIM, rows) for rows in (5, 32)]
    document_values = [random_embeddings(rows, DIM, 100 + rows) for rows in (1, 16, 60, 180)]
    query_rows, document_rows = _rows(reference.encode_query(QUERIES)), _rows(reference.encode_document(TEXTS))
    queries = [*query_rows, *query_values]
    documents = [*document_rows, *document_values]
    scores = {
        (q, d): maxsim(queries[q], documents[d]) if len(documents[d]) else 0.0
        for q, d in product(range(len(queries)), range(len(documents)))
    }
    return Truth(
        [*QUERIES, *map(as_input, query_values)],
        [*TEXTS, *map(as_input, document_values)],
        scores,
        {
            "query": dict(zip(QUERIES, query_rows, strict=True)),
            "document": dict(zip(TEXTS, document_rows, strict=True)),
        },
    )


def _rows(embeddings: Sequence[Any]) -> list[Floats]:
    return [np.asarray(rows, dtype=np.float32).reshape(-1, DIM) for rows in embeddings]

"""Reranks a vector database's candidates: Qdrant finds them by one vector each, maxsimd ranks them by all their tokens.

Qdrant runs inside this process here (its local mode, in memory); with a URL in its place the code is the same. Install
its client and start a server with a model first:

    pip install qdrant-client
    maxsimd serve &
    python examples/qdrant_rerank.py "Which animal has three hearts?"

1. `POST /pooling` gives every passage's token embeddings, as float16 bytes.
2. A point of the database holds their mean, which is searched, and all of them, which are only kept.
3. A query's mean finds the candidates, many and fast. The body of `POST /rerank` is their token embeddings in
   safetensors: two bytes a number.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from safetensors.numpy import save

Floats = np.ndarray[tuple[int, ...], np.dtype[Any]]  # [tokens, dim]

COLLECTION = "passages"
SAMPLE = Path(__file__).with_name("sample.json")


def main() -> int:
    arguments = parse_arguments()
    sample = json.loads(SAMPLE.read_text("utf-8"))
    passages = [document["text"] for document in sample["documents"]]
    question = arguments.question or sample["query"]
    try:
        database = index(arguments.url, passages)
        (query,) = embed(arguments.url, [question], "query")
        candidates = search(database, query, arguments.candidates)
        ranked = rerank(arguments.url, query, [embeddings for _, embeddings in candidates])
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    except urllib.error.URLError as error:
        print(f"no server at {arguments.url}: {error.reason}", file=sys.stderr)
        return 1
    print(question)
    for place, score in ranked:
        number, _ = candidates[place]
        print(f"{score:8.3f}  was {place + 1:2}  passage {number:2}  {passages[number][:70]}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Search with Qdrant, rerank with maxsimd.")
    parser.add_argument("question", nargs="?", help="default: that of examples/sample.json")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the maxsimd server (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=10, help="how many to rerank (default: %(default)s)")
    return parser.parse_args()


def embed(url: str, texts: list[str], role: str) -> list[Floats]:
    """The token embeddings of each text: [tokens, dim] float16."""
    body = {"input": texts, "input_type": role, "encoding_format": "bytes", "embed_dtype": "float16"}
    body["endianness"] = "little"
    data, headers = post(f"{url}/pooling", json.dumps(body).encode(), "application/json")
    places = json.loads(headers["metadata"])["data"]
    return [np.frombuffer(data[each["start"] : each["end"]], "<f2").reshape(each["shape"]) for each in places]


def index(url: str, passages: list[str]) -> QdrantClient:
    """A database with a point for each passage."""
    embeddings = embed(url, passages, "document")
    dim = embeddings[0].shape[1]
    tokens = models.VectorParams(
        size=dim,
        distance=models.Distance.DOT,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        hnsw_config=models.HnswConfigDiff(m=0),  # kept, not searched
    )
    database = QdrantClient(":memory:")
    database.create_collection(
        COLLECTION,
        vectors_config={"mean": models.VectorParams(size=dim, distance=models.Distance.COSINE), "tokens": tokens},
    )
    points = [
        models.PointStruct(id=number, vector={"mean": mean(rows).tolist(), "tokens": rows.tolist()})
        for number, rows in enumerate(embeddings)
    ]
    database.upsert(COLLECTION, points)
    return database


def mean(rows: Floats) -> Floats:
    """One vector for a whole text: what the coarse search compares."""
    average: Floats = rows.astype(np.float32).mean(axis=0)
    return average


def search(database: QdrantClient, query: Floats, limit: int) -> list[tuple[int, Floats]]:
    """The numbers and token embeddings of the nearest passages."""
    found = database.query_points(
        COLLECTION, query=mean(query).tolist(), using="mean", limit=limit, with_vectors=["tokens"]
    )
    return [(int(point.id), np.asarray(vectors_of(point)["tokens"], dtype=np.float16)) for point in found.points]


def vectors_of(point: models.ScoredPoint) -> dict[str, Any]:
    assert isinstance(point.vector, dict)
    return point.vector


def rerank(url: str, query: Floats, documents: list[Floats]) -> list[tuple[int, float]]:
    """The documents' places and MaxSim scores, best first."""
    lengths = [len(rows) for rows in documents]
    tensors = {
        "query": query,
        "documents": np.concatenate(documents),
        "cu_seqlens": np.cumsum([0, *lengths], dtype=np.int32),
    }
    data, _ = post(f"{url}/rerank", save(tensors), "application/vnd.safetensors")
    return [(result["index"], result["relevance_score"]) for result in json.loads(data)["results"]]


def post(url: str, body: bytes, content_type: str) -> tuple[bytes, Any]:
    """The answer's body and headers."""
    request = urllib.request.Request(url, body, {"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read(), answer.headers


if __name__ == "__main__":
    sys.exit(main())

"""Reranks with token embeddings sent by value, as from a vector database, and mixes them with text.

The embeddings here are made up, so that this file needs no encoder and no numpy; yours come from the model that the
server serves, L2-normalised, one row per scored token. Start a server first:

    maxsimd serve --no-engine --dim 128 &
    python examples/rerank_embeddings.py --dim 128

or, to mix embeddings with text, a server with a model (the embedded one has 384 dimensions):

    maxsimd serve &
    python examples/rerank_embeddings.py --dim 384 --text "An octopus has three hearts."
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import random
import struct
import sys
import urllib.error
import urllib.request

Rows = list[list[float]]  # [tokens, dim]


def main() -> int:
    arguments = parse_arguments()
    generator = random.Random(20)
    query = unit_rows(generator, 8, arguments.dim)
    documents = [unit_rows(generator, tokens, arguments.dim) for tokens in (12, 40, 25)]
    body = {
        "query": embeddings_input(query),
        "documents": [embeddings_input(document) for document in documents] + arguments.text,
        "return_documents": False,
    }
    try:
        results = post(f"{arguments.url}/rerank", body)["results"]
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    except urllib.error.URLError as error:
        print(f"no server at {arguments.url}: {error.reason}", file=sys.stderr)
        return 1
    for result in results:
        index = int(result["index"])
        beside = f"computed here {maxsim(query, documents[index]):.5f}" if index < len(documents) else "text"
        print(f"document {index}  score {result['relevance_score']:.5f}  ({beside})")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rerank with embeddings sent by value.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server [default: %(default)s]")
    parser.add_argument("--dim", type=int, default=384, help="dimensions of the server's model [default: %(default)s]")
    parser.add_argument("--text", action="append", default=[], help="a document to send as text; may be repeated")
    return parser.parse_args()


def embeddings_input(rows: Rows) -> dict[str, object]:
    """The JSON form of one text's token embeddings: row-major little-endian float32, base64, with dtype and shape."""
    flat = [value for row in rows for value in row]
    data = base64.b64encode(struct.pack(f"<{len(flat)}f", *flat)).decode("ascii")
    return {"embeddings": {"data": data, "dtype": "float32", "shape": [len(rows), len(rows[0])]}}


def maxsim(query: Rows, document: Rows) -> float:
    """Sum over the query's tokens of the largest inner product with any token of the document."""
    return sum(max(inner_product(q, d) for d in document) for q in query)


def inner_product(q: list[float], d: list[float]) -> float:
    return sum(x * y for x, y in zip(q, d, strict=True))


def unit_rows(generator: random.Random, tokens: int, dim: int) -> Rows:
    """Made-up token embeddings of length 1."""
    rows = [[generator.gauss(0, 1) for _ in range(dim)] for _ in range(tokens)]
    return [[value / math.hypot(*row) for value in row] for row in rows]


def post(url: str, body: dict[str, object]) -> dict[str, list[dict[str, float]]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, list[dict[str, float]]] = json.load(response)
    return answer


if __name__ == "__main__":
    sys.exit(main())

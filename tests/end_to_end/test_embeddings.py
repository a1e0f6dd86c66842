"""Token embeddings out of a real server, from the engine or a worker that encodes: the reference's, in any form."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from tests.end_to_end.running_server import Floats, Server, as_input, maxsim, random_embeddings
from tests.end_to_end.test_rerank import DIM, DOCUMENTS, QUERY


@pytest.fixture(scope="module", params=["process", "worker"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server("--api-server-count", "1", "--engine-placement", request.param, "--embedding-cache-size", "64MiB")
    yield server
    server.end()


def answer_of(server: Server, path: str, body: Any) -> Any:
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


def floats(rows: Any) -> Floats:
    return np.asarray(rows, dtype=np.float32).reshape(-1, DIM)


def test_embeddings_are_the_reference_s_for_either_role(server: Server, reference: Any) -> None:
    found = answer_of(server, "/pooling", {"input": DOCUMENTS})
    for each, expected in zip(found["data"], reference.encode_document(DOCUMENTS), strict=True):
        assert floats(each["data"]) == pytest.approx(np.asarray(expected).reshape(-1, DIM), abs=1e-4)
    (query,) = answer_of(server, "/v1/embeddings", {"input": QUERY, "is_query": True})["data"]
    assert floats(query["embedding"]) == pytest.approx(np.asarray(reference.encode_query([QUERY])[0]), abs=1e-4)
    texts = {"query": QUERY, "documents": DOCUMENTS}
    usage = answer_of(server, "/rerank", texts)["usage"]["prompt_tokens"]
    asked = answer_of(server, "/v1/embeddings", {"input": QUERY, "input_type": "query"})["usage"]["prompt_tokens"]
    assert found["usage"]["prompt_tokens"] + asked == usage


def test_every_vocabulary_gives_the_same_embeddings(server: Server) -> None:
    expected = [floats(each["data"]) for each in answer_of(server, "/pooling", {"input": DOCUMENTS})["data"]]
    packed = server.post("/pooling", {"input": DOCUMENTS, "encoding_format": "bytes", "embed_dtype": "float16"})
    places = json.loads(packed.headers["metadata"])["data"]
    halves = [
        np.frombuffer(packed.content[each["start"] : each["end"]], "<f2").reshape(each["shape"]) for each in places
    ]
    encoded = answer_of(server, "/encode", {"texts": DOCUMENTS, "encoding_format": "base64"})
    by_name = {
        "jina": [each["embeddings"] for each in answer_of(server, "/v1/multi-vector", {"input": DOCUMENTS})["data"]],
        "tei": answer_of(server, "/embed_all", {"inputs": DOCUMENTS}),
        "next-plaid": [np.frombuffer(base64.b64decode(each), "<f4") for each in encoded["embeddings_b64"]],
    }
    for name, texts in by_name.items():
        for text, rows in zip(texts, expected, strict=True):
            assert floats(text) == pytest.approx(rows, abs=1e-5), name
    for half, rows in zip(halves, expected, strict=True):
        assert floats(half) == pytest.approx(rows, abs=1e-3)


def test_what_came_out_scores_as_the_texts_do(server: Server) -> None:
    documents = [each["data"] for each in answer_of(server, "/pooling", {"input": DOCUMENTS})["data"]]
    (query,) = answer_of(server, "/v1/embeddings", {"input": QUERY, "is_query": True})["data"]
    by_value = server.scores(as_input(floats(query["embedding"])), [as_input(floats(rows)) for rows in documents])
    assert by_value == pytest.approx(server.scores(QUERY, DOCUMENTS), abs=1e-4)
    assert by_value[0] == pytest.approx(maxsim(floats(query["embedding"]), floats(documents[0])), abs=1e-4)


def test_token_ids_are_the_text_that_they_were_made_of(server: Server) -> None:
    tokens = answer_of(server, "/tokenize", {"prompt": DOCUMENTS[0]})["tokens"]
    of_ids, of_text = answer_of(server, "/pooling", {"input": [tokens, DOCUMENTS[0]]})["data"]
    assert floats(of_ids["data"]) == pytest.approx(floats(of_text["data"]), abs=1e-5)
    refused = server.post("/pooling", {"input": [[1, 2], [2**31 - 1]]})
    assert refused.status_code == 400 and refused.json()["message"].startswith("input[1]: ")


def test_an_answer_of_many_parts_is_put_together_and_one_too_large_refused(server: Server) -> None:
    texts = [f"{number} " + "word " * (number % 90) for number in range(300)]
    body = {"input": texts, "encoding_format": "bytes", "embed_dtype": "bfloat16"}
    whole = server.post("/pooling", body)
    places = json.loads(whole.headers["metadata"])["data"]
    assert len(places) == 300 and places[-1]["end"] == len(whole.content)
    alone = server.post("/pooling", {**body, "input": texts[250]})
    part = whole.content[places[250]["start"] : places[250]["end"]]
    assert upper_halves(part) == pytest.approx(upper_halves(alone.content), abs=0.01)
    refused = server.post("/pooling", {"input": ["word " * 600] * 120})
    assert refused.status_code == 400 and refused.json()["message"].startswith("input: ")


def upper_halves(data: bytes) -> Floats:
    """bfloat16 as float32."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_score_as_base64_does(server: Server, dtype: torch.dtype) -> None:
    """What the library writes; the definition is computed on the same rounded numbers."""
    query, *documents = (
        torch.from_numpy(random_embeddings(count, DIM, count)).to(dtype) for count in (9, 40, 1, 300, 17)
    )
    cu_seqlens = torch.tensor([0, *(len(rows) for rows in documents)]).cumsum(0)
    packed = save({"query": query, "documents": torch.cat(documents), "cu_seqlens": cu_seqlens}, {"top_n": "3"})
    single = save({"query": query} | {f"document.{place}": rows for place, rows in enumerate(documents)})
    expected = [maxsim(query.float().numpy(), rows.float().numpy()) for rows in documents]
    for path, content_type in [("/score", "application/octet-stream"), ("/v1/score", "application/vnd.safetensors")]:
        for body in (packed, single):
            answer = server.post(path, body, **{"content-type": content_type})
            assert answer.status_code == 200, answer.text
            assert [each["score"] for each in answer.json()["data"]] == pytest.approx(expected, abs=1e-3)
    ranked = server.post("/rerank", packed, **{"content-type": "application/vnd.safetensors"}).json()["results"]
    assert [each["index"] for each in ranked] == np.argsort(expected)[::-1][:3].tolist()
    infinite = save({"query": query, "document.0": documents[0] * torch.inf})
    refused = server.post("/rerank", infinite, **{"content-type": "application/octet-stream"})
    assert refused.status_code == 400 and "finite" in refused.json()["message"]

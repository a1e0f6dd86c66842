"""next-plaid's own client against a real server: its encode and its two ways to rerank."""

from __future__ import annotations

import pytest
from next_plaid_client import NextPlaidClient
from next_plaid_client.exceptions import ValidationError

from tests.end_to_end.running_server import Server
from tests.end_to_end.test_rerank import DOCUMENTS, QUERY


def test_next_plaid_s_own_client_encodes_and_reranks(shared_server: Server) -> None:
    with NextPlaidClient(shared_server.url) as client:
        query = client.encode([QUERY], input_type="query").embeddings[0]
        documents = [{"embeddings": rows} for rows in client.encode(DOCUMENTS).embeddings]
        of_texts, of_embeddings = client.rerank(QUERY, DOCUMENTS), client.rerank(query, documents)
        assert of_texts.num_documents == of_embeddings.num_documents == len(DOCUMENTS)
        assert [each.index for each in of_embeddings.results] == [each.index for each in of_texts.results]
        scores = {each.index: each.score for each in of_embeddings.results}
        expected = shared_server.scores(QUERY, DOCUMENTS)
        assert [scores[place] for place in range(len(DOCUMENTS))] == pytest.approx(expected, abs=1e-4)
        with pytest.raises(ValidationError, match="pool_factor"):
            client.encode(["a"], pool_factor=2)

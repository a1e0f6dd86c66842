"""What the model's tokenizer makes of a text, as vLLM and TEI say it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.frontend.surface import Surface, WordRanker


def test_a_prompt_becomes_vllm_s_answer() -> None:
    answer = Surface().post("/tokenize", {"prompt": "three hearts, one", "model": None}).json()
    assert answer == {"count": 6, "max_model_len": 180, "tokens": [1, 4, 6, 7, 3, 2], "token_strs": None}


def test_special_tokens_are_left_out_and_strings_shown_if_asked() -> None:
    body = {"prompt": "three hearts", "add_special_tokens": False, "return_token_strs": True}
    answer = Surface().post("/tokenize", body).json()
    assert (answer["tokens"], answer["token_strs"], answer["count"]) == ([4, 6], ["three", "hearts"], 2)


@pytest.mark.parametrize("inputs", ["one heart", ["one heart"]])
def test_inputs_become_tei_s_answer(inputs: Any) -> None:
    (tokens,) = Surface().post("/tokenize", {"inputs": inputs}).json()
    assert tokens == [
        {"id": 1, "text": "[CLS]", "special": True, "start": None, "stop": None},
        {"id": 3, "text": "one", "special": False, "start": 0, "stop": 3},
        {"id": 5, "text": "heart", "special": False, "start": 4, "stop": 9},
        {"id": 2, "text": "[SEP]", "special": True, "start": None, "stop": None},
    ]


def test_tokens_become_their_text_again() -> None:
    server = Surface()
    tokens = server.post("/tokenize", {"prompt": "three hearts", "add_special_tokens": False}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": tokens}).json() == {"prompt": "three hearts"}
    assert server.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "yes"}, "add_special_tokens"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [8]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [2**70]}, "tokens[0]"),
    ],
)
def test_wrong_fields_are_named(path: str, body: dict[str, Any], field: str) -> None:
    response = Surface().post(path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, field), response.text


def test_too_many_inputs_are_refused_as_tei_does() -> None:
    response = Surface(max_documents_per_request=2).post("/tokenize", {"inputs": ["a", "b", "c"]})
    assert response.status_code == 400 and response.json()["error_type"] == "validation"


def test_without_an_encoder_there_is_no_tokenizer() -> None:
    response = Surface(WordRanker(None)).post("/tokenize", {"prompt": "a"})
    assert response.status_code == 400 and "--no-engine" in response.json()["message"]


def test_before_the_encoder_is_there_it_is_a_503() -> None:
    ranker = WordRanker()
    ranker.tokenizer = None
    assert Surface(ranker).post("/tokenize", {"prompt": "a"}).status_code == 503

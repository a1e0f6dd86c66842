"""From a request to a ranking task: limits, deadline, names of texts, whose turn it is."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from frontend.auth import digest_of
from frontend.call import LARGE_BODY
from frontend.ranking import RankingTask, TextInput
from tests.frontend.surface import DOCUMENTS, QUERY, Surface, embeddings, message_of


def task_of(
    surface: Surface, path: str = "/rerank", headers: dict[str, str] | None = None, **fields: Any
) -> RankingTask:
    response = surface.request(
        "POST", path, json={"query": QUERY, "documents": DOCUMENTS, **fields}, headers=headers or {}
    )
    assert response.status_code == 200, response.text
    return surface.ranker.tasks[-1]


@pytest.mark.parametrize(
    ("fields", "query_length", "document_length"),
    [
        pytest.param({}, 32, 180, id="the-model's"),
        pytest.param({"max_tokens_per_doc": 100, "max_tokens_per_query": 10}, 10, 100, id="lowered"),
        pytest.param({"max_tokens_per_doc": 4096, "max_tokens_per_query": 4096}, 32, 180, id="never-raised"),
        pytest.param({"max_tokens_per_doc": 0, "max_tokens_per_query": 0}, 32, 180, id="zero-is-the-model's"),
        pytest.param({"truncate_prompt_tokens": -1}, 32, 180, id="minus-one-is-the-model's"),
        pytest.param({"truncate_prompt_tokens": 50}, 32, 50, id="truncate-lowers-both"),
        pytest.param({"truncate_prompt_tokens": 50, "max_tokens_per_doc": 20}, 32, 20, id="the-lower-of-two"),
    ],
)
def test_limits_of_tokens(fields: dict[str, Any], query_length: int, document_length: int) -> None:
    task = task_of(Surface(), **fields)
    assert (task.query_length, task.document_length) == (query_length, document_length)


def test_a_limit_without_room_is_refused() -> None:
    assert message_of(Surface().rerank(max_tokens_per_doc=3)).startswith("max_tokens_per_doc: 3, at least 4")


def test_truncation_is_on_unless_it_is_switched_off() -> None:
    surface = Surface()
    assert [task_of(surface, truncation=value).truncation for value in (None, True, False)] == [True, True, False]


@pytest.mark.parametrize(
    ("fields", "headers", "seconds"),
    [
        pytest.param({}, {}, 30, id="the-server's"),
        pytest.param({"timeout_ms": 500}, {}, 0.5, id="field"),
        pytest.param({}, {"x-request-timeout": "2.5"}, 2.5, id="header"),
        pytest.param({"timeout_ms": 500}, {"x-request-timeout": "2.5"}, 0.5, id="the-lower-of-two"),
        pytest.param({"timeout_ms": 2**31 - 1}, {"x-request-timeout": "1e9"}, 30, id="never-raised"),
    ],
)
def test_a_request_lowers_its_deadline(fields: dict[str, Any], headers: dict[str, str], seconds: float) -> None:
    before = time.monotonic()
    deadline = task_of(Surface(request_timeout=30.0), headers=headers, **fields).deadline
    assert before + seconds <= deadline <= time.monotonic() + seconds


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e400", "soon", ""])
def test_a_wrong_timeout_header_is_refused_by_name(value: str) -> None:
    response = Surface().post("/rerank", {"query": "q", "documents": ["d"]}, x_request_timeout=value)
    assert message_of(response).startswith("x-request-timeout: ")


def keys_of(task: RankingTask) -> list[bytes]:
    return [text.key for text in (*task.queries, *task.documents) if isinstance(text, TextInput)]


def test_a_text_keeps_its_name_from_request_to_request() -> None:
    surface = Surface()
    assert keys_of(task_of(surface)) == keys_of(task_of(surface, "/v2/rerank", top_n=1, score_mode="unit"))


@pytest.mark.parametrize(
    "fields", [{"cache_salt": "s"}, {"truncation": False}, {"max_tokens_per_doc": 20, "max_tokens_per_query": 20}]
)
def test_what_changes_embeddings_or_who_may_find_them_changes_all_names(fields: dict[str, Any]) -> None:
    surface = Surface()
    assert not set(keys_of(task_of(surface))) & set(keys_of(task_of(surface, **fields)))


@pytest.mark.parametrize(("is_cache_per_key", "is_shared"), [(True, False), (False, True)])
def test_api_keys_share_names_only_where_the_cache_is_shared(is_cache_per_key: bool, is_shared: bool) -> None:
    surface = Surface(
        api_key_digests=(digest_of("a"), digest_of("b")),
        is_cache_per_key=is_cache_per_key,
    )
    tasks = [task_of(surface, headers={"authorization": f"Bearer {key}"}) for key in "ab"]
    assert (keys_of(tasks[0]) == keys_of(tasks[1])) == is_shared
    assert tasks[0].client != tasks[1].client


class CountedThreads(ThreadPoolExecutor):
    """Threads, and how often they were asked for."""

    asked = 0

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        self.asked += 1
        return super().submit(*arguments, **named)


@pytest.mark.parametrize(("document", "times"), [("one heart", 0), ({"text": "one heart"}, 1), (embeddings(2), 1)])
def test_only_where_there_may_be_embeddings_another_thread_looks_for_them(document: object, times: int) -> None:
    surface, threads = Surface(), CountedThreads(1)
    body = {"query": QUERY, "documents": [*DOCUMENTS, document], "unknown": "a" * LARGE_BODY}

    async def run() -> int:
        asyncio.get_running_loop().set_default_executor(threads)
        async with surface.client() as client:
            return (await client.post("/rerank", json=body)).status_code

    assert (asyncio.run(run()), threads.asked) == (200, times)

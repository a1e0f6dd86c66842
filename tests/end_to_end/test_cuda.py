"""The whole server on a CUDA device: right, encoded once, and back after a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.end_to_end.running_server import Server, as_input, maxsim, random_embeddings, wait_until

pytestmark = pytest.mark.gpu

DIM = 384
QUERY = "Why do leaves change their colour in autumn?"
DOCUMENTS = [
    "The green of a leaf is chlorophyll; in autumn it is broken down, and yellow carotenoids show.",
    "An engine turns heat into motion.",
    "Leaves! (They fall.) ... -- 'autumn'; \"colour\": 100 %, [sic] & more?",
    "",
    "word " * 700,
    "Chlorophyll ist ein grüner Farbstoff. 葉緑素は緑色の色素です。",
]
HALF_TOLERANCE = 0.02  # fp16 encoder and store; measured with sentence-transformers in fp16: .01 at 15 rows


@pytest.fixture(scope="module")
def on_cuda() -> Iterator[Server]:
    server = Server("--device", "cuda", "--api-server-count", "2", "--embedding-cache-size", "2GiB")
    yield server
    server.end()


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[Server]:
    server = Server("--device", "cpu", "--api-server-count", "1")
    yield server
    server.end()


def test_scores_are_those_of_the_cpu(on_cuda: Server, on_cpu: Server) -> None:
    expected = on_cpu.scores(QUERY, DOCUMENTS)
    assert on_cuda.scores(QUERY, DOCUMENTS) == pytest.approx(expected, abs=HALF_TOLERANCE)


def test_the_self_check_is_of_the_device(on_cuda: Server) -> None:
    (model,) = httpx.get(f"{on_cuda.url}/v1/models").json()["data"]
    check = model["self_check"]
    assert check["passed"] and check["device"].startswith("cuda") and check["dtype"] in ("float16", "bfloat16")


def test_embeddings_out_are_those_of_the_cpu_while_the_same_texts_are_scored(on_cuda: Server, on_cpu: Server) -> None:
    """A batch then holds texts for the store, texts for an answer, and texts for both."""
    texts = [f"{number}: {text}" for number in range(20) for text in DOCUMENTS]
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(on_cuda.post, "/pooling", {"input": texts[start::3]}) for start in range(3)]
        scores = pool.submit(on_cuda.scores, QUERY, texts).result()
    assert scores == pytest.approx(on_cpu.scores(QUERY, texts), abs=HALF_TOLERANCE)
    for start, answer in enumerate(asked):
        expected = on_cpu.post("/pooling", {"input": texts[start::3]}).json()["data"]
        for each, reference in zip(answer.result().json()["data"], expected, strict=True):
            assert np.asarray(each["data"]) == pytest.approx(np.asarray(reference["data"]), abs=HALF_TOLERANCE)


def test_embeddings_by_value_are_scored(on_cuda: Server) -> None:
    query = random_embeddings(9, DIM, 1)
    rows = [random_embeddings(length, DIM, length) for length in (1, 17, 180)]
    scores = on_cuda.scores(as_input(query), [as_input(each) for each in rows])
    assert scores == pytest.approx([maxsim(query, each) for each in rows], abs=HALF_TOLERANCE)


def test_the_second_time_nothing_is_encoded(on_cuda: Server) -> None:
    documents = [f"document number {number} of this test" for number in range(300)]
    first = on_cuda.scores(QUERY, documents)
    tokens = on_cuda.metric("maxsimd_worker_encoded_tokens")
    assert on_cuda.scores(QUERY, documents) == first
    assert on_cuda.metric("maxsimd_worker_encoded_tokens") == tokens


def test_many_at_once_get_their_own_scores(on_cuda: Server) -> None:
    rng = np.random.default_rng(0)
    words = ["leaf", "autumn", "engine", "heat", "green", "yellow", "blue", "heart", "octopus", "moss", "root"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 60))) for _ in range(60)]
    alone = {text: on_cuda.scores(QUERY, [text])[0] for text in texts}

    def ask(seed: int) -> None:
        chosen = list(np.random.default_rng(seed).choice(texts, 20))
        assert on_cuda.scores(QUERY, chosen) == pytest.approx([alone[text] for text in chosen], abs=HALF_TOLERANCE)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(64)))


def test_one_process_has_a_cuda_context(on_cuda: Server) -> None:
    """P2: only the worker maps libcuda."""
    on_cuda.scores(QUERY, DOCUMENTS)
    holders = []
    for pid in on_cuda.children():
        with open(f"/proc/{pid}/maps") as maps:
            if "libcuda.so" in maps.read():
                holders.append(pid)
    assert holders == on_cuda.children("scorer_worker")


def test_a_killed_worker_comes_back(on_cuda: Server) -> None:
    before = on_cuda.scores(QUERY, DOCUMENTS)
    (worker,) = on_cuda.children("scorer_worker")
    os.kill(worker, signal.SIGKILL)
    assert on_cuda.scores(QUERY, DOCUMENTS) == pytest.approx(before, abs=HALF_TOLERANCE)
    wait_until(on_cuda.is_ready)

"""The files of a served model are replaced, and a service dies: the server goes over to the new model as a whole.

The one that died reads the new files; the other one is ended for it, and reads them too. Whoever asked meanwhile is
answered by the old model or by the new one: never by the scores of a query of the one with documents of the other.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.model_spec import load_model
from engine.plain_encoder import PlainEncoder
from frontend.tokenizer import StatelessTokenizer
from ipc.messages import Role
from ipc.settings import ModelSettings
from tests.chaos.processes import ENGINE, ENGINE_PROCESS, HOSTED_ENCODER, NAMES, WORKER, restarts
from tests.chaos.traffic import Traffic
from tests.chaos.truth import DIM, QUERIES, TOLERANCE, Truth, compute_truth
from tests.end_to_end.running_server import Floats, Server, maxsim, wait_until
from tests.engine.checkpoints import write_stanford

SAID = "the model's files have changed: starting the "
# Of one request: it is cut into parts, of which some have been encoded when the others are not yet. All are new to the
# server, and as long as the model takes them.
MANY = [f"{number} " + "so long that it is cut " * 10 for number in range(2000)]


class PlainReference:
    """A checkpoint's embeddings one text at a time, with nothing packed; in the words of sentence-transformers."""

    def __init__(self, directory: Path) -> None:
        model = load_model(ModelSettings(model=str(directory)))
        self._spec = model.spec
        self._tokenizer = StatelessTokenizer(model.spec, model.tokenizer_json)
        self._encoder = PlainEncoder(model)

    def encode_query(self, texts: Sequence[str]) -> list[Floats]:
        return self._encode("query", self._spec.query.max_length, texts)

    def encode_document(self, texts: Sequence[str]) -> list[Floats]:
        return self._encode("document", self._spec.document.max_length, texts)

    def _encode(self, role: Role, limit: int, texts: Sequence[str]) -> list[Floats]:
        made = self._tokenizer.encode(role, texts, limit, True, texts)
        found: list[Floats] = []
        offset = 0
        for length, expansion in zip(made.lengths, made.expansion, strict=True):
            ids = made.token_ids[offset : offset + length].tolist()
            found.append(self._encoder.encode(role, ids, expansion).numpy())
            offset += length
        return found


@dataclass(frozen=True)
class Model:
    """A model on disk, and what is to be answered with it."""

    weights: bytes  # its one file of them
    truth: Truth
    many: Floats  # the first query's score of each of MANY


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """Two that differ in nothing but their weights."""
    directories = [write_stanford(tmp_path_factory.mktemp(name) / "model", dim=DIM) for name in ("old", "new")]
    path = directories[1] / "model.safetensors"
    weights = load_file(path)
    weights["linear.weight"] = torch.randn(DIM, weights["linear.weight"].shape[1], generator=torch.Generator())
    save_file(weights, path)
    old, new = map(read_model, directories)
    assert abs(old.many - new.many).min() > 10 * TOLERANCE, "an answer says which model it is of"
    return old, new


def read_model(directory: Path) -> Model:
    truth = compute_truth(PlainReference(directory))
    return Model((directory / "model.safetensors").read_bytes(), truth, read_scores(directory))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("placement", "victims"),
    [
        pytest.param(ENGINE_PROCESS, [WORKER], id="worker-dies", marks=pytest.mark.long),
        pytest.param(ENGINE_PROCESS, [ENGINE], id="engine-dies", marks=pytest.mark.long),
        pytest.param(ENGINE_PROCESS, [WORKER, ENGINE], id="both-die"),
        pytest.param(HOSTED_ENCODER, [WORKER], id="worker-that-encodes-dies"),
    ],
)
def test_replaced_model_is_served_once_a_service_has_died_and_no_answer_is_of_two_models(
    start: Callable[..., Server],
    models: tuple[Model, Model],
    tmp_path: Path,
    placement: tuple[str, ...],
    victims: Sequence[str],
) -> None:
    old, new = models
    directory = write_stanford(tmp_path / "model", dim=DIM)
    services = [WORKER] if placement == HOSTED_ENCODER else [WORKER, ENGINE]
    common = ("--api-server-count", "2", "--embedding-cache-size", "64MiB", "--request-timeout", "60")
    server = start(str(directory), *common, *placement)
    with Traffic(server.url, old.truth, seed=11) as traffic:
        traffic.wait_answers(50)
    assert traffic.problems == []

    encoded = "maxsimd_worker_encoded_texts" if placement == HOSTED_ENCODER else "maxsimd_engine_texts"
    with Traffic(server.url, old.truth, seed=12, other=new.truth) as traffic, ThreadPoolExecutor() as pool:
        traffic.wait_round()
        before = server.metric(encoded)
        asked = pool.submit(server.post, "/rerank", {"query": QUERIES[0], "documents": MANY, "timeout_ms": 60_000})
        wait_until(lambda: server.metric(encoded) > before + len(MANY) / 4)
        replace(directory, new)
        assert not asked.done()
        for victim in [server.children(module)[-1] for module in victims]:
            os.kill(victim, signal.SIGKILL)
        wait_until(lambda: all(restarts(server, module) for module in services))
        wait_until(server.is_ready)
        answer = asked.result()
        traffic.wait_round()
    assert traffic.problems == []
    assert traffic.resets == 0
    check_scores(answer, [old.many, new.many])
    if len(victims) < len(services):
        (other,) = set(services) - set(victims)
        assert SAID + NAMES[other] in server.log

    children = server.children()
    with Traffic(server.url, new.truth, seed=13) as traffic:
        traffic.wait_answers(200)
    assert traffic.problems == []
    assert traffic.resets == 0
    assert server.children() == children, "who has the new model is left alone"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("placement", "victims"),
    [
        pytest.param(ENGINE_PROCESS, [WORKER], id="worker-dies", marks=pytest.mark.long),
        pytest.param(ENGINE_PROCESS, [ENGINE], id="engine-dies"),
        pytest.param(ENGINE_PROCESS, [WORKER, ENGINE], id="both-die", marks=pytest.mark.long),
        pytest.param(HOSTED_ENCODER, [WORKER], id="worker-that-encodes-dies", marks=pytest.mark.long),
    ],
)
def test_replaced_model_may_have_other_dimensions_and_limits(
    start: Callable[..., Server], tmp_path: Path, placement: tuple[str, ...], victims: Sequence[str]
) -> None:
    """Embeddings of the one do not fit the other's store, nor its texts the other's positions."""
    directories = [
        write_stanford(tmp_path / "old", dim=DIM),
        write_stanford(tmp_path / "new", dim=DIM // 8, query_maxlen=8, doc_maxlen=20),
    ]
    models = [read_scores(directory) for directory in directories]
    served = tmp_path / "served"
    served.symlink_to(directories[0])
    server = start(str(served), "--api-server-count", "2", "--embedding-cache-size", "64MiB", *placement)
    body = {"query": QUERIES[0], "documents": MANY, "timeout_ms": 60_000}
    is_over = threading.Event()

    def keep_asking(first: int) -> int:
        """Of ever other documents, so that they have to be encoded by whoever is there."""
        places = itertools.count(first)
        for number, place in enumerate(places):
            some = slice(5 * place % len(MANY), 5 * place % len(MANY) + 5)
            answer = server.post("/rerank", {**body, "documents": MANY[some]})
            check_scores(answer, [model[some] for model in models])
            if is_over.is_set():
                return number
        raise AssertionError

    with ThreadPoolExecutor() as pool:
        small = [pool.submit(keep_asking, 97 * number) for number in range(4)]
        try:
            many = pool.submit(server.post, "/rerank", body)
            encoded = "maxsimd_worker_encoded_texts" if placement == HOSTED_ENCODER else "maxsimd_engine_texts"
            wait_until(lambda: server.metric(encoded) > len(MANY) / 4)
            (tmp_path / "next").symlink_to(directories[1])
            (tmp_path / "next").replace(served)
            assert not many.done()
            for victim in [server.children(module)[-1] for module in victims]:
                os.kill(victim, signal.SIGKILL)
            services = [WORKER] if placement == HOSTED_ENCODER else [WORKER, ENGINE]
            wait_until(lambda: all(restarts(server, module) for module in services))
            wait_until(server.is_ready)
            check_scores(many.result(), models)
        finally:
            is_over.set()
        assert all(asked.result() for asked in small)
    check_scores(server.post("/rerank", body), models[1:])


def read_scores(directory: Path) -> Floats:
    """The first query's score of each of MANY, by this model."""
    reference = PlainReference(directory)
    (query,), documents = reference.encode_query(QUERIES[:1]), reference.encode_document(MANY)
    return np.array([maxsim(query, rows) for rows in documents], dtype=np.float32)


def replace(directory: Path, model: Model) -> None:
    """Another model's weights, at once: whoever has opened the old ones goes on reading those."""
    made = directory / "model.safetensors.new"
    made.write_bytes(model.weights)
    made.replace(directory / "model.safetensors")


def check_scores(answer: httpx.Response, models: Sequence[Floats]) -> None:
    """All of them are one model's."""
    assert answer.status_code == 200, answer.text
    results = sorted(answer.json()["results"], key=lambda result: result["index"])
    scores = np.array([result["relevance_score"] for result in results])
    of_each = [np.isclose(scores, model, rtol=0, atol=TOLERANCE).sum() for model in models]
    assert len(scores) in of_each, f"of {len(scores)} scores so many are of each model: {of_each}"

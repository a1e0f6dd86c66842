"""Every setting of `maxsimd serve`: its default, the rule it obeys, and how to choose it.

`python -m frontend.config` writes docs/settings.md from this file; a test checks that the page is current.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from frontend.division import count_cores
from frontend.memory import available_memory
from frontend.options import (
    ConfigError,
    NamedOption,
    Option,
    named_options,
    one_of,
    origin,
    root_path,
    seconds,
    share,
    size,
    switch,
    text,
    whole_number,
)
from frontend.tls import TlsSettings, read_tls
from ipc.messages import MAX_PAIRS
from ipc.settings import LoadFormat, ModelSettings

DAY = 86_400.0
MAX_API_SERVERS = 64
MAX_UDS_BYTES = 107  # of a Unix socket's path, by the kernel
SMALLEST_STORE = 8 * 2**20  # four slabs of 2 MiB
LARGEST_DEFAULT_STORE = 4 * 2**30
DEFAULT_BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}
SPARE_PROCESS_MEMORY = 8 * 2**30  # from which on 150 MiB for a process that stands by are little
DEFAULT_STORE_SHARE = 0.2  # of the memory this process may use

SETTINGS = "Settings file"
MODEL, NETWORK, PROCESSES = "Model", "Network", "Processes and device"
BATCHING, STORE, LIMITS = "Batching", "Embedding store", "Limits and timeouts"
SECURITY, TLS, LOGGING = "Security", "TLS", "Logging"


def default_api_server_count() -> int:
    """1 below 4 cores, else a quarter of the cores and at most 4: most of the work is in the engine and the worker."""
    cores = count_cores()
    return 1 if cores < 4 else min(4, cores // 4)


def default_store_bytes() -> int:
    """A fifth of the memory this process may use, at most 4 GiB, in whole MiB."""
    share = int(available_memory() * DEFAULT_STORE_SHARE)
    return max(SMALLEST_STORE, min(LARGEST_DEFAULT_STORE, share // 2**20 * 2**20))


def default_cache_directory() -> str:
    """As the XDG base directory specification says."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path("~/.cache").expanduser()
    return str(root / "maxsimd")


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `maxsimd serve`. Read once at start; nothing reads the environment later.

    Raises:
        ConfigError: two settings contradict each other.
    """

    config: Annotated[
        str | None,
        Option(
            SETTINGS,
            "TOML file with settings, by the names of the flags without dashes: api-server-count = 4. A flag wins over "
            "its variable, a variable over the file. Keys are better in --api-key-file.",
            text,
            "PATH",
            default_text="none",
        ),
    ] = None
    model: Annotated[
        str | None,
        Option(
            MODEL,
            "A local directory or the name of a model on the Hugging Face hub. Without it, the small model of the "
            "[demo] extra, which is for trying out; serve a trained ColBERT model for real use.",
            text,
            "MODEL",
            default_text="the embedded all-MiniLM-L6-v2",
            positional=True,
        ),
    ] = None
    served_model_name: Annotated[
        tuple[str, ...],
        Option(
            MODEL,
            "Name to list in /v1/models and to put in answers. May be given several times; answers carry the first.",
            text,
            "NAME",
            default_text="MODEL",
            repeatable=True,
        ),
    ] = ()
    strict_model_name: Annotated[
        bool,
        Option(
            MODEL,
            "Answer 404 to a request that names another model. Off, because many clients send a fixed name.",
            switch,
        ),
    ] = False
    query_length: Annotated[
        int | None,
        Option(
            MODEL,
            "Longest query in tokens, special tokens and marker included; what is longer is cut.",
            whole_number(4, 65_536),
            "TOKENS",
            default_text="what the model's files say",
        ),
    ] = None
    document_length: Annotated[
        int | None,
        Option(
            MODEL,
            "Longest document in tokens, special tokens and marker included; what is longer is cut. Lower it to save "
            "encoding time and room in the store.",
            whole_number(4, 65_536),
            "TOKENS",
            default_text="what the model's files say",
        ),
    ] = None
    score_mode: Annotated[
        Literal["raw", "mean", "unit"],
        Option(
            MODEL,
            "raw: the sum over query tokens (MaxSim). mean: that divided by the number of query tokens, in [-1, 1]. "
            "unit: mean mapped to [0, 1], for clients that compare with a threshold. A request's score_mode wins.",
            one_of("raw", "mean", "unit"),
            "MODE",
        ),
    ] = "raw"

    dialect: Annotated[
        Literal["auto", "infinity"],
        Option(
            NETWORK,
            "auto: a request's path and keys say whose language it speaks. infinity: /rerank and /v1/rerank answer as "
            "Infinity does, with documents as plain strings, which other clients cannot read.",
            one_of("auto", "infinity"),
            "NAME",
        ),
    ] = "auto"
    host: Annotated[
        str,
        Option(
            NETWORK,
            "Address to listen on. 0.0.0.0 listens on every interface: set an API key then.",
            text,
            "ADDRESS",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Option(NETWORK, "TCP port. 0 picks a free one, which the ready line names.", whole_number(0, 65_535), "PORT"),
    ] = 8000
    uds: Annotated[
        str | None,
        Option(
            NETWORK,
            "Path of a Unix socket to listen on, in place of --host and --port. A socket file that nobody listens on "
            "any more is replaced.",
            text,
            "PATH",
            default_text="none",
        ),
    ] = None
    uds_mode: Annotated[
        Literal["600", "660", "666"],
        Option(
            NETWORK,
            "Who may connect to the Unix socket: 600 this user, 660 the group too, 666 everybody on this machine.",
            one_of("600", "660", "666"),
            "MODE",
        ),
    ] = "600"
    root_path: Annotated[
        str,
        Option(
            NETWORK,
            "Path under which a proxy serves this server, such as /rerankers/colbert. It may take it off requests or "
            "leave it on: /rerankers/colbert/rerank and /rerank are then the same.",
            root_path,
            "PATH",
            default_text="none",
        ),
    ] = ""
    cors_allow_origin: Annotated[
        tuple[str, ...],
        Option(
            NETWORK,
            "Origin of web pages that may ask this server and read its answers, such as https://app.example.org; may "
            "be given several times. * allows every page: set an API key then.",
            origin,
            "ORIGIN",
            default_text="none",
            repeatable=True,
        ),
    ] = ()

    api_server_count: Annotated[
        int,
        Option(
            PROCESSES,
            "API server processes, which parse, tokenise and answer without torch. Raise it when they are busy.",
            whole_number(1, MAX_API_SERVERS),
            "N",
            default_text="1 below 4 cores, else a quarter of the cores, at most 4",
        ),
    ] = msgspec.field(default_factory=default_api_server_count)
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Option(
            PROCESSES,
            "Where the scorer worker encodes and scores. auto is cuda where there is a device and a torch that can use "
            "it. No other process opens the device.",
            one_of("auto", "cpu", "cuda"),
            "DEVICE",
        ),
    ] = "auto"
    gpu_memory_utilization: Annotated[
        float,
        Option(
            PROCESSES,
            "Share of the CUDA device's memory that the worker may have. What weights and encoder leave of it becomes "
            "the embedding store.",
            share,
            "SHARE",
        ),
    ] = 0.9
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        Option(
            PROCESSES,
            "Number format of the encoder. auto is float32 on the CPU, where the others are slower; on CUDA float16 "
            "where the model's activations stay finite, else bfloat16.",
            one_of("auto", "float32", "float16", "bfloat16"),
            "DTYPE",
        ),
    ] = "auto"
    load_format: Annotated[
        LoadFormat,
        Option(
            PROCESSES,
            "auto reads the model's weights. dummy makes random ones in the shapes that its config.json says, to "
            "measure a model whose weights are not at hand; every score is then meaningless.",
            one_of("auto", "dummy"),
            "FORMAT",
        ),
    ] = "auto"
    deterministic: Annotated[
        bool,
        Option(
            PROCESSES,
            "Encode each text by itself: its embeddings are then bitwise the same in any traffic and after a restart "
            "with the same number of threads. What it costs: docs/numbers.md. Without it they "
            "differ by rounding.",
            switch,
        ),
    ] = False
    cache_directory: Annotated[
        str,
        Option(
            PROCESSES,
            "Where the results of self-checks are kept, so that a model that was checked on this machine starts "
            "without, and compiled CUDA kernels. May be removed at any time.",
            text,
            "PATH",
            default_text="$XDG_CACHE_HOME/maxsimd, else ~/.cache/maxsimd",
        ),
    ] = msgspec.field(default_factory=default_cache_directory)
    embedding_dtype: Annotated[
        Literal["auto", "float32", "float16"],
        Option(
            PROCESSES,
            "Number format of the embeddings in the store. auto is float32 on the CPU, float16 on CUDA.",
            one_of("auto", "float32", "float16"),
            "DTYPE",
        ),
    ] = "auto"
    engine_placement: Annotated[
        Literal["auto", "worker", "process"],
        Option(
            PROCESSES,
            "Where texts are encoded: inside the scorer worker, or in a process of its own, which uses the CPU. "
            "auto is process on the CPU, worker on CUDA.",
            one_of("auto", "worker", "process"),
            "PLACE",
        ),
    ] = "auto"
    spare_process: Annotated[
        Literal["auto", "on", "off"],
        Option(
            PROCESSES,
            "Whether a process that has imported torch stands by to take the place of a worker or an engine that dies, "
            "which then starts without the seconds of the imports. It takes 150 MiB of memory, and nothing of a CUDA "
            "device. auto is on where there are at least 8 GiB of memory.",
            one_of("auto", "on", "off"),
            "WHEN",
        ),
    ] = "auto"
    no_engine: Annotated[
        bool,
        Option(
            PROCESSES, "Load no model: score only embeddings that requests carry. Needs --dim, takes no MODEL.", switch
        ),
    ] = False
    dim: Annotated[
        int | None,
        Option(
            PROCESSES,
            "Dimensions of one token embedding. Only with --no-engine; a model knows its own.",
            whole_number(1, 8192),
            "N",
            default_text="the model's",
        ),
    ] = None

    max_batch_tokens: Annotated[
        int | None,
        Option(
            BATCHING,
            "Tokens in one pass of the encoder, all clients together. More is not faster, and a short request waits "
            "longer.",
            whole_number(64, 1_048_576),
            "TOKENS",
            default_text="1024 on the CPU, 16384 on CUDA",
        ),
    ] = None
    max_batch_pairs: Annotated[
        int,
        Option(
            BATCHING,
            "Pairs of query and document in one scoring step. Larger requests are sliced, so that others take turns.",
            whole_number(1, MAX_PAIRS),
            "PAIRS",
        ),
    ] = 65_536

    embedding_cache_size: Annotated[
        int | None,
        Option(
            STORE,
            "Memory for embeddings, taken once at start. Documents and queries found there are neither tokenised nor "
            "encoded again. A document of 180 tokens takes 270 KiB at 384 dimensions in float32.",
            size(SMALLEST_STORE, 2**44),
            "SIZE",
            default_text="on the CPU a fifth of the memory (of the container), at most 4GiB; on CUDA what "
            "--gpu-memory-utilization leaves",
        ),
    ] = None
    no_embedding_cache: Annotated[
        bool,
        Option(STORE, "Forget every embedding when its request is done. The store is then only working room.", switch),
    ] = False
    cache_scope: Annotated[
        Literal["auto", "shared", "key"],
        Option(
            STORE,
            "Who may profit from whose stored embeddings: shared, or key: only requests with the same API key. With "
            "shared, response times tell what others have reranked. auto is key as soon as there are two API keys.",
            one_of("auto", "shared", "key"),
            "SCOPE",
        ),
    ] = "auto"

    max_documents_per_request: Annotated[
        int, Option(LIMITS, "More documents in one request are a 400.", whole_number(1, 65_535), "N")
    ] = 4096
    max_body_bytes: Annotated[
        int,
        Option(
            LIMITS,
            "A larger request body is a 413.",
            size(2**10, 2**31),
            "SIZE",
        ),
    ] = 64 * 2**20
    request_timeout: Annotated[
        float,
        Option(
            LIMITS,
            "Longest time for one request; after it the answer is a 503 and its work is dropped. Seconds; 500ms and "
            "5m are understood too, here and below.",
            seconds(0.001, DAY),
            "SECONDS",
        ),
    ] = 30.0
    startup_timeout: Annotated[
        float,
        Option(
            LIMITS,
            "Longest time until everything is ready, else the start has failed. Raise it for a large model.",
            seconds(1, DAY),
            "SECONDS",
        ),
    ] = 300.0
    shutdown_timeout: Annotated[
        float,
        Option(
            LIMITS,
            "Longest time that a stop waits for the requests in flight.",
            seconds(0, DAY),
            "SECONDS",
        ),
    ] = 30.0
    drain_delay: Annotated[
        float,
        Option(
            LIMITS,
            "Time between SIGTERM, when /ready turns false, and the end of accepting connections. Set it to what your "
            "load balancer needs to notice.",
            seconds(0, DAY),
            "SECONDS",
        ),
    ] = 0.0

    api_key: Annotated[
        tuple[str, ...],
        Option(
            SECURITY,
            "Key that requests must carry as 'Authorization: Bearer KEY', but for /health, /live and /ready. May be "
            "given several times. A key on the command line shows in ps: prefer the variable (comma-separated) or "
            "--api-key-file.",
            text,
            "KEY",
            default_text="none: no key is asked for",
            repeatable=True,
            empty_is_wrong=True,
        ),
    ] = ()
    api_key_file: Annotated[
        str | None,
        Option(
            SECURITY,
            "File with one key per line, added to those of --api-key. Empty lines do not count, nor do lines that "
            "begin with #.",
            text,
            "PATH",
            default_text="none",
            empty_is_wrong=True,
        ),
    ] = None
    expose_timings: Annotated[
        bool,
        Option(
            SECURITY,
            "Add the times of tokenising, queueing, encoding and scoring as response headers. They tell a client what "
            "was in the store.",
            switch,
        ),
    ] = False

    ssl_certfile: Annotated[
        str | None,
        Option(
            TLS,
            "PEM file with the server's certificate, and those between it and the root: turns HTTPS on (TLS 1.2 or "
            "later). Read once at start.",
            text,
            "PATH",
            default_text="none: plain HTTP",
            empty_is_wrong=True,
        ),
    ] = None
    ssl_keyfile: Annotated[
        str | None,
        Option(
            TLS,
            "PEM file with the certificate's private key.",
            text,
            "PATH",
            default_text="--ssl-certfile",
            empty_is_wrong=True,
        ),
    ] = None
    ssl_keyfile_password: Annotated[
        str | None,
        Option(
            TLS,
            "Password of the private key, if it is encrypted. On the command line it shows in ps: prefer the variable.",
            text,
            "PASSWORD",
            default_text="none",
            empty_is_wrong=True,
        ),
    ] = None
    ssl_ca_certs: Annotated[
        str | None,
        Option(
            TLS,
            "PEM file with the certificates of authorities. Whoever connects must then show a certificate that one of "
            "them has signed, probes too.",
            text,
            "PATH",
            default_text="none: nobody must",
            empty_is_wrong=True,
        ),
    ] = None

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option(LOGGING, "How much to log, to stderr.", one_of("debug", "info", "warning", "error"), "LEVEL"),
    ] = "info"

    def __post_init__(self) -> None:
        if self.no_engine and self.dim is None:
            raise ConfigError("--no-engine needs --dim: without a model nothing else says how long an embedding is")
        if self.no_engine and self.model is not None:
            raise ConfigError(f"--no-engine takes no MODEL, got {self.model!r}; name it with --served-model-name")
        if self.dim is not None and not self.no_engine:
            raise ConfigError("--dim is only for --no-engine: a model knows its own")
        if self.uds is not None:
            _check_socket_path(self.uds)
        for option in ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs"):
            if self.ssl_certfile is None and getattr(self, option) is not None:
                raise ConfigError(f"--{option.replace('_', '-')} needs --ssl-certfile")
        for key in self.api_key:
            _check_key(key)

    def __repr__(self) -> str:
        """The settings without the API keys and the password, so that a log line does not give them away."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["api_key"] = f"<{len(self.api_key)}>"
        shown["ssl_keyfile_password"] = f"<{int(self.ssl_keyfile_password is not None)}>"
        return f"ServeConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def is_open(self) -> bool:
        """Whether strangers may use the server: no key is asked for, and it listens beyond this machine, or on a socket
        that is everybody's. A client's certificate is as good as a key.
        """
        is_reachable = self.uds_mode == "666" if self.uds is not None else not _is_loopback(self.host)
        return is_reachable and not self.api_key and self.ssl_ca_certs is None

    def read_tls(self) -> TlsSettings | None:
        """The contents of the files of --ssl-...; None: plain HTTP.

        Raises:
            ConfigError: a file is not what it should be.
        """
        if self.ssl_certfile is None:
            return None
        return read_tls(self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password, self.ssl_ca_certs)

    def cache_bytes(self, device: Literal["cpu", "cuda"]) -> int | None:
        """Size of the embedding store, --embedding-cache-size or its default; None: what the device has left."""
        if self.embedding_cache_size is not None or device == "cuda":
            return self.embedding_cache_size
        return default_store_bytes()

    def batch_tokens(self, device: Literal["cpu", "cuda"]) -> int:
        """--max-batch-tokens or its default."""
        return self.max_batch_tokens if self.max_batch_tokens is not None else DEFAULT_BATCH_TOKENS[device]

    @property
    def has_spare_process(self) -> bool:
        """Whether a process stands by for one that dies."""
        if self.spare_process == "auto":
            return available_memory() >= SPARE_PROCESS_MEMORY
        return self.spare_process == "on"

    @property
    def is_cache_per_key(self) -> bool:
        """Whether a request finds only what requests with the same API key have stored."""
        return self.cache_scope == "key" or (self.cache_scope == "auto" and len(self.api_key) > 1)


def options() -> list[NamedOption]:
    """The options of `maxsimd serve`, in the order of the manual."""
    return named_options(ServeConfig)


def build_config(given: Mapping[str, object]) -> ServeConfig:
    """The settings from values that were given, by field; the others take their defaults.

    Raises:
        ConfigError: two settings contradict each other, or the API key file is not usable.
    """
    values = dict(given)
    key_file = values.get("api_key_file")
    if isinstance(key_file, str):
        values["api_key"] = (*_keys(values.get("api_key", ())), *_read_keys(key_file))
    try:
        return msgspec.convert(values, ServeConfig)
    except msgspec.ValidationError as error:  # msgspec wraps the ConfigError of __post_init__
        raise ConfigError(str(error)) from None


def model_settings(config: ServeConfig) -> ModelSettings:
    """What the services must know of the model."""
    return ModelSettings(
        config.model,
        config.query_length,
        config.document_length,
        config.dtype,
        config.deterministic,
        config.load_format,
    )


def settings_page() -> str:
    """docs/settings.md: every option with its variable, default and explanation."""
    lines = [
        "# Settings of `maxsimd serve`",
        "",
        "Generated from `frontend/config.py` by `python -m frontend.config > docs/settings.md`.",
        "",
        "A flag wins over its environment variable, a variable over the file of `--config`, the file over the default.",
        "In the file, names are those of the flags without dashes: `api-server-count = 4`.",
        "An empty variable counts as unset,",
        "but for those of API keys and TLS: what is missing must not open the server. Lists are comma-separated in a",
        "variable; a switch takes 1 or 0. Sizes: `512MiB`, `4GiB`, or bytes. Durations: seconds, or `500ms`, `5m`,",
        "`1h`.",
    ]
    group = ""
    for named in options():
        if named.option.group != group:
            group = named.option.group
            lines += ["", f"## {group}", "", "| option | variable | default | what it does |", "|---|---|---|---|"]
        metavar = "" if named.option.positional or named.option.is_switch else f" {named.option.metavar}"
        lines.append(f"| `{named.flag}{metavar}` | `{named.variable}` | {named.shown_default} | {named.option.help} |")
    return "\n".join(lines) + "\n"


def _keys(value: object) -> tuple[str, ...]:
    return msgspec.convert(value, tuple[str, ...])


def _read_keys(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--api-key-file: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file: {path} is not UTF-8 text") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:  # an empty file must not open the server to everybody
        raise ConfigError(f"--api-key-file: {path} holds no key")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _check_key(key: str) -> None:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("--api-key: a key must be printable ASCII without blanks, as it travels in a header")


def _check_socket_path(path: str) -> None:
    if len(os.fsencode(path)) > MAX_UDS_BYTES:
        raise ConfigError(f"--uds: the path must have at most {MAX_UDS_BYTES} bytes, got {len(os.fsencode(path))}")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--uds: the directory of {path} does not exist")


if __name__ == "__main__":
    sys.stdout.write(settings_page())

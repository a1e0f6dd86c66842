"""Settings: what a value may be, which source wins, and what the user is told about a wrong one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend import config as config_module
from frontend.cli import parse_command_line
from frontend.config import ServeConfig, options, settings_page
from frontend.memory import cgroup_memory_limit
from frontend.options import ConfigError, format_size, misspelt_variables, seconds, size

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30


def serve(*argv: str, environment: Mapping[str, str] | None = None) -> ServeConfig:
    return parse_command_line(["serve", *argv], environment or {})


# --- which source wins ----------------------------------------------------------------------------------------


def test_without_arguments_the_defaults_of_the_struct_hold() -> None:
    assert serve() == ServeConfig()


@pytest.mark.parametrize(
    ("argv", "environment", "expected"),
    [
        pytest.param([], {}, 8000, id="default"),
        pytest.param([], {"MAXSIMD_PORT": "9001"}, 9001, id="variable-over-default"),
        pytest.param(["--port", "9002"], {"MAXSIMD_PORT": "9001"}, 9002, id="flag-over-variable"),
        pytest.param(["--port=9002"], {"MAXSIMD_PORT": "nonsense"}, 9002, id="flag-over-wrong-variable"),
        pytest.param(["--port", "1", "--port", "2"], {}, 2, id="last-flag"),
        pytest.param([], {"MAXSIMD_PORT": ""}, 8000, id="empty-variable-is-unset"),
        pytest.param([], {"MAXSIMD_PORT": " 9001 "}, 9001, id="blanks-around"),
    ],
)
def test_a_flag_wins_over_its_variable_and_a_variable_over_the_default(
    argv: Sequence[str], environment: Mapping[str, str], expected: int
) -> None:
    assert serve(*argv, environment=environment).port == expected


EXAMPLES = {  # for every option: text that differs from the default, more that it needs, and the value it becomes
    "config": ("", [], None),  # tests of its own
    "model": ("path/to/model", [], "path/to/model"),
    "served_model_name": ("a", [], ("a",)),
    "strict_model_name": ("1", [], True),
    "query_length": ("48", [], 48),
    "document_length": ("300", [], 300),
    "score_mode": ("unit", [], "unit"),
    "dialect": ("infinity", [], "infinity"),
    "host": ("0.0.0.0", [], "0.0.0.0"),
    "port": ("9001", [], 9001),
    "uds": ("/maxsimd.sock", [], "/maxsimd.sock"),
    "uds_mode": ("660", [], "660"),
    "root_path": ("/colbert/", [], "/colbert"),
    "cors_allow_origin": ("https://app.example.org", [], ("https://app.example.org",)),
    "api_server_count": ("7", [], 7),
    "device": ("cpu", [], "cpu"),
    "gpu_memory_utilization": ("0.5", [], 0.5),
    "dtype": ("float32", [], "float32"),
    "load_format": ("dummy", [], "dummy"),
    "deterministic": ("1", [], True),
    "cache_directory": ("/tmp/cache", [], "/tmp/cache"),
    "embedding_dtype": ("float16", [], "float16"),
    "engine_placement": ("worker", [], "worker"),
    "spare_process": ("off", [], "off"),
    "no_engine": ("true", ["--dim", "8"], True),
    "dim": ("128", ["--no-engine"], 128),
    "max_batch_tokens": ("4096", [], 4096),
    "max_batch_pairs": ("100", [], 100),
    "embedding_cache_size": ("512MiB", [], 512 * 2**20),
    "no_embedding_cache": ("yes", [], True),
    "cache_scope": ("key", [], "key"),
    "max_documents_per_request": ("10", [], 10),
    "max_body_bytes": ("1MiB", [], 2**20),
    "request_timeout": ("500ms", [], 0.5),
    "startup_timeout": ("5m", [], 300.5 - 0.5),
    "shutdown_timeout": ("0", [], 0.0),
    "drain_delay": ("2.5", [], 2.5),
    "api_key": ("secret", [], ("secret",)),
    "api_key_file": ("", [], None),  # a test of its own
    "expose_timings": ("on", [], True),
    "ssl_certfile": ("cert.pem", [], "cert.pem"),
    "ssl_keyfile": ("key.pem", ["--ssl-certfile", "cert.pem"], "key.pem"),
    "ssl_keyfile_password": ("secret", ["--ssl-certfile", "cert.pem"], "secret"),
    "ssl_ca_certs": ("ca.pem", ["--ssl-certfile", "cert.pem"], "ca.pem"),
    "log_level": ("debug", [], "debug"),
}


def test_every_option_has_an_example_here() -> None:
    assert list(EXAMPLES) == [named.field for named in options()]


@pytest.mark.parametrize("field", [field for field in EXAMPLES if field not in ("api_key_file", "config")])
def test_every_option_can_be_given_by_flag_and_by_variable(field: str) -> None:
    value, more, expected = EXAMPLES[field]
    (named,) = [named for named in options() if named.field == field]
    if named.option.positional:
        by_flag = serve(value)
    elif named.option.is_switch:
        by_flag = serve(*more, named.flag)
    else:
        by_flag = serve(*more, named.flag, value)
    by_variable = serve(*more, environment={f"MAXSIMD_{field.upper()}": value})
    assert getattr(by_flag, field) == expected
    assert by_variable == by_flag


@pytest.mark.parametrize(
    ("word", "expected"),
    [("1", True), ("TRUE", True), ("on", True), ("0", False), ("false", False), ("No", False), ("", False)],
)
def test_a_switch_is_turned_on_and_off_by_its_variable(word: str, expected: bool) -> None:
    assert serve(environment={"MAXSIMD_STRICT_MODEL_NAME": word}).strict_model_name is expected


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("MAXSIMD_API_KEYS", "MAXSIMD_API_KEY"),
        ("MAXSIMD_APIKEY", "MAXSIMD_API_KEY"),
        ("MAXSIMD_SSL_CERT_FILE", "MAXSIMD_SSL_CERTFILE"),
        ("MAXSIMD_PORT_8000_TCP_PORT", None),  # as Kubernetes sets them for a service of this name
        ("MAXSIMD_SERVICE_HOST", None),
        ("MAXSIMD_API_KEY", None),
        ("API_KEYS", None),
    ],
)
def test_a_variable_that_is_nearly_a_setting_s_is_pointed_out(variable: str, meant: str | None) -> None:
    expected = {} if meant is None else {variable: meant}
    assert misspelt_variables(options(), {variable: "x", "PATH": "/"}) == expected


# --- the file -------------------------------------------------------------------------------------------------


def config_file(tmp_path: Path, content: str) -> str:
    path = tmp_path / "maxsimd.toml"
    path.write_text(content)
    return str(path)


FILE = """
model = "path/to/model"
port = 9001
strict-model-name = true
request-timeout = 2.5
embedding-cache-size = "64MiB"
served-model-name = ["a", "b"]
"""


@pytest.mark.parametrize("by_variable", [False, True])
def test_the_file_s_settings_are_those_of_the_flags(tmp_path: Path, by_variable: bool) -> None:
    path = config_file(tmp_path, FILE)
    config = serve(environment={"MAXSIMD_CONFIG": path}) if by_variable else serve("--config", path)
    assert (config.model, config.port, config.strict_model_name) == ("path/to/model", 9001, True)
    assert (config.request_timeout, config.embedding_cache_size) == (2.5, 64 * 2**20)
    assert config.served_model_name == ("a", "b")


def test_a_flag_wins_over_the_variable_and_that_over_the_file(tmp_path: Path) -> None:
    path = config_file(tmp_path, FILE)
    environment = {"MAXSIMD_CONFIG": path, "MAXSIMD_PORT": "9002"}
    assert serve(environment=environment).port == 9002
    assert serve("--port", "9003", environment=environment).port == 9003
    assert serve("other/model", environment=environment).model == "other/model"
    assert serve(
        "--strict-model-name", "--config", config_file(tmp_path, "strict-model-name = false")
    ).strict_model_name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("port = 70000", "port: must be a whole number from 0 to 65535"),
        ("port = [1, 2]", "port: takes one value, got a list"),
        ("nonsense = 1", "nonsense is no setting"),
        ("api_server_count = 2", "api_server_count is no setting; did you mean api-server-count?"),
        ("config = 'other.toml'", "config is no setting"),
        ("[store]\nsize = 1", "store is no setting"),
        ("port = 2026-01-01", "port: expected a text, a number, true or false, got a date"),
        ("port = ", "is not TOML"),
        ("dim = 8", "--dim is only for --no-engine"),
    ],
)
def test_a_wrong_file_is_named_with_key_and_rule(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        serve("--config", config_file(tmp_path, content))
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config: cannot read .*nothing: No such file"):
        serve("--config", str(tmp_path / "nothing"))


# --- several values -------------------------------------------------------------------------------------------


def test_a_flag_for_several_values_is_repeated_and_its_variable_takes_commas() -> None:
    by_flag = serve("--served-model-name", "a", "--served-model-name", "b")
    assert by_flag.served_model_name == ("a", "b")
    assert serve(environment={"MAXSIMD_SERVED_MODEL_NAME": "a, b"}) == by_flag


def test_api_keys_of_the_file_are_added_to_those_given(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# of the two teams\nfirst\n\n  second  \n")
    config = serve("--api-key", "third", "--api-key-file", str(tmp_path / "keys"))
    assert config.api_key == ("third", "first", "second")


def test_the_settings_do_not_print_api_keys() -> None:
    assert "open-sesame" not in repr(serve("--api-key", "open-sesame"))
    assert "open-sesame" not in repr(serve("--ssl-certfile", "c", "--ssl-keyfile-password", "open-sesame"))
    assert "port=8000" in repr(serve())


# --- wrong values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(
            ["--port", "65536"], "--port: must be a whole number from 0 to 65535, got '65536'", id="port-high"
        ),
        pytest.param(["--port", "-1"], "--port: must be a whole number from 0 to 65535, got '-1'", id="port-low"),
        pytest.param(["--port", "8000.0"], "--port: must be a whole number", id="port-fraction"),
        pytest.param(["--port", "٣"], "--port: must be a whole number", id="port-other-digits"),
        pytest.param(["--port", "9" * 5000], "--port: must be a whole number", id="port-very-long"),
        pytest.param(["--host", ""], "--host: must not be empty", id="host-empty"),
        pytest.param(["--api-server-count", "0"], "--api-server-count: must be a whole number from 1 to 64", id="none"),
        pytest.param(["--device", "tpu"], "--device: must be one of auto, cpu, cuda, got 'tpu'", id="device"),
        pytest.param(
            ["--request-timeout", "0"], "--request-timeout: must be from 0.001 to 86400 seconds", id="no-time"
        ),
        pytest.param(["--request-timeout", "nan"], "--request-timeout: must be a number of seconds", id="nan"),
        pytest.param(["--request-timeout", "-5"], "--request-timeout: must be a number of seconds", id="negative"),
        pytest.param(["--embedding-cache-size", "4 GB of it"], "--embedding-cache-size: must be a size", id="size"),
        pytest.param(["--embedding-cache-size", "1MiB"], "--embedding-cache-size: must be from 8MiB to", id="size-low"),
        pytest.param(["--no-engine"], "--no-engine needs --dim", id="no-engine-without-dim"),
        pytest.param(
            ["--no-engine", "--dim", "8", "m"], "--no-engine takes no MODEL, got 'm'", id="no-engine-and-model"
        ),
        pytest.param(["--dim", "128"], "--dim is only for --no-engine", id="dim-with-a-model"),
        pytest.param(["--uds", "/" + "x" * 107], "--uds: the path must have at most 107 bytes, got 108", id="uds-long"),
        pytest.param(["--uds", "/no/such/folder/s"], "--uds: the directory of /no/such/folder/s", id="uds-nowhere"),
        pytest.param(["--uds-mode", "644"], "--uds-mode: must be one of 600, 660, 666, got '644'", id="uds-mode"),
        pytest.param(["--ssl-keyfile", "k"], "--ssl-keyfile needs --ssl-certfile", id="key-without-certificate"),
        pytest.param(["--ssl-ca-certs", "c"], "--ssl-ca-certs needs --ssl-certfile", id="ca-without-certificate"),
        pytest.param(["--api-key", "with blank"], "--api-key: a key must be printable ASCII", id="key-with-blank"),
        pytest.param(["--api-key", "schlüssel"], "--api-key: a key must be printable ASCII", id="key-not-ascii"),
        pytest.param(["--api-key-file", "/no/such/file"], "--api-key-file: cannot read /no/such/file", id="key-file"),
        pytest.param(["--api-ke", "x"], "unrecognized arguments: --api-ke", id="no-abbreviations"),
        pytest.param(["a", "b"], "unrecognized arguments: b", id="two-models"),
        pytest.param(["--port"], "--port: expected one argument", id="value-missing"),
    ],
)
def test_a_wrong_value_names_the_flag_and_the_rule(argv: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        serve(*argv)


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        pytest.param("MAXSIMD_PORT", "tcp://10.0.0.1:8000", "must be a whole number", id="as-kubernetes-sets-it"),
        pytest.param("MAXSIMD_NO_ENGINE", "maybe", "must be 1 or 0", id="switch"),
        pytest.param("MAXSIMD_API_KEY", "", "must not be empty", id="secret-missing"),
        pytest.param("MAXSIMD_API_KEY", "a,,b", "must not be empty", id="one-key-of-three-missing"),
        pytest.param("MAXSIMD_API_KEY_FILE", "", "must not be empty", id="file-name-missing"),
        pytest.param("MAXSIMD_SSL_CERTFILE", "", "must not be empty", id="certificate-missing"),
        pytest.param("MAXSIMD_SSL_CA_CERTS", "", "must not be empty", id="authority-missing"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}: {rule}"):
        serve(environment={variable: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "holds no key", id="empty"),
        pytest.param(b"# nothing\n\n", "holds no key", id="only-comments"),
        pytest.param(b"\xff\xfe", "is not UTF-8 text", id="binary"),
    ],
)
def test_an_api_key_file_without_keys_does_not_open_the_server(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        serve("--api-key-file", str(path))


# --- what follows from the settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, 1), (2, 1), (3, 1), (4, 1), (7, 1), (8, 2), (12, 3), (16, 4), (128, 4)]
)
def test_the_number_of_api_servers_follows_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, expected: int
) -> None:
    monkeypatch.setattr(config_module, "count_cores", lambda: cores)
    assert serve().api_server_count == expected


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        pytest.param(5 * GIB, GIB, id="a-fifth"),
        pytest.param(20 * GIB, 4 * GIB, id="a-fifth-is-exactly-the-most"),
        pytest.param(512 * GIB, 4 * GIB, id="never-more-than-4GiB"),
        pytest.param(2**20, 8 * 2**20, id="never-less-than-the-smallest-store"),
    ],
)
def test_the_default_store_is_a_fifth_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, memory: int, expected: int
) -> None:
    monkeypatch.setattr(config_module, "available_memory", lambda: memory)
    assert serve().cache_bytes("cpu") == expected
    assert serve("--embedding-cache-size", "64MiB").cache_bytes("cpu") == 64 * 2**20


def test_the_default_store_on_cuda_is_what_the_memory_plan_leaves() -> None:
    assert serve().cache_bytes("cuda") is None
    assert serve("--embedding-cache-size", "64MiB").cache_bytes("cuda") == 64 * 2**20


def test_the_default_batch_follows_the_device() -> None:
    assert (serve().batch_tokens("cpu"), serve().batch_tokens("cuda")) == (1024, 16_384)
    assert serve("--max-batch-tokens", "4096").batch_tokens("cuda") == 4096


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        pytest.param([], False, id="no-key"),
        pytest.param(["--api-key", "a"], False, id="one-key"),
        pytest.param(["--api-key", "a", "--api-key", "b"], True, id="two-keys"),
        pytest.param(["--api-key", "a", "--api-key", "b", "--cache-scope", "shared"], False, id="shared-on-purpose"),
        pytest.param(["--cache-scope", "key"], True, id="key-on-purpose"),
    ],
)
def test_the_store_is_divided_by_key_as_soon_as_there_are_two(argv: Sequence[str], expected: bool) -> None:
    assert serve(*argv).is_cache_per_key is expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        pytest.param([], False, id="default"),
        pytest.param(["--host", "localhost"], False, id="localhost"),
        pytest.param(["--host", "::1"], False, id="loopback-6"),
        pytest.param(["--host", "0.0.0.0"], True, id="every-interface"),
        pytest.param(["--host", "example.org"], True, id="a-name"),
        pytest.param(["--host", "0.0.0.0", "--api-key", "a"], False, id="with-a-key"),
        pytest.param(["--host", "0.0.0.0", "--uds", "/s"], False, id="a-unix-socket"),
        pytest.param(["--uds", "/s", "--uds-mode", "660"], False, id="a-unix-socket-of-a-group"),
        pytest.param(["--uds", "/s", "--uds-mode", "666"], True, id="a-unix-socket-of-everybody"),
        pytest.param(["--host", "0.0.0.0", "--ssl-certfile", "c"], True, id="with-tls"),
        pytest.param(["--host", "0.0.0.0", "--ssl-certfile", "c", "--ssl-ca-certs", "a"], False, id="with-client-ca"),
    ],
)
def test_a_server_that_anybody_can_use_is_recognised(argv: Sequence[str], expected: bool) -> None:
    assert serve(*argv).is_open is expected


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        pytest.param({"memory.max": "1000"}, "0::/\n", 1000, id="container"),
        pytest.param({"memory.max": "max"}, "0::/\n", math.inf, id="no-limit"),
        pytest.param({}, "0::/\n", math.inf, id="no-files"),
        pytest.param({"a/memory.max": "500", "a/b/memory.max": "max"}, "0::/a/b\n", 500, id="limit-above"),
        pytest.param({"a/memory.max": "500", "c/memory.max": "1"}, "0::/a\n", 500, id="not-of-others"),
        pytest.param({"memory/x/memory.limit_in_bytes": "700"}, "9:memory:/x\n1:cpu:/y\n", 700, id="version-1"),
    ],
)
def test_the_memory_limit_is_the_smallest_of_the_control_groups_above(
    tmp_path: Path, files: Mapping[str, str], groups: str, expected: float
) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    (tmp_path / "self").write_text(groups)
    assert cgroup_memory_limit(root, tmp_path / "self") == expected
    assert cgroup_memory_limit(root, tmp_path / "missing") in (math.inf, expected)


# --- sizes and durations --------------------------------------------------------------------------------------


@given(st.integers(0, 2**44))
def test_a_size_in_bytes_is_read_as_it_is_written(number: int) -> None:
    parse = size(0, 2**44)
    assert parse(str(number)) == number
    assert parse(format_size(number)) == number


@pytest.mark.parametrize(
    ("written", "expected"),
    [("4GiB", 4 * GIB), ("4gib", 4 * GIB), ("1.5 GiB", 3 * GIB // 2), ("64MB", 64_000_000), ("10B", 10), ("0", 0)],
)
def test_sizes_have_units(written: str, expected: int) -> None:
    assert size(0, 2**44)(written) == expected


@pytest.mark.parametrize(
    ("written", "expected"), [("30", 30.0), ("0.5", 0.5), ("250ms", 0.25), ("45s", 45.0), ("5m", 300.0), ("1h", 3600.0)]
)
def test_durations_have_units(written: str, expected: float) -> None:
    assert seconds(0, 86_400)(written) == expected


@given(st.text() | st.from_regex(r"[0-9. ]{1,12}[a-zA-Z]{0,3}", fullmatch=True))
def test_any_text_is_a_value_within_the_limits_or_breaks_a_rule(written: str) -> None:
    for parse, low, high in ((size(1, 2**44), 1, 2**44), (seconds(0, 10), 0, 10)):
        try:
            value = parse(written)
        except ValueError as error:
            rule = str(error)
        else:
            rule = "must be within" if low <= value <= high else "is outside"
        assert rule.startswith("must be ")


# --- the page in docs/ ----------------------------------------------------------------------------------------


def test_the_settings_page_is_current() -> None:
    written = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert written == settings_page(), "run: python -m frontend.config > docs/settings.md"


def test_the_settings_page_holds_every_option_and_its_variable() -> None:
    page = settings_page()
    for named in options():
        assert f"`{named.variable}`" in page
        assert f"| `{named.flag}" in page

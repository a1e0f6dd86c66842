"""The command `maxsimd`: reads the settings, then hands over to the launcher."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from frontend.bench.config import BenchConfig
from frontend.bench.config import options as bench_options
from frontend.config import ServeConfig, build_config, options
from frontend.config_file import read_config_file, source_of
from frontend.options import ConfigError, ManualParser, NamedOption, add_options, misspelt_variables, read
from frontend.version import VERSION
from ipc.child import EXIT_USAGE

DESCRIPTION = "Late-interaction reranking (ColBERT, MaxSim over token embeddings) over HTTP."
SERVE_DESCRIPTION = """\
Serve rerank and score requests over HTTP: API servers without torch, an engine that encodes,
and one scorer worker that owns the device and batches MaxSim over all clients.

Every option can also be set by the environment variable named with it; a flag wins.
"""
SERVE_EPILOG = """\
examples:
  maxsimd serve                                        try it out with the embedded model
  maxsimd serve path/to/colbert --port 9000            a model of your own
  maxsimd serve --no-engine --dim 128                  only embeddings that requests carry
  MAXSIMD_API_KEY=key1,key2 maxsimd serve --host 0.0.0.0 --embedding-cache-size 8GiB
  maxsimd serve --ssl-certfile chain.pem --ssl-keyfile key.pem --api-key-file keys

endpoints:
  POST /rerank /v1/rerank /v2/rerank /score /v1/score
  GET  /v1/models /health /live /ready /version /metrics

stopping:
  Ctrl-C or SIGTERM finishes the requests in flight and leaves nothing behind.

exit codes:
  0 stopped as asked    1 could not start or go on    2 a setting is wrong
"""

CHECK_DESCRIPTION = """\
Load a model, print what a query and a document become, token by token, and compare the scores
of its fast path with those of a plain one.
"""
CHECK_EPILOG = """\
exit codes:
  0 it can be served    1 it computes other scores than it should    2 it cannot be loaded
"""
CHECK_FIELDS = ("config", "model", "query_length", "document_length", "dtype", "load_format", "deterministic")
BENCH_DESCRIPTION = """\
Ask a server for reranking and measure it: closed loop (so many requests at a time) or open loop
(so many per second), from several processes, with the requests of vllm bench serve or others.
Any server with a /rerank endpoint can be measured.
"""
BENCH_EPILOG = """\
examples:
  maxsimd bench --num-prompts 2000 --random-input-len 2048 --random-range-ratio 0.5
  maxsimd bench --dataset-name synthetic --documents 1000 --repeated 1 --max-concurrency 8
  maxsimd bench --dataset-name jsonl --dataset-path requests.jsonl --request-rate 50

exit codes:
  0 every request was answered    1 some were not    2 a setting is wrong
"""

Command = Literal["serve", "check", "bench"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. A wrong setting is one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        command, config = parse_command(arguments, os.environ)
    except ConfigError as error:
        sys.stderr.write(f"maxsimd: {error}\n")
        return EXIT_USAGE
    if isinstance(config, BenchConfig):
        from frontend.bench import run as bench

        return bench.run(config)
    if command == "check":
        from frontend import check

        return check.run(config)
    for name, meant in misspelt_variables(options(), os.environ).items():
        sys.stderr.write(f"maxsimd: warning: {name} is no setting; did you mean {meant}?\n")
    if config.is_open:
        place = config.host if config.uds is None else config.uds
        sys.stderr.write(f"maxsimd: warning: anybody who reaches {place} can use this server: no --api-key is set\n")
    elif "*" in config.cors_allow_origin and not config.api_key:
        sys.stderr.write("maxsimd: warning: any web page can use this server: no --api-key is set\n")
    from frontend import launcher  # only now: --help and a wrong setting answer at once

    return launcher.run(config)


def parse_command(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[Command, ServeConfig | BenchConfig]:
    """The command and its settings, from the arguments and the environment. `check` has some of those of `serve`.

    Raises:
        ConfigError: a setting is wrong; the text names the flag or variable and the rule.
        SystemExit: --help or --version were asked for, and printed.
    """
    arguments = build_parser().parse_args(argv)
    command: Command = arguments.command
    options_here = _options_of(command)
    given = read(options_here, arguments, environment)
    path = given.get("config")
    if isinstance(path, str):
        file = read_config_file(path, options())
        given = read(options_here, arguments, environment, file, lambda named: source_of(path, named))
    return command, _build_bench(given) if command == "bench" else build_config(given)


def _build_bench(given: Mapping[str, object]) -> BenchConfig:
    try:
        return msgspec.convert(given, BenchConfig)
    except msgspec.ValidationError as error:  # msgspec wraps the ConfigError of __post_init__
        raise ConfigError(str(error)) from None


def parse_command_line(argv: Sequence[str], environment: Mapping[str, str]) -> ServeConfig:
    """The settings of `serve` or `check` alone; see `parse_command`."""
    config = parse_command(argv, environment)[1]
    assert isinstance(config, ServeConfig)
    return config


def _options_of(command: Command) -> list[NamedOption]:
    if command == "bench":
        return bench_options()
    return [named for named in options() if command == "serve" or named.field in CHECK_FIELDS]


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, and so its manual."""
    parser = ManualParser(prog="maxsimd", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"maxsimd {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")

    def add(command: Command, arguments: str, summary: str, description: str, epilog: str) -> None:
        own = commands.add_parser(
            command,
            help=summary,
            description=description,
            epilog=epilog,
            usage=f"maxsimd {command} {arguments}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_options(own, _options_of(command))

    add(
        "serve",
        "[MODEL] [options]",
        "serve rerank and score requests over HTTP (maxsimd serve --help lists the options)",
        SERVE_DESCRIPTION,
        SERVE_EPILOG,
    )
    add(
        "check",
        "[MODEL] [options]",
        "load a model, show what it makes of texts, and check what it computes",
        CHECK_DESCRIPTION,
        CHECK_EPILOG,
    )
    add("bench", "[options]", "measure a server that reranks", BENCH_DESCRIPTION, BENCH_EPILOG)
    return parser


if __name__ == "__main__":
    sys.exit(main())

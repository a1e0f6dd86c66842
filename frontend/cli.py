"""The command `maxsimd`: reads the settings, then hands over to the launcher."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from frontend.config import ServeConfig, build_config, options
from frontend.options import ConfigError, ManualParser, NamedOption, add_options, read
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
CHECK_FIELDS = ("model", "query_length", "document_length", "dtype")

Command = Literal["serve", "check"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. A wrong setting is one line on stderr and exit code 2."""
    try:
        command, config = parse_command(sys.argv[1:] if argv is None else argv, os.environ)
    except ConfigError as error:
        sys.stderr.write(f"maxsimd: {error}\n")
        return EXIT_USAGE
    if command == "check":
        from frontend import check

        return check.run(config)
    if config.is_open:
        sys.stderr.write(
            f"maxsimd: warning: anybody who reaches {config.host} can use this server: no --api-key is set\n"
        )
    from frontend import launcher  # only now: --help and a wrong setting answer at once

    return launcher.run(config)


def parse_command(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[Command, ServeConfig]:
    """The command and its settings, from the arguments and the environment. `check` has some of those of `serve`.

    Raises:
        ConfigError: a setting is wrong; the text names the flag or variable and the rule.
        SystemExit: --help or --version were asked for, and printed.
    """
    arguments = build_parser().parse_args(argv)
    command: Command = arguments.command
    return command, build_config(read(_options_of(command), arguments, environment))


def parse_command_line(argv: Sequence[str], environment: Mapping[str, str]) -> ServeConfig:
    """The settings alone; see `parse_command`."""
    return parse_command(argv, environment)[1]


def _options_of(command: Command) -> list[NamedOption]:
    return [named for named in options() if command == "serve" or named.field in CHECK_FIELDS]


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, and so its manual."""
    parser = ManualParser(prog="maxsimd", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"maxsimd {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    serve = commands.add_parser(
        "serve",
        help="serve rerank and score requests over HTTP (maxsimd serve --help lists the options)",
        description=SERVE_DESCRIPTION,
        epilog=SERVE_EPILOG,
        usage="maxsimd serve [MODEL] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(serve, _options_of("serve"))
    check = commands.add_parser(
        "check",
        help="load a model, show what it makes of texts, and check what it computes",
        description=CHECK_DESCRIPTION,
        epilog=CHECK_EPILOG,
        usage="maxsimd check [MODEL] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(check, _options_of("check"))
    return parser


if __name__ == "__main__":
    sys.exit(main())

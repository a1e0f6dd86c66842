"""`maxsimd check MODEL`: what a model is, what it makes of a query and a document, and whether it computes right."""

from __future__ import annotations

import subprocess
import sys

import msgspec
from tokenizers import Tokenizer

from frontend.config import ServeConfig, model_settings
from frontend.tokenizer import StatelessTokenizer
from ipc.check_report import CheckFailed, CheckReport
from ipc.child import EXIT_USAGE
from ipc.messages import Role, TextSpec

EXIT_DIFFERS = 1
SAMPLES: dict[Role, str] = {
    "query": "Which animal has three hearts?",
    "document": "An octopus has three hearts, and its blood is blue.",
}
MOST_SHOWN = 48  # tokens of a sample: expansion rows beyond are counted

_decoder = msgspec.msgpack.Decoder(CheckReport | CheckFailed)


def run(config: ServeConfig) -> int:
    """Check the model and print what was found.

    Returns:
        0: it can be served. 1: it computes other scores than it should. 2: it cannot be loaded; one line says why.
    """
    settings = model_settings(config)
    sys.stderr.write("maxsimd: loading the model and comparing its fast path with a plain one\n")
    child = subprocess.run(
        [sys.executable, "-P", "-m", "engine.check"],
        input=msgspec.json.encode(settings) + b"\n",
        stdout=subprocess.PIPE,
        check=False,
    )
    if child.returncode != 0 or not child.stdout:
        sys.stderr.write(f"maxsimd: the check ended with exit code {child.returncode}; what stands above says why\n")
        return EXIT_DIFFERS
    report = _decoder.decode(child.stdout)
    if isinstance(report, CheckFailed):
        sys.stderr.write(f"maxsimd: {report.message}\n")
        return EXIT_USAGE
    sys.stdout.write(describe(report))
    return 0 if report.self_check.passes else EXIT_DIFFERS


def describe(report: CheckReport) -> str:
    """The report as a person reads it."""
    spec = report.spec
    verdict = "passed" if report.self_check.passes else "FAILED"
    return "\n".join(
        [
            f"model        {spec.name}",
            f"from         {report.directory}",
            f"format       {spec.format}",
            f"encoder      {report.parameters}",
            f"similarity   {spec.similarity}",
            f"fingerprint  {report.fingerprint.hex()}",
            "",
            *_describe_role("query", spec.query, report),
            "",
            *_describe_role("document", spec.document, report),
            "",
            f"self-check   {verdict}: {report.self_check.pairs} scores, packed against plain: largest difference "
            f"{report.self_check.largest_difference:.1e}, allowed {report.self_check.tolerance:.1e}",
            "",
        ]
    )


def _describe_role(role: Role, text: TextSpec, report: CheckReport) -> list[str]:
    tokenizer = Tokenizer.from_buffer(report.tokenizer)
    ids = StatelessTokenizer(report.spec, report.tokenizer).encode(role, [SAMPLES[role]], text.max_length, True, [role])
    token_ids, expansion = list(ids.token_ids), ids.expansion[0]
    skipped = set(text.skip_token_ids)
    tokens = [tokenizer.id_to_token(token_id) or f"#{token_id}" for token_id in token_ids]
    shown = [f"({token})" if token_id in skipped else token for token, token_id in zip(tokens, token_ids, strict=True)]
    if len(shown) > MOST_SHOWN:
        shown = [*shown[:MOST_SHOWN], f"... {len(shown) - MOST_SHOWN} more"]
    rows = sum(token_id not in skipped for token_id in token_ids)
    return [
        f"{role:<12} at most {text.max_length} tokens; {_expansion(text)}; {_skipping(text)}",
        f"  {SAMPLES[role]!r} becomes {len(token_ids)} tokens, {rows} of them scored, {expansion} of them expansion:",
        "  " + " ".join(shown),
    ]


def _expansion(text: TextSpec) -> str:
    if text.expansion == "none":
        return "no expansion"
    attended = "attended to" if text.attend_expansion else "scored, not attended to"
    return f"expanded to {'' if text.expansion == 'fixed' else 'at least '}{text.expansion_length}, {attended}"


def _skipping(text: TextSpec) -> str:
    return f"{len(text.skip_token_ids)} tokens skipped, shown in ()" if text.skip_token_ids else "nothing skipped"

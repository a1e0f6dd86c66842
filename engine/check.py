"""`python -P -m engine.check`: understand a model, load it, check it, and say so on stdout; for `maxsimd check`.

ModelSettings as one JSON line on stdin; one CheckReport or CheckFailed in msgpack on stdout.
"""

from __future__ import annotations

import os
import sys

import msgspec

from engine.model_spec import ModelError, load_model
from ipc.check_report import CheckFailed, CheckReport
from ipc.settings import ModelSettings


def main() -> int:
    """Returns 0: a report was written, whatever it says."""
    answer = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not damage the report
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=ModelSettings)
    try:
        report: CheckReport | CheckFailed = check(settings)
    except ModelError as error:
        report = CheckFailed(str(error))
    with os.fdopen(answer, "wb") as output:
        output.write(msgspec.msgpack.encode(report))
    return 0


def check(settings: ModelSettings) -> CheckReport:
    """Load a model and compare its fast path with the plain one.

    Raises:
        ModelError: it cannot be served.
    """
    model = load_model(settings)
    # after the model's files have been checked: torch takes seconds
    from engine.encoder import Encoder
    from engine.self_check import run_self_check

    cores = len(os.sched_getaffinity(0))
    encoder = Encoder.load(model, "cpu", settings.dtype, cores, settings.deterministic)
    config = model.config
    return CheckReport(
        spec=model.spec,
        tokenizer=model.tokenizer_json,
        directory=str(model.directory),
        fingerprint=model.fingerprint,
        parameters=(
            f"{config.family}, {config.num_hidden_layers} layers of {config.hidden_size}, "
            f"{config.vocab_size} pieces, "
            f"{len(model.projections)} projection{'s' * (len(model.projections) != 1)} to {model.spec.dim}"
        ),
        self_check=run_self_check(model, encoder),
    )


if __name__ == "__main__":
    sys.exit(main())

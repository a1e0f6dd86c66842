"""From the command to the first 200 of /ready, beside a bare process that only imports and loads the same.

    python -m benchmarks.bench_start

The model is known: its self-check is on disk from a start before. The bare process imports what the engine imports,
reads the model, loads its weights, and does nothing else. Two API servers, worker and engine start meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from benchmarks.measuring import interleave, parser, spread, timed, write
from benchmarks.running import Server

BARE = """
import os
from engine.model_spec import load_model
from ipc.settings import ModelSettings
model = load_model(ModelSettings())
import torch
torch.set_grad_enabled(False)
from engine.encode_queue import EncodeQueue
from engine.encoder import Encoder
from engine.encoder_thread import EncoderThread
from engine.self_check_record import ensure_checked
from engine.service import EngineService
Encoder.load(model, "cpu", "auto", len(os.sched_getaffinity(0)))
"""


def main() -> None:
    options = parser(__doc__ or "", "start-cpu").parse_args()
    with tempfile.TemporaryDirectory() as cache:
        started: list[Server] = []

        def start() -> None:
            server = Server("--api-server-count", "2", "--cache-directory", cache)
            started.append(server)
            server.__enter__()

        def start_and_stop() -> float:
            seconds = timed(start)()
            started.pop().__exit__(None, None, None)
            return seconds

        first = start_and_stop()  # the self-check runs and is kept
        seconds = interleave({"ready": start_and_stop, "bare": timed(bare)}, options.runs)
    ready, alone = spread(seconds["ready"]), spread(seconds["bare"])
    write(
        options.out,
        {
            "first_start_seconds": first,
            "ready_seconds": ready,
            "bare_seconds": alone,
            "more_than_bare_seconds": ready["median"] - alone["median"],
        },
    )


def bare() -> None:
    subprocess.run([sys.executable, "-P", "-c", BARE], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


if __name__ == "__main__":
    main()

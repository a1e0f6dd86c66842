"""From kill -9 to the first good answer: of the worker, of the engine, and of an API server; beside bare processes.

    python -m benchmarks.bench_recovery

Two servers of one API server each, with the embedded model: with a process that stands by, and without. In turns a
child is killed, and a request that needs it (10 new documents) is sent at once: to a killed worker or engine on a
connection that is open, to a killed API server on a new one, which the launcher keeps for its successor. The answer
must have the scores of an undisturbed one. A bare process imports, loads and warms up what worker or engine do, and
nothing else; its self-check is on disk, as theirs is.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import parser, spread, write
from benchmarks.running import Server, post

DOCUMENTS = [f"document {number} is about what comes back after it has died" for number in range(10)]
STORE = 64 * 2**20
SERVICES = {"worker": "scorer_worker", "engine": "engine"}
CHILDREN = {**SERVICES, "api_server": "frontend.api_server"}
SETTLE_LIMIT = 60.0

BARE = {
    "worker": f"""
import os, tempfile
from pathlib import Path
import scorer_worker.__main__ as program
from engine.allocator import keep_freed_memory
from engine.model_spec import load_model
from ipc.settings import ModelSettings
keep_freed_memory()
import torch
import scorer_worker.batcher, scorer_worker.device, scorer_worker.memory_plan, scorer_worker.rehearsal
import scorer_worker.scorer, scorer_worker.worker
print("imported", flush=True)
from scorer_worker.arena import Arena
torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.set_grad_enabled(False)
model = load_model(ModelSettings())
arena = Arena({STORE}, model.spec.dim, torch.float32, torch.device("cpu"))
program.warm_up(arena, scorer_worker.scorer.Scorer(arena), scorer_worker.device.TRAITS["cpu"])
print("warm", flush=True)
""",
    "engine": """
import os, sys
import engine.__main__ as program
from engine.allocator import keep_freed_memory
from engine.model_spec import load_model
from ipc.settings import ModelSettings
keep_freed_memory()
import torch
import engine.encode_queue, engine.encoder, engine.encoder_thread, engine.self_check_record, engine.service
print("imported", flush=True)
torch.set_grad_enabled(False)
model = load_model(ModelSettings())
encoder = engine.encoder.Encoder.load(model, "cpu", "auto", len(os.sched_getaffinity(0)), False)
engine.self_check_record.ensure_checked(model, encoder, sys.argv[1])
program.warm_up(engine.encoder_thread.EncoderThread(encoder), model, 1024)
print("warm", flush=True)
""",
    "api_server": """
import frontend.api_server
print("imported", flush=True)
print("warm", flush=True)
""",
}


class Asker:
    """A client of one server, which knows what the answer must be."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._salt = 0
        self._expected: dict[int, float] = {}

    def ask(self, connection: http.client.HTTPConnection) -> None:
        """Ten documents that are in no store.

        Raises:
            RuntimeError: another answer than the first one.
        """
        self._salt += 1
        body = {"query": "what comes back?", "documents": DOCUMENTS, "cache_salt": str(self._salt)}
        content, _ = post(connection, "/rerank", json.dumps(body).encode())
        scores = {each["index"]: each["relevance_score"] for each in json.loads(content)["results"]}
        self._expected = self._expected or scores
        if any(abs(scores[index] - score) > 1e-3 for index, score in self._expected.items()):
            raise RuntimeError(f"{scores}, expected {self._expected}")

    def recover(self, module: str) -> float:
        """Kill the child that runs this module; the seconds until the first good answer."""
        connection = self.server.connect()
        self.ask(connection)
        (victim,) = self.server.children(module)
        started = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        if module == "frontend.api_server":
            connection.close()
            connection = self.server.connect()
        self.ask(connection)
        elapsed = time.perf_counter() - started
        connection.close()
        return elapsed

    def settle(self, has_spare: bool) -> None:
        """Until every child is back, and the process that stands by too."""
        wanted = [*CHILDREN.values(), *(["scorer_worker.spare"] if has_spare else [])]
        end = time.monotonic() + SETTLE_LIMIT
        while True:
            children = [self.server.children(module) for module in wanted]
            if all(len(pids) == 1 for pids in children) and (not has_spare or _name(children[-1][0]) != "python"):
                break
            if time.monotonic() > end:
                raise SystemExit("a child has not come back")
            time.sleep(0.05)
        connection = self.server.connect()
        self.ask(connection)
        connection.close()
        time.sleep(0.5)


def main() -> None:
    arguments = parser(__doc__ or "", "recovery-cpu")
    arguments.set_defaults(runs=7)
    options = arguments.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in CHILDREN}
    with tempfile.TemporaryDirectory() as cache:
        serve = ("--api-server-count", "1", "--embedding-cache-size", str(STORE), "--cache-directory", cache)
        with Server(*serve, "--spare-process", "on") as spared, Server(*serve, "--spare-process", "off") as plain:
            askers = {"with_spare": Asker(spared), "without_spare": Asker(plain)}
            for _ in range(options.runs):
                for name, module in CHILDREN.items():
                    for variant, asker in askers.items():
                        asker.settle(variant == "with_spare")
                        seconds[name].setdefault(variant, []).append(asker.recover(module))
                    imports, whole = bare(name, cache)
                    seconds[name].setdefault("bare_imports", []).append(imports)
                    seconds[name].setdefault("bare", []).append(whole)
                    seconds[name].setdefault("bare_load", []).append(whole - imports)
                print({name: {key: values[-1] for key, values in each.items()} for name, each in seconds.items()})
    write(options.out, {"documents": len(DOCUMENTS), "seconds": {name: _brief(each) for name, each in seconds.items()}})


def bare(name: str, cache: str) -> tuple[float, float]:
    """Seconds from the command until everything is imported, and until it is warm."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", BARE[name], cache],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout is not None
    times = {line.strip(): time.perf_counter() - started for line in process.stdout}
    process.wait()
    return times["imported"], times["warm"]


def _brief(times: dict[str, list[float]]) -> dict[str, Any]:
    """Spreads, and what each run took beyond its own bare process."""
    found: dict[str, Any] = {name: spread(values) for name, values in times.items()}
    more: dict[str, Callable[[int], float]] = {
        "without_spare_beyond_bare": lambda run: times["without_spare"][run] - times["bare"][run],
        "with_spare_beyond_load": lambda run: times["with_spare"][run] - times["bare_load"][run],
    }
    return found | {name: spread([of(run) for run in range(len(times["bare"]))]) for name, of in more.items()}


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "python"


if __name__ == "__main__":
    main()

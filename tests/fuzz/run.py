"""A million cases, or as many as asked for: `python -m tests.fuzz.run --out benchmarks/results/fuzz-frames.json`.

Coverage-guided ones to the codec (where the extra `fuzz` is installed), and structure-aware ones to a real scorer
worker that hosts its encoder and to a real engine. What is wrong ends it with an error.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import measuring
from ipc import arrays, codec
from ipc.codec import decode_to_client, decode_to_service
from ipc.errors import MalformedMessage
from tests.engine.checkpoints import write_stanford
from tests.fuzz.frames import World, make_answer, make_case
from tests.fuzz.services import VOCABULARY, Service, send_cases

ROUND = 50_000  # cases of one `send_cases`
SEEDS = 300  # inputs that the coverage-guided fuzzer begins with
TRACED = 20_000  # cases whose lines are counted


def guided(runs: int, seed: int) -> dict[str, Any]:
    """libFuzzer's own last line: blocks of the code that were reached, and features (how, and how often)."""
    choose = random.Random(seed)
    with tempfile.TemporaryDirectory() as corpus:
        for number in range(SEEDS):
            (Path(corpus) / str(number)).write_bytes(choose.randbytes(choose.randrange(1, 1500)))
        flags = [f"-runs={runs}", f"-seed={seed}", "-max_len=4096", "-len_control=0", "-rss_limit_mb=1024"]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", *flags, corpus], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-5000:]
    last = re.findall(r"DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)/\S+ .*rss: (\d+)Mb", done.stderr)[-1]
    names = ("blocks_reached", "features", "corpus", "rss_mib")
    return {
        "cases": runs,
        "seconds": round(time.monotonic() - started, 1),
        **dict(zip(names, map(int, last), strict=True)),
    }


def lines_reached(seed: int) -> dict[str, str]:
    """Of each file of the codec, the lines of its functions that TRACED cases reach."""
    choose, world = random.Random(seed), World(is_large=True)
    files = {module.__file__ or "": module for module in (codec, arrays)}
    seen: dict[str, set[int]] = {name: set() for name in files}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in seen:
            return None
        seen[frame.f_code.co_filename].add(frame.f_lineno)
        return trace

    for number in range(TRACED):
        make, decode = ((make_case, decode_to_service), (make_answer, decode_to_client))[number % 2]
        parts = [memoryview(part) for part in make(choose, world)]
        sys.settrace(trace)
        try:
            decode(parts)
        except MalformedMessage:
            pass
        finally:
            sys.settrace(None)
    sending = {"encode", "add", "add_ints", "add_keys", "split_keys"}
    found = {}
    for name, module in files.items():
        codes = [
            each.__code__ for key, each in vars(module).items() if key not in sending and hasattr(each, "__code__")
        ]
        lines = {line for code in codes if code.co_filename == name for *_, line in code.co_lines() if line}
        lines -= {code.co_firstlineno for code in codes}
        missed = sorted(lines - seen[name])
        found[f"ipc/{Path(name).name}"] = f"{len(lines) - len(missed)} of {len(lines)}, not {missed}"
    return found


def to_service(module: str, cases: int, seed: int) -> dict[str, Any]:
    """Structure-aware cases to a process, with its memory before and after."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(module, write_stanford(Path(folder) / "model"))
        try:
            service.wait_up()
            total: dict[str, Any] = {"cases": 0, "malformed": 0, "counted": 0, "answers": 0, "seconds": 0.0}
            memory = []
            for number in range(-(-cases // ROUND)):
                count = min(ROUND, cases - number * ROUND)
                found = send_cases(service, World(vocabulary=VOCABULARY), seed + number, count)
                assert service.process.poll() is None, service.log
                assert found["counted"] == found["malformed"] and not found["malformed_answers"], found
                total = {name: total[name] + found[name] for name in total}
                memory.append(service.memory() >> 20)
            return {**total, "rss_mib_after_each_round": memory, "descriptors": service.descriptors()}
        finally:
            assert service.stop() == 0, service.log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guided", type=int, default=500_000, help="coverage-guided cases (default 500,000)")
    parser.add_argument("--worker", type=int, default=250_000, help="cases to a scorer worker (default 250,000)")
    parser.add_argument("--engine", type=int, default=250_000, help="cases to an engine (default 250,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=measuring.RESULTS / "fuzz-frames.json", help="result file")
    options = parser.parse_args()
    results: dict[str, Any] = {"command": " ".join(["python -m tests.fuzz.run", *sys.argv[1:]])}
    if importlib.util.find_spec("atheris") is not None:
        results["guided"] = guided(options.guided, options.seed)
    results["lines_reached"] = lines_reached(options.seed)
    results["scorer_worker"] = to_service("scorer_worker", options.worker, options.seed)
    results["engine"] = to_service("engine", options.engine, options.seed)
    measuring.write(options.out, results)


if __name__ == "__main__":
    main()

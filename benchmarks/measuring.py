"""What every benchmark does alike: interleaved runs, medians with spread, results that say where they are from."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "pyzmq",
    "msgspec",
    "uvicorn",
    "uvloop",
    "httptools",
    "starlette",
    "tokenizers",
    "transformers",
    "sentence-transformers",
)


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """The flags that all benchmarks share."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--runs", type=int, default=9, help="interleaved runs of each variant (default 9)")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="result file")
    return result


def interleave(variants: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Seconds of each variant, `runs` times each, one after the other in turns: noise of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()  # warm
    for _ in range(runs):
        for name, run in variants.items():
            seconds[name].append(run())
    return seconds


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Wall-clock seconds of one call."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


def spread(values: list[float], scale: float = 1.0) -> dict[str, float]:
    """Median, quartiles and extremes."""
    ordered = sorted(value * scale for value in values)
    return {
        "median": statistics.median(ordered),
        "low": ordered[0],
        "p25": ordered[len(ordered) // 4],
        "p75": ordered[(3 * len(ordered)) // 4],
        "high": ordered[-1],
    }


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of all lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def write(path: Path, results: Mapping[str, Any]) -> None:
    """The result file: results, and where they are from."""
    content = {"command": _command(), **_origin(), **results}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=float) + "\n")
    print(json.dumps(results, indent=1, default=float))


def _command() -> str:
    """As a reader types it in the repository's root: a module's name in place of its file's absolute path."""
    return " ".join(["python -m benchmarks." + Path(sys.argv[0]).stem, *sys.argv[1:]])


def _origin() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

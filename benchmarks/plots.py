"""The plots of docs/benchmarks.md, as SVG files: `python -m benchmarks.plots`. Needs matplotlib; nothing else does.

Each file says in its metadata which results it shows, by their hash: a test compares that, and needs no matplotlib.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS

FOLDER = Path(__file__).parents[1] / "docs" / "plots"
SOURCES = {
    "throughput-by-api-servers": "serving-cuda",
    "latency-by-load": "serving-cuda",
    "kernel-over-floor": "scoring-cuda",
    "encoder-share": "encoder-cuda",
}
WIDTH, HEIGHT = 6.4, 3.4  # inches


def mark_of(name: str) -> str:
    """What the file of a plot says of its results: their name and hash."""
    content = (RESULTS / f"{SOURCES[name]}.json").read_bytes()
    return f"benchmarks/results/{SOURCES[name]}.json sha256 {hashlib.sha256(content).hexdigest()}"


def main() -> None:
    from matplotlib import rcParams

    rcParams["svg.hashsalt"] = "maxsimd"  # the same results are the same file
    rcParams["svg.fonttype"] = "none"
    FOLDER.mkdir(exist_ok=True)
    for name, draw in {
        "throughput-by-api-servers": draw_throughput,
        "latency-by-load": draw_latency,
        "kernel-over-floor": draw_kernel,
        "encoder-share": draw_encoder,
    }.items():
        results = json.loads((RESULTS / f"{SOURCES[name]}.json").read_text("utf-8"))
        figure = draw(results)
        metadata = {"Description": mark_of(name), "Date": None, "Creator": None}
        figure.savefig(FOLDER / f"{name}.svg", metadata=metadata, bbox_inches="tight")


def _figure(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(True, alpha=0.3)
    return figure, axes


def draw_throughput(results: dict[str, Any]) -> Any:
    figure, axes = _figure("1000 cached documents a request, 8 at a time", "API servers", "documents/s")
    parts = results["by_api_servers"]
    axes.plot([part["api_servers"] for part in parts], [part["document_throughput"] for part in parts], marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks([part["api_servers"] for part in parts], [str(part["api_servers"]) for part in parts])
    axes.set_ylim(bottom=0)
    return figure


def draw_latency(results: dict[str, Any]) -> Any:
    figure, axes = _figure("Latency where requests come at random times", "documents/s asked for", "ms")
    for name, label, documents in (
        ("100_cached_documents_by_rate", "100 cached documents", 100),
        ("10_new_documents_by_rate", "10 new documents", 10),
    ):
        for key, style in (("median_ms", "-"), ("p99_ms", "--")):
            rates = [part["rate"] * documents for part in results[name]]
            values = [part["latency"][key] for part in results[name]]
            axes.plot(rates, values, style, marker="o", label=f"{label}, {key.removesuffix('_ms')}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return figure


def draw_kernel(results: dict[str, Any]) -> Any:
    title = "MaxSim: time on the device over the least there can be (bytes or products)"
    figure, axes = _figure(title, "", "times the floor")
    names = [name for name in results["workloads"] if name != "least"]
    axes.bar(names, [results["workloads"][name]["times_floor"] for name in names])
    axes.tick_params(axis="x", labelsize=7)
    axes.axhline(1.0, color="black", linewidth=1)
    return figure


def draw_encoder(results: dict[str, Any]) -> Any:
    figure, axes = _figure("The encoder's share of a large matrix product's rate", "", "share")
    shapes = list(results["shapes"])
    sides = [name for name in results["shapes"][shapes[0]] if name != "matmul_tflops"]
    for place, side in enumerate(sides):
        shares = [results["shapes"][shape][side]["share"] for shape in shapes]
        axes.bar([number + 0.4 * place for number in range(len(shapes))], shares, width=0.4, label=side)
    labels = [shape.replace(" tokens, texts of", ":") for shape in shapes]
    axes.set_xticks(range(len(shapes)), labels, rotation=40, ha="right", fontsize=7)
    axes.legend(fontsize=8, loc="lower right")
    return figure


if __name__ == "__main__":
    main()

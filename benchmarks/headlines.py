"""docs/benchmarks.md and the figures of README.md, written from the result files of one GPU.

python -m benchmarks.headlines
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS
from benchmarks.plots import SOURCES
from benchmarks.tables import H100_TARGETS_US

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- figures: python -m benchmarks.headlines -->", "<!-- end of figures -->"
# vLLM 0.26.0 on one H100 80GB, torch 2.11, the same load and model shape; measured for this project, 2026-11
VLLM = {
    "own_command": 77.0,
    "compiled": 161.0,
    "four_api_servers": 266.0,
    "four_api_servers_p99_ms": 300.0,
    "new_documents": 1696.0,
    "new_documents_p50_ms": 717.0,
    "repeated_documents": 839.0,
}
VLLM_NOTE = (
    "Both are of an H100 (80 GB HBM3); vLLM's of 0.26.0, measured with the same load generator's sampling, model shape "
    "and number of API servers. The two were not run side by side."
)


LENGTHS = ("-10-minutes", "-10-minutes-8900d79", "-3-minutes", "")


def page() -> str:
    """docs/benchmarks.md."""
    encoding, serving, encoder, scoring = map(_read, ("pr35330-cuda", "serving-cuda", "encoder-cuda", "scoring-cuda"))
    mixed = [_read(f"mixed-cuda{length}") for length in LENGTHS]
    parts = [
        "# Benchmarks",
        "Generated from `benchmarks/results/` by `python -m benchmarks.headlines`, plots by `python -m "
        "benchmarks.plots`. [numbers.md](numbers.md) has every table, also those of a CPU.",
        VLLM_NOTE,
        _encoding(encoding),
        _cached(serving),
        _latency(serving),
        _api_servers(serving),
        _mixed(mixed),
        _encoder(encoder),
        _kernel(scoring),
        _not_reached(scoring, mixed),
        _of_the_host(),
    ]
    return "\n\n".join(parts) + "\n"


def figures() -> str:
    """The table of README.md."""
    encoding, serving = _read("pr35330-cuda"), _read("serving-cuda")
    nothing, cached, new = encoding["nothing_cached"], encoding["cached"], encoding["new_100_documents"]
    eight = serving["cached_1000_documents"]["8_at_a_time"]
    rows = [
        [
            "PR 35330's benchmark: one query of 1,380 tokens, a document of 673 each, nothing cached",
            f"{nothing['request_throughput']:.0f} requests/s, p99 {nothing['latency']['p99_ms']:.0f} ms",
            f"{VLLM['four_api_servers']:.0f} requests/s, p99 {VLLM['four_api_servers_p99_ms']:.0f} ms",
        ],
        [
            "the same, store on: the query repeats, no document does",
            f"{cached['request_throughput']:.0f} requests/s, p99 {cached['latency']['p99_ms']:.0f} ms",
            "as above: it has no store",
        ],
        [
            "100 new documents of 256 tokens a request",
            f"{new['document_throughput']:,.0f} documents/s",
            f"{VLLM['new_documents']:,.0f} documents/s",
        ],
        [
            "1000 documents of 256 tokens, the same for every query (maxsimd: embedded model, dim 384)",
            f"{eight['document_throughput']:,.0f} documents/s, p50 {eight['latency']['median_ms']:.0f} ms",
            f"{VLLM['repeated_documents']:,.0f} documents/s",
        ],
    ]
    head = ["one GPU", f"maxsimd, {encoding['gpu'].removeprefix('NVIDIA ')}", "vLLM 0.26.0, H100"]
    return "\n".join([*_table(head, rows), "", VLLM_NOTE, "", "More: [docs/benchmarks.md](docs/benchmarks.md)."])


LOADS = {
    "nothing_cached": "PR 35330's mix, nothing cached, 64 at a time",
    "cached": "PR 35330's mix, store on, 64 at a time",
    "new_100_documents": "100 new documents x 256 tokens, 16 at a time",
}


def _encoding(results: dict[str, Any]) -> str:
    rows = [
        [label, *_rates(results[name]), f"{results[name]['share_of_encoder_alone']:.2f}"]
        for name, label in LOADS.items()
    ]
    four, p99 = f"{VLLM['four_api_servers']:.0f}", f"{VLLM['four_api_servers_p99_ms']:.0f}"
    new = [f"{VLLM['new_documents']:,.0f}", f"{VLLM['new_documents_p50_ms']:.0f}", "1687"]
    rows += [
        ["vLLM: PR 35330's mix, PR's own command", f"{VLLM['own_command']:.0f}", "", "", "", ""],
        ["vLLM: compiled, one API server", f"{VLLM['compiled']:.0f}", "", "", "", ""],
        ["vLLM: compiled, four API servers", four, "", "228", p99, ""],
        ["vLLM: 100 new documents x 256 tokens", "17.0", *new, ""],
    ]
    head = ["load, four API servers", "requests/s", "documents/s", "p50 ms", "p99 ms", "share of the encoder alone"]
    text = (
        f"jina-colbert-v2's shape, random weights, {results['dtype']}. 'Nothing cached' means that query and "
        "document are encoded for every request. The share is of the tokens that the encoder alone takes in the same "
        "time, measured between the servers in the same run: the rest is what HTTP, tokenising, IPC and scoring cost."
    )
    return _section("New documents", results, text, head, rows)


def _rates(part: dict[str, Any]) -> list[str]:
    return [f"{part['request_throughput']:.1f}", *_load(part)]


def _cached(results: dict[str, Any]) -> str:
    rows = [[name.replace("_", " "), *_load(part)] for name, part in results["cached_1000_documents"].items()]
    rows.append(
        ["vLLM, 8 at a time: encodes all of them again", f"{VLLM['repeated_documents']:,.0f}", "8,915", "17,940"]
    )
    text = (
        f"1000 documents of 256 tokens, the same for every query, documents not sent back; 8 API servers; "
        f"{Path(results['model']).name}, dim 384."
    )
    return _section("Cached documents", results, text, ["", "documents/s", "p50 ms", "p99 ms"], rows)


def _latency(results: dict[str, Any]) -> str:
    rows = []
    for name, label in (("100_cached_documents_by_rate", "100 cached"), ("10_new_documents_by_rate", "10 new")):
        for part in results[name]:
            latency = part["latency"]
            rows.append(
                [
                    label,
                    str(part["rate"]),
                    f"{part['request_throughput']:.0f}",
                    f"{latency['median_ms']:.1f}",
                    f"{latency['p99_ms']:.1f}",
                    str(part["failed"]),
                ]
            )
    text = "Open loop: requests start at random times, and latency counts from when each was due. 8 API servers."
    head = ["documents of 256 tokens", "requests/s asked", "answered", "p50 ms", "p99 ms", "refused"]
    return _section("Latency against load", results, text, head, rows) + _plot("latency-by-load")


def _api_servers(results: dict[str, Any]) -> str:
    rows = [
        [
            str(part["api_servers"]),
            f"{part['document_throughput']:,.0f}",
            f"{part['latency']['p99_ms']:.1f}",
            f"{part['32_at_a_time']['document_throughput']:,.0f}",
            f"{part['device_memory_mib_idle']:,.0f}",
            f"{part['device_memory_mib_after_load']:,.0f}",
            str(part["cuda_processes"]),
        ]
        for part in results["by_api_servers"]
    ]
    text = "1000 cached documents a request. Memory is the device's, of all processes, with a store of 8 GiB."
    head = ["API servers", "documents/s, 8 at a time", "p99 ms", "documents/s, 32 at a time"]
    head += ["MiB idle", "MiB after load", "CUDA processes"]
    title = "Throughput and memory against the number of API servers"
    return _section(title, results, text, head, rows) + _plot("throughput-by-api-servers")


def _mixed(runs: Sequence[dict[str, Any]]) -> str:
    names = {
        "beside_nothing": "nothing",
        "beside_encoding": "new documents only",
        "beside_mixed_traffic": "loads of six kinds",
    }
    text = (
        "jina-colbert-v2's shape. What a Score of a query and ten documents that the store has waits, on the worker's "
        "socket, 50 or 100 times a second. Alone most of it is this machine waking from sleep six times. Bare: what a "
        "process takes that answers the same frames and does nothing else, asked in turns with it. Memory is what "
        "nvidia-smi says of the device, and what torch's allocator has reserved of it."
    )
    head = ["beside", "encoder busy", "p50 ms", "p90 ms", "p99 ms", "longest ms", "bare p50 and p99 ms"]
    head += ["MiB of the device", "MiB reserved"]
    parts = [f"## Mixed traffic\n\n{text}"]
    for results in runs:
        rows = []
        for name, label in names.items():
            waited, memory = results[name]["cached_score_ms"], results[name]["memory"]
            bare = results[name].get("bare_zeromq_ms")  # since 7373fab
            rows.append(
                [
                    label,
                    f"{results[name]['encoder_busy_share']:.2f}",
                    *(f"{waited[share]:.1f}" for share in ("p50", "p90", "p99", "max")),
                    f"{bare['p50']:.1f} and {bare['p99']:.1f}" if bare else "",
                    *(f"{memory[kind]['least']:,.0f} to {memory[kind]['most']:,.0f}" for kind in memory),
                ]
            )
        parts += [_origin(results), "\n".join(_table(head, rows))]
    return "\n\n".join(parts)


def _encoder(results: dict[str, Any]) -> str:
    rows = []
    for shape, part in results["shapes"].items():
        ours, torchs = (part[name] for name in part if name != "matmul_tflops")
        shares = [f"{ours['share']:.2f}", f"{torchs['share']:.2f}"]
        rows.append([shape, f"{ours['tokens_per_second']:,.0f}", *shares, f"{part['matmul_tflops']:.0f}"])
    text = "Share: of the rate of an 8192^3 matrix product, which takes turns with the others in the same run."
    head = ["batch", "tokens/s", "share", "torch's operations one by one", "product TFLOP/s"]
    return _section("The encoder alone", results, text, head, rows) + _plot("encoder-share")


def _kernel(results: dict[str, Any]) -> str:
    rows = [
        [
            name,
            part["workload"],
            f"{part['device_us']:.1f}",
            f"{part['times_floor']:.2f}" if name != "least" else "",
            f"{part['call_us']:.0f}",
        ]
        for name, part in results["workloads"].items()
    ]
    text = (
        f"Floor: the bytes at {results['copy_tb_s']:.2f} TB/s, which a copy reaches, or the products at "
        f"{results['matmul_tflop_s']:.0f} TFLOP/s, whichever takes longer. Documents lie scattered in a store whose "
        "content was replaced ten times. A call of few pairs takes what the least call takes and the time of its bytes."
    )
    head = ["", "workload", "on the device us", "times floor", "whole call us"]
    return _section("MaxSim", results, text, head, rows) + _plot("kernel-over-floor")


def _not_reached(scoring: dict[str, Any], mixed: Sequence[dict[str, Any]]) -> str:
    workloads = scoring["workloads"]
    least = workloads["least"]["device_us"]
    rows = [
        [name, f"{part['device_us']:.1f}", f"{H100_TARGETS_US[name]:g}", f"{least + part['floor_us']:.1f}"]
        for name, part in workloads.items()
        if name in H100_TARGETS_US and part["device_us"] > H100_TARGETS_US[name]
    ]
    calls = workloads["W4"]["call_us_spread"]
    waits = [
        f"{run['beside_encoding']['cached_score_ms']['p99']:.1f} ms in the {run['minutes']:g} minutes at "
        f"{run['commit'][:7]}, where it was {run['beside_nothing']['cached_score_ms']['p99']:.1f} beside nothing"
        for run in mixed
    ]
    text = [
        "## Wanted and not reached",
        "MaxSim, microseconds on the device. Last column: what any call takes (the least one) and the time of this "
        "one's bytes or products; with thousands of pairs part of the first hides behind the second.",
        "\n".join(_table(["", "took", "wanted", "least call and floor"], rows)),
        "W1, W2, W8, W10 lie 2 to 4 us above the last column. The least call is a launch that reads its table from "
        "the host's memory and writes its scores there; copying the table first costs the device 9 us (25 for W9's) "
        "and the host 20. W3, W4 and W6a run at the rate of a copy.",
        "The following by hand, in runs in which what is served took 50.4 us for W7, 199 for W6b and 192 for W9. "
        "W7: a kernel that only reads the same rows, its table on the device, takes 48.6; bringing the maxima of a "
        "document's chunks together takes 2. W6b: 680 TFLOP/s, where a large product has 766; tiles of 128 document "
        "rows compute 6 percent more rows than there are. Tiles of 64 rows at a document's end gave wrong products, "
        "why is not known. W9: without its long query it takes 169, and this query alone 25, so nearly nothing of "
        "it hides behind the reading of the others. In one launch with them it adds as much (28 in blocks of 64 "
        "query rows, 55 in blocks of 128), also where more programs have room (two stages); the one document of "
        "8,192 rows adds nothing.",
        f"W4's whole call: {calls['median']:.0f} us, 250 wanted, and {calls['low']:.0f} to {calls['high']:.0f} within "
        "the run above; 240 and 224 in runs on other machines (commits fb43538, 85a2616). Whole calls of W7 and W9 "
        "differ by the host too: 117 and 456 us in one run, 248 and 655 in another. Side by side "
        "on one machine, by hand: commit 374aeb1 took 141 and 717 us, ec6f8ea 107 and 724. Of W9's, cutting pairs into "
        "items takes 230 (long queries 67), before the device has its work.",
        f"A cached Score's p99 beside saturated encoding, 2 ms wanted: {'; '.join(waits)}. It moves with the machine: "
        "the p50 beside nothing is 0.9 ms on some, and 1.2 to 1.7 on those of the first three runs. In the first run "
        "also the bare process, which does nothing else and is not ours, waited 4.5 ms beside encoding (p99), in the "
        "third 0.7: processors were taken meanwhile, by whom was not measured. On another, by hand at 0b0ed84, the "
        "p99 was 1.8 (3,020 samples, encoder busy 0.84) and 1.4 beside nothing; on one whose processors had other work "
        "6.7, and 7.2 beside nothing. By timers in the "
        "worker, set by hand in an earlier run, whose p99 was 2.8 ms: reading, scoring and answering such a Score take "
        "0.35 ms, one step for somebody else 0.13 ms (p99 0.5 ms), launching a batch 1.9 ms of the encoder's thread "
        "(since then 0.4). The longest are waits of up to 15 ms in which the waiting thread used no processor: for "
        "Python's lock, or for a processor.",
    ]
    return "\n\n".join(text)


def _load(part: dict[str, Any]) -> list[str]:
    latency = part["latency"]
    return [f"{part['document_throughput']:,.0f}", f"{latency['median_ms']:.1f}", f"{latency['p99_ms']:.1f}"]


def _section(title: str, results: dict[str, Any], text: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([f"## {title}", "", text, "", _origin(results), "", *_table(head, rows)])


def _origin(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return f"`{results['command']}`, commit {results['commit'][:7]}, {results['gpu']}, {machine['cores']} cores."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _of_the_host() -> str:
    text = [
        "## What is the host's",
        "What HTTP, JSON and tokenising take, and what the worker's control thread takes to find a thousand entries, "
        "is the host's. A thousand cached documents, p50 one at a time and 8 at a time, documents/s 8 and 32 at a "
        "time, by hand; on each machine side by side, two runs each, first one after the other and then in turn:",
        "\n".join(
            _table(
                ["machine", "commit", "p50 ms, 1", "p50 ms, 8", "documents/s, 8", "documents/s, 32"],
                [
                    ["A", "5a18187", "15.4, 15.9", "22.4, 23.1", "335,000, 329,000", "447,000, 473,000"],
                    ["A", "08dee72", "14.9, 15.7", "20.2, 21.2", "356,000, 341,000", "349,000, 375,000"],
                    ["B", "08dee72", "17.2, 13.7", "22.6, 21.0", "317,000, 357,000", "340,000, 446,000"],
                    ["B", "e11a53b", "9.0, 7.9", "15.3, 12.1", "462,000, 561,000", "696,000, 751,000"],
                    [
                        "B",
                        "e11a53b, parts of 1,024",
                        "8.7, 6.4",
                        "17.5, 13.2",
                        "429,000, 551,000",
                        "989,000, 1,025,000",
                    ],
                ],
            )
        ),
        "On a machine with faster processors 5a18187 took 9.9 and 15.0 ms and had 520,000 and 671,000 documents/s. "
        "Between it and 08dee72 the control thread got more to do for other clients' sake, and bound what 32 at a time "
        "got. What changed then: the worker pins, finds and "
        "answers for a thousand entries in a few calls of numpy (335 us became 127 for 512, two cores), a list of "
        "documents that comes again is known by its bytes (an API server's 12 ms became 6 on B), and 1,000 documents "
        "are one message in place of two. The tables above have all of it; their machine was a slow one too: ten "
        "cached documents took 1.9 ms there, alone, where they took 1.5 at 7373fab (the table of fairness), and 10 new "
        "ones 20.6 in place of 16.7 on the slow machine of then and 12.3 on the fast one. Of these two there is no run "
        "side by side with the old code.",
        "Since then, on a CPU only: the list is found by other code, which no longer keeps what came with a salt "
        "(3.1 ms of an API server in place of 3.2, by hand, two cores, side by side), an API server's malloc keeps "
        "what it has freed, and bodies are put together as before (3.3 in place of 3.1).",
        "Wanted were three times the documents/s with four API servers that there are with one: 32 at a time "
        "there are, 8 at a time not. One API server alone is busy all the time there; with four each has two of the "
        "eight requests, and a request of an API server's 5.5 ms (by hand, B) at 97 a second keeps it half busy.",
        "PR 35330's mix with the store on keeps 0.92 of what the encoder alone takes, in the run above (0.93 wanted); "
        "0.94 at 5a18187, on faster processors.",
    ]
    return "\n\n".join(text)


def _plot(name: str) -> str:
    assert name in SOURCES
    return f"\n\n![{name.replace('-', ' ')}](plots/{name}.svg)"


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return content


def in_readme(readme: str) -> str:
    """README.md with the figures of now."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{figures()}\n\n{END}{after}"


if __name__ == "__main__":
    (ROOT / "docs" / "benchmarks.md").write_text(page(), "utf-8")
    readme = ROOT / "README.md"
    readme.write_text(in_readme(readme.read_text("utf-8")), "utf-8")

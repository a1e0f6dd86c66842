"""docs/numbers.md, written from the result files: `python -m benchmarks.tables > docs/numbers.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS

# What was asked for, on an H100
H100_TARGETS_US = {
    "W1": 7.5,
    "W2": 30.0,
    "W3": 249.0,
    "W4": 166.0,
    "W6a": 142.0,
    "W6b": 190.0,
    "W7": 49.0,
    "W8_64": 17.5,
    "W8_96": 23.5,
    "W8_384": 80.0,
    "W9": 172.0,
    "W10": 9.0,
}
WHEN = ("before", "after")  # an overload
FAIRNESS_BESIDE = {
    "alone": "alone",
    "beside": "beside a client that asks for 10,000",
    "beside_computing": "beside two processes that only compute",
}
FAIRNESS = {
    "fairness_new": "10 new documents",
    "fairness_cached": "10 cached documents",
    "fairness_cached_2_api_servers": "10 cached documents, two API servers",
}
FAIRNESS_HEAD = ["what", "requests", "p50 ms", "p99 ms", "times the p99 alone"]
VARIANTS = {
    "ours_scattered": "maxsimd, documents scattered in the store",
    "ours_together": "maxsimd, documents together",
    "pages_of_16_rows": "pages of 16 rows",
    "matmul_per_document": "a matmul per document",
    "cat_and_segment_reduce": "torch.cat, segment_reduce",
    "padded_like_vllm": "padded, as vLLM's PR 35330",
}


def page() -> str:
    """The whole page, in markdown."""
    sections = [_scoring(_read("scoring-cpu")), _serving(_read("serving-cpu")), _encoder(_read("encoder-cpu"))]
    sections += [_ndcg(_read("ndcg-cpu")), _start(_read("start-cpu"))]
    sections += [_scoring_cuda(_read("scoring-cuda")), _serving_cuda(_read("serving-cuda"))]
    sections += [
        _overload(_read("overload-cpu")),
        _fairness(_read("fairness-cpu-16-cores"), "on a CPU with sixteen cores"),
        _fairness(_read("fairness-cuda"), f"on one {_read('fairness-cuda')['gpu']}"),
        _spinning(_read("spinning-cpu")),
        _fuzz(_read("fuzz-frames")),
    ]
    sections += [_recovery(_read("recovery-cpu")), _score_rate(_read("score-rate-cpu")), _soak(_read("soak-cpu"))]
    head = "# Numbers\n\nGenerated from `benchmarks/results/` by `python -m benchmarks.tables`. Medians.\n"
    return "\n".join([head, *sections])


def _overload(results: dict[str, Any]) -> str:
    load = results["overload"]
    rows = [
        [f"answered {status}", str(part["count"]), f"{part['p50_ms']:.0f}", f"{part['p99_ms']:.0f}", ""]
        for status, part in load["answers"].items()
    ]
    rows += _fairness_rows(results)
    asked, before, after = (load[name] for name in ("asked_per_second", *(f"requests_per_second_{n}" for n in WHEN)))
    title = (
        f"Overload and fairness: 200 connections ask for {asked:.0f} requests/s of 100 new documents, "
        f"where 8 get {before:.1f}, afterwards {after:.1f}"
    )
    return _section(title, results, FAIRNESS_HEAD, rows)


def _fairness(results: dict[str, Any], where: str) -> str:
    return _section(f"Fairness {where}", results, FAIRNESS_HEAD, _fairness_rows(results))


def _fairness_rows(results: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, label in FAIRNESS.items():
        part = results[name]
        for how, words in FAIRNESS_BESIDE.items():
            if how not in part:  # of runs before this was measured
                continue
            own = part[how]
            times = f"{own['p99_ms'] / part['alone']['p99_ms']:.1f}" if how != "alone" else ""
            rows.append([f"{label}, {words}", str(own["count"]), f"{own['p50_ms']:.1f}", f"{own['p99_ms']:.1f}", times])
    return rows


def _spinning(results: dict[str, Any]) -> str:
    rows = [
        [name, what, *(f"{results[where][name][what]['median']:.2f}" for where in ("alone", "beside"))]
        for name in results["alone"]
        for what in results["alone"][name]
    ]
    title = "How long OpenMP's threads spin: two threads, alone and beside two processes that never sleep"
    return _section(title, results, ["GOMP_SPINCOUNT", "what", "alone ms", "beside others ms"], rows)


def _fuzz(results: dict[str, Any]) -> str:
    guided = results["guided"]
    reached = f"{guided['blocks_reached']} blocks, {guided['features']} features"
    rows = [["the codec, coverage-guided", f"{guided['cases']:,}", "", "", f"{guided['seconds']:.0f}", reached]]
    for name, label in (("scorer_worker", "a scorer worker"), ("engine", "an engine")):
        part = results[name]
        memory = part["rss_mib_after_each_round"]
        seen = f"{memory[0]} MiB after a fifth of them, {memory[-1]} MiB at the end"
        rows.append(
            [label, *(f"{part[key]:,}" for key in ("cases", "malformed", "counted")), f"{part['seconds']:.0f}", seen]
        )
    title = "Frames of any kind to the codec and to real services"
    return _section(
        title, results, ["to", "cases", "malformed", "counted by the service", "s", "reached, or memory"], rows
    )


def _scoring(results: dict[str, Any]) -> str:
    rows = []
    for dim in (128, 384):
        part = results[f"dim_{dim}"]
        for name, label in VARIANTS.items():
            variant = part["variants"][name]
            times = variant["ms"]["median"] / part["variants"]["ours_scattered"]["ms"]["median"]
            shares = [f"{variant[share]:.0%}" for share in ("share_of_sgemm", "share_of_onednn")]
            rows.append([str(dim), label, f"{variant['ms']['median']:.1f}", *shares, f"{times:.1f}"])
    title = "MaxSim: a query of 32 rows against 1000 cached documents of about 180 rows"
    head = ["dim", "how", "ms", "of torch.mm's rate (3000 x 3000)", "of oneDNN's, packed", "times ours"]
    return _section(title, results, head, rows)


def _serving(results: dict[str, Any]) -> str:
    cached, small = results["cached_rerank"], results["small_cached_score"]
    idle, large = results["api_server_memory_mib"], results["api_server_memory_mib_250k_vocabulary"]
    outside = cached["outside_maxsim_ms"]
    rows = [
        ["outside MaxSim, documents returned", f"{outside['with_documents']['median']:.1f} ms"],
        ["outside MaxSim, return_documents false", f"{outside['without_documents']['median']:.1f} ms"],
        ["of that, IPC and worker", f"{cached['ipc_and_worker_ms']['median']:.1f} ms"],
        ["MaxSim itself (dim 384)", f"{cached['maxsim_ms']['median']:.1f} ms"],
        ["tokens encoded, texts tokenised meanwhile", f"{sum(cached['tokenised_or_encoded'].values()):.0f}"],
        ["a small cached Score, there and back: p50, p99", f"{small['p50_us']:.0f}, {small['p99_us']:.0f} us"],
        [
            "the same frames through bare ZeroMQ: p50, p99",
            f"{small['bare_zeromq']['p50_us']:.0f}, {small['bare_zeromq']['p99_us']:.0f} us",
        ],
        ["8 connections over 4 API servers", "/".join(map(str, results["connections_of_8"]))],
        ["an API server's memory, idle", f"{max(idle['idle']):.0f} MiB"],
        ["more of it under load, at most", f"{max(idle['more_under_load']):.0f} MiB"],
        ["idle, with a vocabulary of 250,000", f"{max(large['idle']):.0f} MiB"],
    ]
    return _section("Serving: the same 1000 documents of 180 tokens again, over HTTP", results, ["what", "value"], rows)


def _encoder(results: dict[str, Any]) -> str:
    rows = [
        [
            side["name"],
            f"{side['median_seconds']:.2f}",
            f"{side['min_seconds']:.2f} to {side['max_seconds']:.2f}",
            f"{side['times_ours']:.2f}",
        ]
        for side in results["sides"]
    ]
    title = f"Encoding: {results['documents']} ragged documents, {results['tokens']} tokens, tokenising included"
    return _section(title, results, ["how", "s", "spread", "times ours"], rows)


def _ndcg(results: dict[str, Any]) -> str:
    labels = {
        "bm25": "BM25's own order",
        "maxsimd": "maxsimd, over HTTP",
        "sentence_transformers": "MultiVectorEncoder",
    }
    rows = [[label, f"{results['ndcg_at_10'][name]:.4f}"] for name, label in labels.items()]
    same, queries = results["queries_with_the_same_order_of_all_candidates"], results["queries"]
    rows.append(["queries whose whole order is MultiVectorEncoder's", f"{same} of {queries}"])
    title = f"Ranking quality: {queries} queries, the best {results['candidates']} of {results['documents']} documents"
    return _section(title, results, ["order", "nDCG@10"], rows)


def _start(results: dict[str, Any]) -> str:
    rows = [
        ["maxsimd serve, to the first 200 of /ready", f"{results['ready_seconds']['median']:.2f} s"],
        ["a bare process that imports and loads the same", f"{results['bare_seconds']['median']:.2f} s"],
        ["the first start with a model, self-check included", f"{results['first_start_seconds']:.2f} s"],
    ]
    return _section("Start with a known model", results, ["what", "time"], rows)


def _scoring_cuda(results: dict[str, Any]) -> str:
    rows = []
    for name, part in results["workloads"].items():
        target = H100_TARGETS_US.get(name)
        rows.append(
            [
                name,
                part["workload"],
                f"{part['floor_us']:.1f}",
                f"{part['device_us']:.1f}",
                f"{part['times_floor']:.2f}" if name != "least" else "",
                f"{target:g}" if target is not None else "",
                f"{part['call_us']:.0f}",
                f"{part['largest_error']:.0e}",
            ]
        )
    title = (
        f"MaxSim on one {results['gpu']}: copy {results['copy_tb_s']:.2f} TB/s, fp16 matmul "
        f"{results['matmul_tflop_s']:.0f} TFLOP/s"
    )
    head = ["", "workload", "floor us", "on the device us", "times floor", "H100 target us", "whole call us", "error"]
    return _section(title, results, head, rows)


def _serving_cuda(results: dict[str, Any]) -> str:
    rows = [
        [f"1000 cached documents x 256 tokens, {name.replace('_', ' ')}, 8 API servers", *_load(part)]
        for name, part in results["cached_1000_documents"].items()
    ]
    rows.append(
        [
            "100 new documents x 256 tokens, nothing cached, 16 at a time, 4 API servers",
            *_load(results["new_100_documents"]),
        ]
    )
    for part in results["by_api_servers"]:
        used = f"{part['device_memory_mib_after_load']:.0f} MiB of the device, {part['cuda_processes']} CUDA process"
        rows.append([f"1000 cached, 8 at a time, {part['api_servers']} API servers: {used}", *_load(part)])
    title = f"The server on one {results['gpu']}: {Path(results['model']).name}"
    return _section(title, results, ["load", "documents/s", "p50 ms", "p99 ms"], rows)


def _load(part: dict[str, Any]) -> list[str]:
    latency = part["latency"]
    return [f"{part['document_throughput']:,.0f}", f"{latency['median_ms']:.1f}", f"{latency['p99_ms']:.1f}"]


def _recovery(results: dict[str, Any]) -> str:
    rows = []
    for name, part in results["seconds"].items():
        load = f"{part['bare_load']['median']:.2f}" if name != "api_server" else ""
        beyond = {
            "without_spare": f"{part['without_spare_beyond_bare']['median']:.2f}",
            "with_spare": f"{part['with_spare_beyond_load']['median']:.2f}" if load else "",
        }
        for variant, words in (("without_spare", "none"), ("with_spare", "one")):
            seconds = part[variant]
            rows.append(
                [
                    name.replace("_", " "),
                    words,
                    f"{seconds['median']:.2f}",
                    f"{seconds['low']:.2f} to {seconds['high']:.2f}",
                    f"{part['bare']['median']:.2f}",
                    load,
                    beyond[variant],
                ]
            )
    head = ["killed", "stands by", "first good answer, s", "spread", "bare process, s", "its load, s", "beyond it, s"]
    title = "Recovery: from kill -9 to the first good answer, beside a bare process that imports, loads and warms up"
    note = (
        "The last column: beyond the whole bare process where none stands by, beyond its load and warm-up where one "
        "does; medians of the differences of each run. Other work ran on these cores meanwhile: hence the spread.\n"
    )
    return _section(title, results, head, rows) + "\n" + note


def _score_rate(results: dict[str, Any]) -> str:
    rows = [
        [
            words,
            f"{part['scores_per_second']['median']:,.0f}",
            f"{part['scores_per_second']['low']:,.0f} to {part['scores_per_second']['high']:,.0f}",
            f"{part['worker_us']['median']:.0f}",
            f"{part['client_us']['median']:.0f}",
        ]
        for words, part in (
            ("raw messages", results["raw"]),
            ("ipc.client.ServiceClient", results["service_client"]),
        )
    ]
    title = (
        f"Small cached Scores through one worker: {results['clients']} client processes, {results['outstanding']} "
        f"outstanding each, wanted {results['target']:,} a second"
    )
    head = ["clients", "Scores/s", "spread", "worker's processor time, us a Score", "clients', us a Score"]
    return _section(title, results, head, rows)


def _soak(results: dict[str, Any]) -> str:
    rows = []
    for name, part in results["processes"].items():
        memory = part["resident_mib"]
        rows.append(
            [
                f"{name}: resident MiB",
                f"{memory['start']:.0f}",
                f"{memory['end']:.0f}",
                f"{memory['most']:.0f}",
                f"{memory['an_hour']:+.1f}",
            ]
        )
        rows.append(
            [
                f"{name}: open files, of them sockets, threads",
                *(
                    ", ".join(f"{part[held][when]:.0f}" for held in ("files", "sockets", "threads"))
                    for when in ("start", "end", "most")
                ),
                "",
            ]
        )
    kinds = {"live": "/live", "known": "10 known documents", "new": "10 new documents"}
    for kind, words in kinds.items():
        ends = results["latency_ms"][kind]
        rows.append([f"{words}: median ms", f"{ends['start']:.1f}", f"{ends['end']:.1f}", "", ""])
    spin = results["spin_ms"]
    rows.append(["the machine's pace: ms for a fixed loop", f"{spin['start']:.1f}", f"{spin['end']:.1f}", "", ""])
    title = (
        f"{results['minutes']:.0f} minutes of mixed traffic: {results['answers']:,} answers held against the reference,"
        f" {len(results['problems'])} wrong, {results['given_up']:,} given up"
    )
    head = ["after five minutes", "at the start", "at the end", "most", "slope an hour"]
    return _section(title, results, head, rows) + "\n" + _not_sent(results)


def _not_sent(results: dict[str, Any]) -> str:
    """Requests without an answer, and why, where there are any."""
    if not results["resets"]:
        return ""
    kinds = sorted({error.split(": ", 1)[1].split("(")[0] for error in results["reset_errors"]})
    return (
        f"{results['resets']} requests had no answer, by what the client said of the first "
        f"{len(results['reset_errors'])}: {', '.join(kinds)}. PoolTimeout: the client's own pool did not send them.\n"
    )


def _section(title: str, results: dict[str, Any], head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    machine = results["machine"]
    origin = f"`{results['command']}`, commit {results['commit'][:7]}, {machine.get('cpu') or machine['processor']}"
    lines = [f"## {title}", "", f"{origin}, {machine['cores']} cores.", "", _row(head), _row(["---"] * len(head))]
    return "\n".join([*lines, *map(_row, rows), ""])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return content


if __name__ == "__main__":
    sys.stdout.write(page())

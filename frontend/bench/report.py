"""The result of a run: numbers for machines, and the block that people know from `vllm bench serve`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

import msgspec

from frontend.bench.client import Outcome

BUSY = 0.85  # of one core: beyond it a client process measures itself
WIDTH = 50


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds from asking to the answer's last byte."""

    mean_ms: float
    median_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


class Result(msgspec.Struct, frozen=True):
    """What was measured. Throughput and latency are of the requests that were answered with 200."""

    completed: int
    failed: int
    duration_s: float
    documents: int
    prompt_tokens: int  # as the server counts them
    request_throughput: float
    document_throughput: float
    token_throughput: float
    latency: Latency | None
    client_cpu_shares: list[float]  # of one core, by client process
    client_is_bottleneck: bool
    errors: dict[str, int]


def summarise(outcomes: Sequence[Outcome], cpu_shares: Sequence[float]) -> Result:
    """All outcomes of a run."""
    good = [outcome for outcome in outcomes if not outcome.error]
    begin = min((outcome.started for outcome in outcomes), default=0.0)
    end = max((outcome.started + outcome.latency for outcome in outcomes), default=0.0)
    duration = max(end - begin, 1e-9)
    documents, tokens = sum(o.documents for o in good), sum(o.prompt_tokens for o in good)
    return Result(
        completed=len(good),
        failed=len(outcomes) - len(good),
        duration_s=duration,
        documents=documents,
        prompt_tokens=tokens,
        request_throughput=len(good) / duration,
        document_throughput=documents / duration,
        token_throughput=tokens / duration,
        latency=_latency([outcome.latency * 1000 for outcome in good]) if good else None,
        client_cpu_shares=list(cpu_shares),
        client_is_bottleneck=max(cpu_shares, default=0.0) > BUSY,
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error).most_common(10)),
    )


def _latency(values: list[float]) -> Latency:
    ordered = sorted(values)

    def percentile(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    mean, median = statistics.fmean(ordered), statistics.median(ordered)
    return Latency(mean, median, percentile(0.9), percentile(0.99), ordered[-1])


def describe(result: Result, max_concurrency: int, request_rate: float) -> str:
    """The block."""
    lines = [
        f"{' Serving Benchmark Result ':=^{WIDTH}}",
        _line("Successful requests:", result.completed),
        _line("Failed requests:", result.failed),
        _line("Maximum request concurrency:", max_concurrency),
        _line("Request rate configured (RPS):", request_rate),
        _line("Benchmark duration (s):", result.duration_s),
        _line("Total input tokens:", result.prompt_tokens),
        _line("Total documents:", result.documents),
        _line("Request throughput (req/s):", result.request_throughput),
        _line("Document throughput (doc/s):", result.document_throughput),
        _line("Total token throughput (tok/s):", result.token_throughput),
    ]
    if result.latency is not None:
        lines += [
            f"{'End-to-end Latency':-^{WIDTH}}",
            _line("Mean E2EL (ms):", result.latency.mean_ms),
            _line("Median E2EL (ms):", result.latency.median_ms),
            _line("P90 E2EL (ms):", result.latency.p90_ms),
            _line("P99 E2EL (ms):", result.latency.p99_ms),
            _line("Max E2EL (ms):", result.latency.max_ms),
        ]
    lines.append("=" * WIDTH)
    lines += [f"{count} x {error}" for error, count in result.errors.items()]
    if result.client_is_bottleneck:
        share = max(result.client_cpu_shares)
        lines.append(f"The client was the bottleneck: a process of it was busy {share:.0%}; raise --client-processes.")
    return "\n".join(lines)


def _line(name: str, value: float) -> str:
    return f"{name:<40} {value if isinstance(value, int) else f'{value:.2f}':<9}".rstrip()

"""The scorer worker's process: `python -P -m scorer_worker`, started by the launcher.

Settings on stdin, status on stdout.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.allocator import keep_freed_memory
from engine.model_spec import LoadedModel, ModelError, load_model
from ipc.child import EXIT_USAGE, Broken, Child, Progress, Pulse, Up, ignore_stop_signals
from ipc.collector import ONLY_WHEN_IDLE, IdleCollector, settle_collector
from ipc.messages import MAX_MESSAGE_BYTES, MAX_TEXTS, Credits, Limits, SelfCheck
from ipc.running import RunningFile
from ipc.service import Description, Endpoint
from ipc.settings import WorkerSettings
from ipc.sockets import remove_run_directory
from scorer_worker.store import ROW_GRAIN

if TYPE_CHECKING:
    import torch

    from engine.encoder import Encoder
    from engine.encoder_thread import EncoderThread
    from scorer_worker.arena import Arena
    from scorer_worker.device import DeviceTraits
    from scorer_worker.hosted_encoder import HostedEncoder
    from scorer_worker.scorer import Scorer

NAME = "maxsimd-worker"
MAX_WARM_UP_PAIRS = 16_384
OUTSTANDING_BYTES = 256 * 2**20  # of embeddings on their way from all API servers together
OUTSTANDING_TOKENS = 2**20  # of a worker that hosts no encoder and gets none

BUSY_POLL_SECONDS = 0.0004  # a client's own work between an answer and its next request, and the way there


def main(child: Child | None = None) -> int:
    """Serve until the lifeline ends.

    Args:
        child: of the process that has stood by to become this one.

    Returns:
        0, or 2 where the settings are wrong (reported as Broken).
    """
    ignore_stop_signals()
    child = child or Child(NAME)
    settings = child.read_settings(WorkerSettings)
    keep_freed_memory()
    logging.basicConfig(level=settings.log_level.upper(), format="worker: %(levelname)s %(message)s", stream=sys.stderr)
    try:
        model = load_model(settings.model) if settings.model is not None else None
    except ModelError as error:
        child.report(Broken(str(error), retry=False))
        return EXIT_USAGE
    child.report(Progress("loading torch"))
    from scorer_worker.device import DeviceError  # torch, after the model's files have been checked: it takes seconds
    from scorer_worker.memory_plan import TooLittleMemory
    from scorer_worker.store import TooLarge

    try:
        return _serve(child, settings, model)
    except (ModelError, DeviceError, TooLittleMemory) as error:
        child.report(Broken(str(error), retry=False))
    except TooLarge as error:
        child.report(Broken(f"--embedding-cache-size {settings.cache_bytes}: {error}", retry=False))
    return EXIT_USAGE


def _serve(child: Child, settings: WorkerSettings, model: LoadedModel | None) -> int:
    """
    Raises:
        ModelError: the model cannot be served.
        DeviceError, TooLittleMemory, TooLarge: what was asked for cannot be had on this machine.
    """
    import torch

    from scorer_worker.batcher import Batcher
    from scorer_worker.device import TRAITS, open_device
    from scorer_worker.memory_plan import used_memory
    from scorer_worker.rehearsal import rehearse
    from scorer_worker.scorer import Scorer
    from scorer_worker.worker import Worker

    torch.set_num_threads(settings.threads)
    torch.set_grad_enabled(False)
    sys.setswitchinterval(0.0002)
    device = open_device(settings.device)
    if device.type == "cuda" and settings.cache_directory is not None:  # set before triton is imported; a user's wins
        os.environ.setdefault("TRITON_CACHE_DIR", str(Path(settings.cache_directory) / "kernels"))
    taken = used_memory(device) if device.type == "cuda" else 0
    encoder, thread, self_check, tokens = None, None, None, OUTSTANDING_TOKENS
    if settings.hosts_encoder and model is not None:
        encoder, self_check = _load_encoder(child, settings, model, device)
        thread, rate = _start_encoder(child, settings, encoder)
        tokens = int(rate * settings.horizon)
    arena = _make_arena(child, settings, model, device, taken)
    scorer = Scorer(arena)
    traits = TRAITS[device.type]
    longest_batch = warm_up(arena, scorer, traits)
    hosted = None
    if encoder is not None and thread is not None and model is not None:
        if device.type == "cuda":
            rehearse(thread, arena, encoder.rules.num_rows, settings.max_batch_tokens, model.max_positions)
        hosted = _host(settings, arena, encoder, thread)
    fingerprint = model.fingerprint if model is not None else _fingerprint_of_dim(arena.rows.shape[1])
    endpoint = Endpoint(
        settings.address,
        _describe(arena, model if hosted is not None else None, fingerprint, self_check, tokens),
        lambda: worker.statistics(),
        time.monotonic,
        BUSY_POLL_SECONDS,
    )
    endpoint.watch(child.lifeline)
    if hosted is not None:
        endpoint.watch(hosted.descriptor)
    batcher = Batcher(settings.max_batch_pairs, traits.batch_work, traits.slice_work, traits.wary_work)
    running = RunningFile(Path(settings.running_path))
    worker = Worker(endpoint, arena, scorer, batcher, running, hosted, settings.keep_entries)
    pulse = Pulse(child, longest_batch)
    settle_collector(ONLY_WHEN_IDLE)
    child.report(Up(_summary(arena, model, settings)))
    worker.run(
        child.is_to_stop,
        on_turn=lambda: pulse.beat(hosted.busy_seconds() if hosted is not None else 0.0),
        on_idle=IdleCollector(time.monotonic).tell_idle,
    )
    endpoint.close()
    if child.is_abandoned:  # the launcher cannot clear away itself
        remove_run_directory(Path(settings.running_path).parent)
    return 0


def _make_arena(
    child: Child, settings: WorkerSettings, model: LoadedModel | None, device: torch.device, taken: int
) -> Arena:
    """The store's memory: what was asked for, or what is left of the device.

    Args:
        taken: bytes of a CUDA device that were in use before anything was loaded.

    Raises:
        TooLittleMemory, TooLarge: there is no such room.
    """
    from scorer_worker.arena import Arena
    from scorer_worker.device import store_dtype
    from scorer_worker.memory_plan import TooLittleMemory, plan_memory

    dim = model.spec.dim if model is not None else settings.dim
    size = settings.cache_bytes
    if device.type == "cuda":
        plan = plan_memory(device, taken, settings.gpu_memory_utilization, size)
        for line in plan.describe():
            child.report(Progress(line))
        size = plan.store
    assert dim is not None and size is not None
    try:
        return Arena(size, dim, store_dtype(settings.embedding_dtype, device), device)
    except RuntimeError as error:  # the allocator's; of many lines, the first says it
        raise TooLittleMemory(f"--embedding-cache-size {size}: {str(error).splitlines()[0]}") from None


def warm_up(arena: Arena, scorer: Scorer, traits: DeviceTraits) -> float:
    """One batch of full size through the real store and kernel, so that the first request does not pay for it.

    Returns:
        The seconds that the largest batch takes.
    """
    import torch

    from scorer_worker.scorer import PairGroup
    from scorer_worker.store import NewEntry

    rows = min(64, arena.directory.max_job_rows // 8)
    texts = [NewEntry(bytes([number]) * 16, rows, 0, keep=False) for number in range(4)]
    entries = arena.directory.admit([], texts)
    assert entries is not None
    for entry in entries:
        arena.write(entry, torch.zeros(rows, arena.rows.shape[1]))
    work = traits.pair_work(rows, rows, arena.rows.shape[1])
    count = max(1, min(MAX_WARM_UP_PAIRS, traits.batch_work // work))
    # as many as a batch has: what a few pairs take is the call, and a multiple of it says nothing of a batch
    pairs = [PairGroup(entries[0], [entries[1 + number % 3] for number in range(count)])]
    scorer.score(pairs)
    started = time.monotonic()
    scorer.score(pairs)
    elapsed = time.monotonic() - started
    arena.directory.unpin(entries)
    return elapsed * max(1.0, traits.batch_work / (count * work))


def _load_encoder(
    child: Child, settings: WorkerSettings, model: LoadedModel, device: torch.device
) -> tuple[Encoder, SelfCheck]:
    """The encoder, and what its self-check found.

    Raises:
        ModelError: its weights are not as its configuration says, or it computes other scores than it should.
    """
    child.report(Progress(f"loading {model.spec.name}"))
    from engine.encoder import Encoder
    from engine.self_check_record import ensure_checked, in_words

    asked = settings.model
    assert asked is not None
    encoder = Encoder.load(model, str(device), asked.dtype, settings.threads, asked.deterministic)
    child.report(Progress("self-check: comparing scores with a plain encoder's"))
    check = ensure_checked(model, encoder, settings.cache_directory)
    child.report(Progress(in_words(check)))
    return encoder, check


def _start_encoder(child: Child, settings: WorkerSettings, encoder: Encoder) -> tuple[EncoderThread, float]:
    """The encoder's thread, warm, and how many tokens it encodes in a second."""
    import torch

    from engine.encoder_thread import EncoderThread

    child.report(Progress(f"warming up with {settings.max_batch_tokens:,} tokens"))
    thread = EncoderThread(encoder)
    seconds = thread.call(lambda: encoder.warm_up(settings.max_batch_tokens))
    if encoder.device.type == "cuda":
        torch.cuda.empty_cache()  # what loading and the self-check took on another stream
    return thread, settings.max_batch_tokens / seconds


def _host(settings: WorkerSettings, arena: Arena, encoder: Encoder, thread: EncoderThread) -> HostedEncoder:
    """The encoder's queue, in front of its thread."""
    from engine.encode_queue import EncodeQueue
    from scorer_worker.hosted_encoder import HostedEncoder

    running = RunningFile(Path(settings.running_path + ".encoder"))
    return HostedEncoder(EncodeQueue(settings.max_batch_tokens), thread, arena, running, encoder.rules)


def _describe(
    arena: Arena, hosted: LoadedModel | None, fingerprint: bytes, self_check: SelfCheck | None, tokens: int
) -> Description:
    """
    Args:
        hosted: the model that this process encodes with, if it does.
        tokens: that all clients together may have outstanding.
    """
    from scorer_worker.device import TRAITS

    return Description(
        dim=arena.rows.shape[1],
        fingerprint=fingerprint,
        limits=Limits(
            arena.directory.max_job_rows,
            MAX_MESSAGE_BYTES,
            MAX_TEXTS,
            ROW_GRAIN,
            TRAITS[arena.rows.device.type].part_pairs,
        ),
        capacity=Credits(OUTSTANDING_BYTES, tokens),
        device=str(arena.rows.device),
        hosts_encoder=hosted is not None,
        spec=hosted.spec if hosted is not None else None,
        tokenizer=hosted.tokenizer_json if hosted is not None else b"",
        self_check=self_check,
    )


def _summary(arena: Arena, model: LoadedModel | None, settings: WorkerSettings) -> dict[str, str]:
    documents = arena.directory.capacity_rows // 192
    keeps = f"about {documents:,} documents of 180 tokens" if settings.keep_entries else "nothing between requests"
    return {
        "model": model.spec.name if model is not None else "",
        "fingerprint": model.fingerprint.hex() if model is not None else "",
        "device": str(arena.rows.device),
        "store": f"{arena.num_bytes / 2**30:.2f} GiB, room for {keeps}",
    }


def _fingerprint_of_dim(dim: int) -> bytes:
    return hashlib.blake2b(f"embeddings only, dim {dim}".encode(), digest_size=16).digest()


if __name__ == "__main__":
    sys.exit(main())

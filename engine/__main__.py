"""The engine's process: `python -P -m engine`, started by the launcher. Settings on stdin, status on stdout."""

from __future__ import annotations

import logging
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from engine.allocator import keep_freed_memory
from engine.model_spec import LoadedModel, ModelError, load_model
from ipc.child import EXIT_USAGE, Broken, Child, Progress, Pulse, Up, ignore_stop_signals
from ipc.collector import settle_collector
from ipc.messages import MAX_MESSAGE_BYTES, MAX_TEXTS, Credits, Limits, SelfCheck
from ipc.running import RunningFile
from ipc.service import Description, Endpoint
from ipc.settings import EngineSettings

if TYPE_CHECKING:
    from engine.encoder import Encoder

NAME = "maxsimd-engine"
OUTSTANDING_BYTES = 64 * 2**20  # of token ids


def main(child: Child | None = None) -> int:
    """Serve until the lifeline ends.

    Args:
        child: of the process that has stood by to become this one.

    Returns:
        0, or 2 where the settings are wrong (reported as Broken).
    """
    ignore_stop_signals()
    child = child or Child(NAME)
    settings = child.read_settings(EngineSettings)
    keep_freed_memory()
    logging.basicConfig(level=settings.log_level.upper(), format="engine: %(levelname)s %(message)s", stream=sys.stderr)
    try:
        model = load_model(settings.model)
        child.report(Progress(f"loading {model.spec.name}"))
        encoder = _load(model, settings)
        self_check = _check(child, model, encoder, settings)
    except ModelError as error:
        child.report(Broken(str(error), retry=False))
        return EXIT_USAGE
    return _serve(child, settings, model, encoder, self_check)


def _load(model: LoadedModel, settings: EngineSettings) -> Encoder:
    import torch  # after the model's files have been checked: it takes seconds

    from engine.encoder import Encoder

    torch.set_grad_enabled(False)
    return Encoder.load(model, "cpu", settings.model.dtype, settings.threads, settings.model.deterministic)


def _check(child: Child, model: LoadedModel, encoder: Encoder, settings: EngineSettings) -> SelfCheck:
    """Before anything is served; the first time it takes about as long as loading."""
    from engine.self_check_record import ensure_checked, in_words

    child.report(Progress("self-check: comparing scores with a plain encoder's"))
    check = ensure_checked(model, encoder, settings.cache_directory)
    child.report(Progress(in_words(check)))
    return check


def _serve(child: Child, settings: EngineSettings, model: LoadedModel, encoder: Encoder, self_check: SelfCheck) -> int:
    from engine.encode_queue import EncodeQueue
    from engine.encoder_thread import EncoderThread
    from engine.service import EngineService

    sys.setswitchinterval(0.0002)
    thread = EncoderThread(encoder)
    seconds = warm_up(thread, model, settings.max_batch_tokens)
    rate = settings.max_batch_tokens / seconds
    description = Description(
        dim=model.spec.dim,
        fingerprint=model.fingerprint,
        limits=Limits(0, MAX_MESSAGE_BYTES, MAX_TEXTS),
        capacity=Credits(OUTSTANDING_BYTES, int(rate * settings.horizon)),
        hosts_encoder=True,
        spec=model.spec,
        tokenizer=model.tokenizer_json,
        self_check=self_check,
    )
    endpoint = Endpoint(settings.address, description, lambda: service.statistics(), time.monotonic)
    endpoint.watch(child.lifeline)
    running = RunningFile(Path(settings.running_path))
    service = EngineService(
        endpoint, EncodeQueue(settings.max_batch_tokens), thread, running, encoder.rules.check, rate, settings.horizon
    )
    pulse = Pulse(child, seconds)
    settle_collector()
    child.report(Up({"model": model.spec.name, "fingerprint": model.fingerprint.hex(), "rate": f"{rate:.0f} tokens/s"}))
    service.run(child.is_to_stop, lambda: pulse.beat(thread.busy_seconds()))
    endpoint.close()
    return 0


def warm_up(thread: object, model: LoadedModel, max_batch_tokens: int) -> float:
    """A batch of full size, twice, so that the first request does not pay for it.

    Returns:
        The seconds of the second one: what the granted credits and the patience with a hanging batch start from.
    """
    from engine.encode_queue import QueuedText
    from engine.encoder_thread import EncoderThread

    assert isinstance(thread, EncoderThread)
    length = max(1, min(model.spec.document.max_length, max_batch_tokens, 256))
    count = max(1, max_batch_tokens // length)
    texts = [QueuedText(bytes(16), "document", memoryview(array("i", [0] * length)), 0) for _ in range(count)]
    for _ in range(2):
        thread.submit(texts)
        batch = None
        while batch is None:
            thread.wait()
            batch = thread.take()
    assert batch is not None
    return batch.seconds * max_batch_tokens / (length * count)


if __name__ == "__main__":
    sys.exit(main())

"""A process that stands by, everything imported, to become the scorer worker or the engine: `-m scorer_worker.spare`.

Until the launcher says what it becomes (a `Promotion` on stdin, before the settings) it opens no device, takes no
memory for a store or a model, and runs nothing. EOF on stdin ends it, as it does every child.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

# What the two import once they have their settings. Triton is not among it: it reads its own when it is imported.
import engine.__main__
import engine.encode_queue
import engine.encoder
import engine.encoder_thread
import engine.self_check_record
import engine.service
import scorer_worker.__main__
import scorer_worker.batcher
import scorer_worker.device
import scorer_worker.hosted_encoder
import scorer_worker.memory_plan
import scorer_worker.rehearsal
import scorer_worker.scorer
import scorer_worker.worker
from ipc.child import Child, Promotion, Up, ignore_stop_signals

NAME = "maxsimd-spare"
MAINS: dict[str, tuple[str, Callable[[Child], int]]] = {
    "scorer_worker": (scorer_worker.__main__.NAME, scorer_worker.__main__.main),
    "engine": (engine.__main__.NAME, engine.__main__.main),
}


def main() -> int:
    """Stand by, then be what the launcher asks for.

    Returns:
        The exit code of that.
    """
    ignore_stop_signals()
    child = Child(NAME)
    child.report(Up())
    promotion = child.read_settings(Promotion)
    child.report(Up())  # the launcher waits for this answer before it counts on this process
    os.environ.update(promotion.environment)
    name, become = MAINS[promotion.module]
    child.rename(name)
    return become(child)


if __name__ == "__main__":
    sys.exit(main())

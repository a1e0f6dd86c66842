"""What a running server's processes hold, looked at from outside; and whether it grows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.processes import API_SERVER, ENGINE, WORKER
from tests.end_to_end.running_server import Server


@dataclass(frozen=True)
class Holdings:
    """One process at one time."""

    resident_mib: float
    own_mib: float  # of that, what is no file's: heap, stacks, the store
    files: int  # open descriptors, sockets among them
    sockets: int
    threads: int


def holdings(pid: int) -> Holdings:
    """
    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process any more.
    """
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    targets = [_target(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return Holdings(
        resident_mib=_mib(status["VmRSS"]),
        own_mib=_mib(status["RssAnon"]),
        files=len(targets),
        sockets=sum(target.startswith("socket:") for target in targets),
        threads=int(status["Threads"]),
    )


def all_holdings(server: Server) -> dict[str, Holdings]:
    """Of every process of a server, by its name for people."""
    pids = {"launcher": server.process.pid}
    for name, module in (("worker", WORKER), ("engine", ENGINE), ("api server", API_SERVER)):
        children = server.children(module)
        numbered = len(children) > 1
        pids |= {f"{name} {place}" if numbered else name: pid for place, pid in enumerate(children)}
    return {name: holdings(pid) for name, pid in pids.items()}


def slope(seconds: Sequence[float], values: Sequence[float]) -> float:
    """Theil and Sen's: the median of the slopes of all pairs, which a few outliers do not move. Per second."""
    pairs = [
        (values[later] - values[earlier]) / (seconds[later] - seconds[earlier])
        for earlier in range(len(values))
        for later in range(earlier + 1, len(values))
    ]
    return statistics.median(pairs)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # closed meanwhile
        return ""


def _mib(line: str) -> float:
    return int(line.split()[0]) / 1024

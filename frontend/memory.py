"""How much memory this process may use: the machine's, cut to the limit of its control group."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUPS_OF_SELF = Path("/proc/self/cgroup")


def available_memory() -> int:
    """Bytes of memory that this process may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(physical, cgroup_memory_limit(CGROUP_ROOT, CGROUPS_OF_SELF)))


def cgroup_memory_limit(root: Path, of_self: Path) -> float:
    """The smallest limit of this process's control groups and those above them, in bytes; inf where there is none."""
    limits = [math.inf]
    limits += [int(limit) for limit in _read_up(root, of_self, "memory.max") if limit != "max"]
    # Version 1 writes "no limit" as a number near 2**63, which the machine's own memory cuts anyway.
    limits += [int(limit) for limit in _read_up(root / "memory", of_self, "memory.limit_in_bytes")]
    return min(limits)


def _read_up(root: Path, of_self: Path, name: str) -> Iterator[str]:
    """The content of each file `name` in this process's control groups and in those above them, up to `root`."""
    for group in _groups(root, of_self):
        try:
            yield (group / name).read_text().strip()
        except OSError:  # the root has no limits, and each version has its own files
            continue


def _groups(root: Path, of_self: Path) -> set[Path]:
    """The directories under `root` of this process's control groups and of those above them."""
    groups = {root}
    try:
        lines = of_self.read_text().splitlines()
    except OSError:  # not Linux
        return groups
    for line in lines:  # "0::/user.slice/x" (version 2) or "9:memory:/docker/x" (version 1)
        group = root / line.split(":", 2)[2].lstrip("/")
        groups.update(parent for parent in (group, *group.parents) if parent.is_relative_to(root))
    return groups

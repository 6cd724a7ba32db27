"""How many cores this process may use, and how its threads share them."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from clip_embed._engine.fork import Locks, torch_is_inherited

_CGROUP = Path("/sys/fs/cgroup")
_TORCH = Locks()


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, or less where its container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(_CGROUP)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """Return the cores that the container may keep busy, None where there is no limit to be read."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # version 2, version 1
        try:
            quota, period = (word for file in files for word in (root / file).read_text().split())
            return int(quota) / int(period) if quota not in ("max", "-1") else None
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return None


def torch_threads() -> int:
    """Return how many threads torch may use: what the user set, not more than there are cores."""
    import torch

    return min(torch.get_num_threads(), usable_cores())


def limit_torch(threads: int) -> None:
    """Hold the torch operations of the calling thread to at most so many threads; only lowers.

    `torch.set_num_threads` counts for the calling thread and for every thread that starts later,
    but not for those that run. A short-lived thread takes the second part back. Where nobody has
    imported torch there is nothing to limit. A child that was forked after that import has lost torch's
    pool and would wait for it: it gets one thread.
    """
    if "torch" not in sys.modules:
        return
    import torch

    threads = 1 if torch_is_inherited() else threads

    with _TORCH[0]:
        before = torch.get_num_threads()
        if before > threads:
            torch.set_num_threads(threads)
            restore = threading.Thread(target=torch.set_num_threads, args=(before,))
            restore.start()
            restore.join()

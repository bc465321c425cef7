"""How many threads there are to use, and who may start them. Called by commands, once: what it sets is process-wide."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU per period, or "max"; cgroup v2


def cores() -> int:
    """That this process may use: taskset, or a container's share of CPU time, may allow fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_CPU.read_text(encoding="ascii").split()
        return min(allowed, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # not in a group, or its quota is "max"
        return allowed


def limit_library_threads() -> None:
    """One thread each for OpenCV and OpenBLAS, which would compete with the conductor's own.

    Those of OpenBLAS wait busily, and took a third of the speed. Only libraries that are loaded are reached: call it
    once the models are built.
    """
    import cv2
    from threadpoolctl import ThreadpoolController

    cv2.setNumThreads(1)
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)

"""Pools of processes that end with the process that began them, also when that one was killed.

Those of ``concurrent.futures`` would wait for its next task for ever, with whatever they hold in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any


def process_pool(
    jobs: int, begin: Callable[..., object] | None = None, given: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """A pool of spawned processes, each of which calls ``begin(*given)`` first."""
    return ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(begin, given))


def _start(begin: Callable[..., object] | None, given: tuple[Any, ...]) -> None:
    Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    if begin is not None:
        begin(*given)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

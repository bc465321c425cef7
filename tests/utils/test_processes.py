"""A pool does its work, and no process of it outlives the one that began it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from utils.processes import process_pool

BEGIN = """
import sys, time
from utils.processes import process_pool
if __name__ == "__main__":
    with process_pool(2, print, ("worker begins",)) as pool:
        list(pool.map(abs, range(8)))
        sys.stdout.flush()
        print("idle", flush=True)
        time.sleep(600)
"""


def test_a_pool_begins_each_process_and_answers_in_order() -> None:
    with process_pool(1) as pool:
        assert list(pool.map(abs, [-1, 2, -3])) == [1, 2, 3]


@pytest.mark.timeout(120)
def test_processes_of_a_pool_end_when_their_parent_is_killed() -> None:
    code = [sys.executable, "-c", BEGIN]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as parent:  # the workers hold its output open too
        assert parent.stdout is not None
        while "idle" not in parent.stdout.readline():
            pass
        parent.kill()
        began = time.monotonic()
        parent.communicate(timeout=60)
    assert time.monotonic() - began < 60

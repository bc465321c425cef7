"""Work that does what the job's bytes say, instead of judging: for faults, and to measure the queue alone.

As a program it is a worker process: python tests/worker/work.py URL PREFIX LOG
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from utils.errors import FetchFailed, NotAnImage, SetupError
from utils.settings import load_settings
from worker.__main__ import serve
from worker.jobs import Job
from worker.loop import Answer
from worker.service import build_service


class Obedient:
    """``image`` is a command: ok | sleep SECONDS | input | transient | bug | setup | kill."""

    def __init__(self, log: Path | None = None) -> None:
        self.log = log
        self.begun: list[str] = []
        self.running: set[asyncio.Task[None]] = set()

    def begin(self, jobs: Sequence[Job], answer: Answer[Job]) -> None:
        for job in jobs:
            self.begun.append(job.job_id)
            if self.log:
                with self.log.open("a") as file:
                    file.write(f"{job.job_id} {os.getpid()}\n")
            command, _, argument = (job.raw or b"ok").decode().partition(" ")
            if command == "sleep":
                task = asyncio.create_task(self._sleep(job, answer, float(argument)))
                self.running.add(task)
                task.add_done_callback(self.running.discard)
            else:
                answer(job, self._outcome(job, command))

    def _outcome(self, job: Job, command: str) -> str | Exception:
        match command:
            case "input":
                return NotAnImage("text")
            case "transient":
                return FetchFailed("the server answered 503")
            case "bug":
                return ZeroDivisionError("division by zero")
            case "setup":
                return SetupErrorOfOurs("broken")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return f'{{"job_id": "{job.job_id}"}}'

    async def _sleep(self, job: Job, answer: Answer[Job], seconds: float) -> None:
        await asyncio.sleep(seconds)
        answer(job, self._outcome(job, "ok"))

    def drop_waiting(self) -> list[Job]:
        return []

    def stalled(self) -> int:
        return 0

    def busy_seconds(self) -> float:
        return 0.0


class SetupErrorOfOurs(SetupError):
    code = "weights_corrupt"


def obedient(log: Path | None = None):
    @asynccontextmanager
    async def make(settings, metrics, *_):
        yield Obedient(log)

    return make


if __name__ == "__main__":
    url, prefix, log = sys.argv[1:]
    service = build_service(load_settings(queue_prefix=prefix), url, obedient(Path(log)))
    failure = asyncio.run(serve(service, lambda: os.write(1, b"ready\n")))
    os._exit(4 if failure else 0)

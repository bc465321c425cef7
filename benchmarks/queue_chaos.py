"""Does every job get exactly one answer while workers die, freeze, and the server is killed?

    python benchmarks/queue_chaos.py --jobs 10000 --workers 3
    python benchmarks/queue_chaos.py --real --jobs 300

No-op jobs of 0 to 60 ms on a fresh embedded server. Its AOF is written before each reply and left to the system to
sync: killing the process then loses nothing, and a slow disk does not set the pace.
Every second or so a worker gets SIGKILL or is frozen (SIGSTOP) for longer than its lease; the server is killed and
restarted twice; the consumer group is destroyed once. Prints what was lost, answered twice, and every dead letter.
With --real every job is a photograph (crops of those that scikit-learn carries) for the installed models, and all of it
is slower: a worker needs seconds to start.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from multiprocessing.context import ForkServerProcess as Process
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import redis

from utils.settings import load_settings
from worker.__main__ import serve
from worker.embedded import EmbeddedServer
from worker.service import build_service, judging

PREFIX = "image_verify"
JOBS = f"{PREFIX}:jobs"


# A worker that is killed every few seconds must start fast, also on a busy machine: it is forked from a process that
# has imported everything, and that has neither threads nor connections.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["__main__", "worker.service"])


def send(worker: Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # killed meanwhile
        os.kill(worker.pid or 0, number)


class ShortNaps:
    """Work that takes 0 to 60 ms and needs no image."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[None]] = set()

    def begin(self, jobs, answer):
        for job in jobs:
            task = asyncio.create_task(self._nap(job, answer))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def _nap(self, job, answer):
        await asyncio.sleep(random.uniform(0, 0.06))
        answer(job, f'{{"worker": {os.getpid()}}}')

    def drop_waiting(self):
        return []

    def stalled(self):
        return 0

    def busy_seconds(self):
        return 0.0


def work(url: str, lease: float, real: bool) -> None:
    @asynccontextmanager
    async def naps(*_):
        yield ShortNaps()

    options = {"pipeline_max_jobs": 16, "queue_attempts": 8, "queue_lease_seconds": lease, "log_level": "ERROR"}
    settings = load_settings(**options)
    asyncio.run(serve(build_service(settings, url, judging if real else naps), lambda: None))


def photographs(count: int) -> list[bytes]:
    """Different JPEG files, all real."""
    import sklearn.datasets  # here, not in every worker
    from PIL import Image

    sources = [Image.open(path) for path in sorted(Path(sklearn.datasets.__file__).parent.glob("images/*.jpg"))]
    files = []
    for number in range(count):
        source = sources[number % len(sources)]
        left, top = random.randrange(source.width // 2), random.randrange(source.height // 2)
        buffer = BytesIO()
        source.crop((left, top, left + source.width // 2, top + source.height // 2)).save(buffer, "JPEG", quality=92)
        files.append(buffer.getvalue())
    return files


class Chaos:
    def __init__(self, server: EmbeddedServer, jobs: int, workers: int, lease: float, real: bool) -> None:
        self.server, self.jobs, self.lease, self.real = server, jobs, lease, real
        self.images = photographs(jobs) if real else [b"x"] * jobs
        self.workers = [self._start() for _ in range(workers)]
        self.last_added = 0.0
        self.counts: collections.Counter[str] = collections.Counter()
        # An undisturbed client would see the server's deaths, too; one that asks again does not.
        self.db = redis.Redis.from_url(server.url, retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 100))

    def _start(self) -> Process:
        worker = FORKS.Process(target=work, args=(self.server.url, self.lease, self.real))
        worker.start()
        return worker

    def enqueue(self) -> None:
        """At a rate that keeps the workers busy for the whole run; each job is added once, whatever is lost."""
        add = self.db.register_script(
            "if redis.call('SET', KEYS[2], 1, 'NX') then "
            "redis.call('XADD', KEYS[1], '*', 'image', ARGV[2], 'job_id', ARGV[1]) end"
        )
        for number in range(self.jobs):
            if time.monotonic() > self.last_added:
                self.jobs = number  # a slow machine: what was added is what counts
                return
            add(keys=[JOBS, f"{PREFIX}:seen:{number}"], args=[f"job-{number}", self.images[number]])
            time.sleep(0.002)

    def kill(self) -> None:
        at = random.randrange(len(self.workers))
        self.workers[at].kill()
        self.workers[at].join()
        self.workers[at] = self._start()

    def freeze(self) -> None:
        worker = random.choice(self.workers)
        send(worker, signal.SIGSTOP)
        threading.Timer(self.lease * 2, send, (worker, signal.SIGCONT)).start()

    def restart_server(self) -> None:
        self.server.kill()
        time.sleep(0.3)
        self.server.start()

    def destroy_group(self) -> None:
        self.db.xgroup_destroy(JOBS, "workers")

    def answered(self) -> int:
        return int(self.db.xlen(f"{PREFIX}:results"))

    def run(self, seconds: float) -> None:
        self.last_added = time.monotonic() + 0.8 * seconds
        producer = threading.Thread(target=self.enqueue, daemon=True)
        producer.start()
        once = [self.restart_server, self.destroy_group, self.restart_server]
        milestones = [self.jobs * part // 4 for part in (1, 2, 3)]
        deadline = time.monotonic() + seconds
        while self.answered() < self.jobs and time.monotonic() < deadline:
            time.sleep(random.uniform(0.3, 1.0) * (self.lease if not self.real else 2 * self.lease))
            if once and self.answered() >= milestones[0]:
                milestones.pop(0)
                act = once.pop(0)
            else:
                act = random.choice((self.kill, self.freeze, self.freeze))
            act()
            self.counts[act.__name__] += 1
        producer.join(30)
        time.sleep(self.lease * 4)  # would a late worker add a second answer?

    def stop(self) -> None:
        for worker in self.workers:
            send(worker, signal.SIGCONT)
            worker.terminate()
        for worker in self.workers:
            worker.join(60)

    def report(self) -> int:
        answers: collections.Counter[bytes] = collections.Counter()
        statuses: collections.Counter[str] = collections.Counter()
        for _, fields in self.db.xrange(f"{PREFIX}:results"):
            answers[fields[b"job_id"]] += 1
            statuses[fields[b"status"].decode()] += 1
        lost = [number for number in range(self.jobs) if not answers[b"job-%d" % number]]
        twice = [job for job, count in answers.items() if count > 1]
        letters = self.db.xrange(f"{PREFIX}:dead")
        print(f"{self.jobs} jobs, {len(self.workers)} workers, lease {self.lease} s: {dict(self.counts)}")
        print(f"answers {dict(statuses)}")
        print(f"lost {len(lost)} {lost[:5]}, answered twice {len(twice)} {twice[:5]}, dead letters {len(letters)}")
        for reason, count in collections.Counter(fields[b"dead.reason"] for _, fields in letters).items():
            print(f"  {count} x {reason.decode()}")
        print(f"left: {self.db.xlen(JOBS)} entries, {self.db.xpending(JOBS, 'workers')['pending']} pending")
        return len(lost) + len(twice)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--real", action="store_true", help="photographs and the installed models")
    parser.add_argument("--lease", type=float, help="seconds; 1, or 6 with --real")
    parser.add_argument("--seconds", type=float, default=600, help="give up after")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.lease = args.lease or (6.0 if args.real else 1.0)
    random.seed(args.seed)
    with (
        tempfile.TemporaryDirectory(prefix="imgv") as folder,
        EmbeddedServer(Path(folder), "--appendfsync", "no") as server,
    ):
        chaos = Chaos(server, args.jobs, args.workers, args.lease, args.real)
        started = time.monotonic()
        try:
            chaos.run(args.seconds)
        finally:
            chaos.stop()
        print(f"{time.monotonic() - started:.0f} s")
        return 1 if chaos.report() else 0


if __name__ == "__main__":
    sys.exit(main())

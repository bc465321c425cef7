"""How fast is the queue itself? No-op jobs through our worker, a bare redis-py loop, taskiq-redis and arq, in one run.

    python benchmarks/queue_throughput.py --jobs 200000 --runs 3 --others /path/to/venv/bin/python

``--others`` is an interpreter with taskiq-redis and arq installed; they pin other releases of redis-py, hence apart.
The server is a fresh embedded one without persistence for every system, so that disks do not decide. The bare loop is
what one writes first: XREADGROUP of 64, one pipeline of XADD per result and one XACK; no leases, retries or timeouts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

STREAM, GROUP = "image_verify:jobs", "workers"
READ = 64


class NoWork:
    """Answers at once, with a result as small as the bare loop's."""

    def begin(self, jobs, answer):
        for job in jobs:
            answer(job, b"{}")

    def drop_waiting(self):
        return []

    def stalled(self):
        return 0

    def busy_seconds(self):
        return 0.0


# ------------------------------------------------------------------------------------------------------ worker programs


def work_ours(url: str, jobs: int) -> None:
    from utils.settings import Settings
    from worker.service import build_service

    @asynccontextmanager
    async def no_work(*_):
        yield NoWork()

    async def main():
        service = build_service(Settings.of(pipeline_max_jobs=512, queue_results_kept=10_000_000), url, no_work)
        task = asyncio.create_task(service.run(lambda: print("ready", flush=True)))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)  # until told to stop
        service.stop()
        await task

    import uvloop

    uvloop.run(main())


def work_bare(url: str, jobs: int) -> None:
    import uvloop
    from redis.asyncio import Redis

    async def main():
        client = Redis.from_url(url)
        await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        print("ready", flush=True)
        done = 0
        while done < jobs:
            replies = await client.xreadgroup(GROUP, "bare", {STREAM: ">"}, count=READ, block=2000)
            for _, entries in replies.items() if isinstance(replies, dict) else replies or ():
                entries = entries[0] if isinstance(entries[0], list) else entries
                async with client.pipeline(transaction=False) as pipe:
                    for entry_id, _ in entries:
                        pipe.xadd("image_verify:results", {"job_id": entry_id, "status": "ok", "verdict": b"{}"})
                    pipe.xack(STREAM, GROUP, *(entry_id for entry_id, _ in entries))
                    await pipe.execute()
                done += len(entries)
        await client.aclose()

    uvloop.run(main())


def work_taskiq(url: str, jobs: int) -> None:
    import uvloop
    from taskiq import InMemoryBroker  # noqa: F401 - fails early when missing
    from taskiq.receiver import Receiver
    from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

    async def main():
        broker = RedisStreamBroker(url).with_result_backend(RedisAsyncResultBackend(url))
        done = 0

        @broker.task(task_name="noop")
        async def noop() -> int:
            nonlocal done
            done += 1
            return done

        broker.is_worker_process = True
        await broker.startup()
        print("ready", flush=True)
        receiver = Receiver(broker, max_async_tasks=64, run_startup=False)
        listening = asyncio.create_task(receiver.listen(asyncio.Event()))
        if sys.stdin.readline() == "enqueue\n":
            gate = asyncio.Semaphore(100)

            async def kick():
                async with gate:
                    await noop.kiq()

            await asyncio.gather(*(kick() for _ in range(jobs)))
        while done < jobs and not listening.done():
            await asyncio.sleep(0.005)
        print("done", flush=True)
        os._exit(0)  # its shutdown may wait for ever

    uvloop.run(main())


def work_arq(url: str, jobs: int) -> None:
    import uvloop
    from arq import create_pool
    from arq.connections import RedisSettings
    from arq.worker import Worker, func

    async def main():
        done = 0

        async def noop(_) -> int:
            nonlocal done
            done += 1
            return done

        settings = RedisSettings(unix_socket_path=url.removeprefix("unix://"))
        pool = await create_pool(settings)
        print("ready", flush=True)
        sys.stdin.readline()
        for start in range(0, jobs, 100):
            await asyncio.gather(*(pool.enqueue_job("noop") for _ in range(min(100, jobs - start))))
        print("queued", flush=True)
        worker = Worker([func(noop, name="noop")], redis_pool=pool, max_jobs=64, poll_delay=0.001, handle_signals=False)
        task = asyncio.create_task(worker.async_run())
        while done < jobs and not task.done():
            await asyncio.sleep(0.005)
        print("done", flush=True)
        os._exit(0)

    uvloop.run(main())


# ------------------------------------------------------------------------------------------------------ the measurement


def enqueue(url: str, jobs: int) -> float:
    import redis

    with redis.Redis.from_url(url) as client:
        started = time.perf_counter()
        for start in range(0, jobs, 1000):
            with client.pipeline(transaction=False) as pipe:
                for number in range(start, min(start + 1000, jobs)):
                    pipe.xadd(STREAM, {"image": b"x", "n": number})
                pipe.execute()
        return time.perf_counter() - started


def drain(system: str, interpreter: str, url: str, jobs: int) -> tuple[float, float]:
    """Jobs per second from the first to the last result, and microseconds of the worker's CPU per job."""
    import redis

    with redis.Redis.from_url(url) as client:
        if system in ("ours", "bare"):
            client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
            client.xgroup_destroy(STREAM, GROUP)
            enqueue(url, jobs)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        worker = subprocess.Popen(
            [interpreter, __file__, "--work", system, "--url", url, "--jobs", str(jobs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert worker.stdout.readline() == "ready\n", f"{system} does not start"
        started = time.perf_counter()
        if system in ("ours", "bare"):
            while client.xlen("image_verify:results") < jobs:
                time.sleep(0.01)
        else:
            worker.stdin.write("enqueue\n")
            worker.stdin.flush()
            if system == "arq":
                assert worker.stdout.readline() == "queued\n"
                started = time.perf_counter()
            worker.stdout.readline()
        seconds = time.perf_counter() - started
        worker.communicate("\n", timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if system in ("ours", "bare"):
            left = client.xpending(STREAM, GROUP)["pending"]
            assert client.xlen("image_verify:results") == jobs and not left, f"{system}: {left} jobs left"
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return jobs / seconds, cpu / jobs * 1e6


def idle_latency(url: str, count: int) -> list[float]:
    """Milliseconds from XADD to the result seen by a blocked XREAD, one job at a time, the queue otherwise idle."""
    import redis

    worker = subprocess.Popen(
        [sys.executable, __file__, "--work", "ours", "--url", url, "--jobs", "0"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert worker.stdout.readline() == "ready\n"
    seen = []
    with redis.Redis.from_url(url, protocol=2) as client, redis.Redis.from_url(url) as producer:
        for _ in range(count):
            time.sleep(0.01)
            started = time.perf_counter()
            producer.xadd(STREAM, {"image": b"x"})
            cursor = seen[-1][1] if seen else "0"
            ((_, rows),) = client.xread({"image_verify:results": cursor}, block=2000)
            seen.append(((time.perf_counter() - started) * 1000, rows[-1][0]))
    worker.communicate("\n", timeout=60)
    return [milliseconds for milliseconds, _ in seen]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--other-jobs", type=int, default=5_000, help="for taskiq and arq, which are slower")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--others", help="python with taskiq-redis and arq")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        globals()[f"work_{args.work}"](args.url, args.jobs)
        return
    from worker.embedded import EmbeddedServer, find_server

    systems = ["ours", "bare"] + (["taskiq", "arq"] if args.others else [])
    rates: dict[str, list[tuple[float, float]]] = {system: [] for system in systems}
    for _ in range(args.runs):
        for system in random.sample(systems, len(systems)):
            with (
                tempfile.TemporaryDirectory(prefix="imgv") as folder,
                EmbeddedServer(Path(folder), "--appendonly", "no") as server,
            ):
                jobs = args.jobs if system in ("ours", "bare") else args.other_jobs
                interpreter = sys.executable if system in ("ours", "bare") else args.others
                rates[system].append(drain(system, interpreter, server.url, jobs))
    with (
        tempfile.TemporaryDirectory(prefix="imgv") as folder,
        EmbeddedServer(Path(folder), "--appendonly", "no") as server,
    ):
        latency = sorted(idle_latency(server.url, 300))
    bare = statistics.median(rate for rate, _ in rates["bare"])
    print(
        f"server {Path(find_server()).name}, {os.cpu_count()} cores, {args.jobs} jobs, {args.runs} runs in random order"
    )
    for system in systems:
        each = [round(rate) for rate, _ in rates[system]]
        rate = statistics.median(each)
        cpu = statistics.median(cpu for _, cpu in rates[system])
        print(
            f"{system:8} {rate:>9.0f} jobs/s  {rate / bare:6.3f} x bare  {cpu:6.1f} us CPU per job  {json.dumps(each)}"
        )
    print(f"idle latency XADD to result seen: p50 {latency[150]:.2f} ms, p99 {latency[296]:.2f} ms")


if __name__ == "__main__":
    main()

"""Load on the HTTP server: clients that never pause, what they get, and what it costs: python benchmarks/api_load.py

Starts `python -m api` as it ships, with the embedded profile. `--queue` puts an embedded Valkey and two workers behind
it and kills one of them (SIGKILL) in the middle. `--above` sends more than the limits allow: every refusal must be 429
or 503 with Retry-After.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from worker.embedded import EmbeddedServer  # noqa: E402


def images() -> list[bytes]:
    """Two photographs at two sizes and qualities: what a page receives on an ordinary day."""
    made = []
    for name in ("china.jpg", "flower.jpg"):
        for width, quality in ((640, 92), (1600, 85)):
            picture = Image.fromarray(load_sample_image(name))
            buffer = io.BytesIO()
            picture.resize((width, width * 2 // 3)).save(buffer, "JPEG", quality=quality)
            made.append(buffer.getvalue())
    return made


def start(module: str, stack: ExitStack, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """A process of the product, when it says that it is ready, and the line that says so."""
    process = subprocess.Popen(
        [sys.executable, "-m", module], cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )
    stack.callback(stop, process)
    assert process.stderr
    for line in process.stderr:
        if "ready" in line:
            asyncio.get_running_loop().run_in_executor(None, process.stderr.read)  # an unread pipe would fill up
            return process, line
    raise SystemExit(f"{module} did not start")


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def resident_mb(pid: int) -> float:
    """Of a process and its children: decoding happens in those."""
    pages = 0
    for each in (pid, *children(pid)):
        try:
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def children(pid: int) -> list[int]:
    try:
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []


async def load(url: str, clients: int, seconds: float, tell: Counter[str]) -> list[float]:
    """Latencies of the answered requests, in seconds."""
    pictures, latencies, until = images(), [], time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def client_of(number: int, http: httpx.AsyncClient) -> None:
        turn = number
        while time.monotonic() < until:
            turn += 1
            files = {"file": (f"{number}.jpg", pictures[turn % len(pictures)])}
            began = time.monotonic()
            try:
                answer = await http.post("/v1/verify", files=files, params={"wait_seconds": 60})
            except httpx.HTTPError as error:
                tell[type(error).__name__] += 1
                continue
            tell[str(answer.status_code)] += 1
            if answer.status_code == 200:
                assert answer.json()["tier"]
                latencies.append(time.monotonic() - began)
            elif "retry-after" in answer.headers:
                tell[f"{answer.status_code} with Retry-After"] += 1
                await asyncio.sleep(0.1)  # sooner than it was told: this is a load test

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        await asyncio.gather(*(client_of(number, http) for number in range(clients)))
    return latencies


async def measure(args: argparse.Namespace) -> None:
    with ExitStack() as stack:
        environment = {"IMGV_API_PORT": "0", "IMGV_LOG_LEVEL": "ERROR", "IMGV_API_RATE_PER_MINUTE": "1000000"}
        if args.above:
            environment |= {"IMGV_PIPELINE_MAX_JOBS": "8", "IMGV_API_RATE_PER_MINUTE": "10"}
        workers: list[subprocess.Popen[str]] = []
        if args.queue:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imgv")))
            environment["REDIS_URL"] = stack.enter_context(EmbeddedServer(folder)).url
            workers = [start("worker", stack, **environment)[0] for _ in range(2)]
        server, line = start("api", stack, **environment)
        url = re.search(r"http://[^/\s]+", line).group()  # type: ignore[union-attr]  # its ready line has one
        memory, tell = [resident_mb(server.pid)], Counter[str]()

        async def watch() -> None:
            while True:
                await asyncio.sleep(1)
                memory.append(resident_mb(server.pid))

        async def kill_one() -> None:
            await asyncio.sleep(args.seconds / 2)
            workers[0].kill()
            print("killed a worker")

        extra = [asyncio.create_task(watch()), *([asyncio.create_task(kill_one())] if workers else [])]
        latencies = await load(url, args.clients, args.seconds, tell)
        for task in extra:
            task.cancel()
        report(args, tell, latencies, memory)


def report(args: argparse.Namespace, tell: Counter[str], latencies: list[float], memory: list[float]) -> None:
    print(f"{args.clients} clients, {args.seconds:.0f} s: {dict(sorted(tell.items()))}")
    if latencies:
        p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
        print(f"{len(latencies) / args.seconds:.1f} verdicts/s; latency p50 {p50:.2f} p95 {p95:.2f} p99 {p99:.2f} s")
    half = len(memory) // 2
    print(
        f"server and decoders: {memory[0]:.0f} MiB at the start, at most {max(memory[:half]):.0f} in the first half "
        f"and {max(memory[half:]):.0f} in the second"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue", action="store_true", help="workers behind Valkey; one is killed")
    parser.add_argument("--above", action="store_true", help="above the limits")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()

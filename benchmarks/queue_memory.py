"""Does a worker's memory stay flat? Resident memory of one worker over many real images and no-op models.

    python benchmarks/queue_memory.py --jobs 20000

Every job carries a fresh PNG that is decoded in the child process, batched, judged by a conductor without detectors,
and answered; a fraction is broken or retried. Prints the slope of a least-squares line over the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import redis.asyncio
from PIL import Image

from inference.detector import Verifier
from inference.ensemble import Ensemble
from tests.fakes import FakeDetector, fusion_model
from utils.contracts import PUBLIC_FEATURES
from utils.settings import load_settings
from worker.embedded import EmbeddedServer
from worker.judge import Judge
from worker.metrics import resident_bytes
from worker.service import build_service

STREAM, RESULTS = "image_verify:jobs", "image_verify:results"


def job(number: int) -> bytes:
    if number % 10 == 9:
        return b"not an image at all"
    side = random.randint(16, 256)
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


@asynccontextmanager
async def judging(settings, metrics, *_):
    detector = FakeDetector("dino")
    meanings = dict.fromkeys((*PUBLIC_FEATURES, *detector.features), "")
    verifier = Verifier(Ensemble([detector], [], {}), fusion_model(*detector.features), meanings)
    async with Judge(
        settings.queue, settings.pipeline, settings.decode, settings.fetch, {"embedded": verifier}, metrics
    ) as judge:
        yield judge


async def measure(url: str, jobs: int, step: int) -> list[tuple[int, int]]:
    """Jobs done and resident bytes, every ``step`` jobs."""
    settings = load_settings(queue_results_kept=1000, queue_answer_seconds=60)
    service = build_service(settings, url, judging)
    ready = asyncio.Event()
    running = asyncio.create_task(service.run(ready.set))
    await ready.wait()
    seen = []
    async with redis.asyncio.Redis.from_url(url) as db:
        for start in range(0, jobs, step):
            for number in range(start, start + step):
                await db.xadd(STREAM, {"image": job(number)})
                while number % 100 == 0 and await db.xlen(STREAM) > 200:
                    await asyncio.sleep(0.01)
            while await db.xlen(STREAM):
                await asyncio.sleep(0.01)
            seen.append((start + step, resident_bytes()))
            print(f"{start + step:>7} jobs  {seen[-1][1] / 2**20:7.1f} MiB", flush=True)
    service.stop()
    await running
    return seen


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="imgv") as folder, EmbeddedServer(Path(folder)) as server:
        seen = asyncio.run(measure(server.url, args.jobs, max(args.jobs // 20, 1)))
    done, resident = np.array(seen[len(seen) // 2 :]).T
    slope = np.polyfit(done, resident, 1)[0]
    print(f"second half: {slope:.1f} bytes per job, {slope * 1e6 / 2**20:.1f} MiB per million jobs")


if __name__ == "__main__":
    main()

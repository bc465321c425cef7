"""What does the queue cost with the real models? The same images through the worker and through a plain batched loop.

    python benchmarks/queue_overhead.py folder/ --images 100

The plain loop decodes in the same kind of child process, so that only the queue differs; it cannot overlap decoding
with judging, the worker can. The models are loaded before either clock starts, and both run twice, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import redis.asyncio

from inference.detector import build_verifier
from ingress.sources import Ingress, expand
from utils.settings import load_settings
from utils.threads import limit_library_threads
from utils.verdict_json import dump, verdict_dict
from worker.embedded import EmbeddedServer
from worker.judge import Judge
from worker.service import build_service


def plain(settings, verifier, images: Sequence[bytes]) -> float:
    started = time.perf_counter()
    with Ingress(settings.decode) as ingress:
        for at in range(0, len(images), settings.pipeline.batch):
            batch = images[at : at + settings.pipeline.batch]
            for judgement in verifier.verify([ingress.decode(raw, "image") for raw in batch]):
                dump(verdict_dict(judgement.verdict))
    return len(images) / (time.perf_counter() - started)


async def queued(settings, verifier, images: Sequence[bytes], url: str) -> float:
    @asynccontextmanager
    async def judging(settings, metrics, *_):
        async with Judge(
            settings.queue,
            settings.pipeline,
            settings.decode,
            settings.fetch,
            {settings.models.profile: verifier},
            metrics,
        ) as judge:
            yield judge

    async with redis.asyncio.Redis.from_url(url) as db:
        await db.flushall()  # the server is ours alone
        for raw in images:
            await db.xadd("image_verify:jobs", {"image": raw})
        service = build_service(settings, url, judging)
        started = time.perf_counter()
        running = asyncio.create_task(service.run())
        while await db.xlen("image_verify:results") < len(images):
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - started
        service.stop()
        await running
    return len(images) / seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--images", type=int, default=100)
    args = parser.parse_args(argv)
    paths = list(itertools.islice(expand(args.inputs), args.images))
    images = [Path(path).read_bytes() for path in paths]
    settings = load_settings(decode_in_child=True)
    verifier = build_verifier(settings.models)
    limit_library_threads()
    plain(settings, verifier, images[:8])  # caches, lazily built graphs
    with tempfile.TemporaryDirectory(prefix="imgv") as folder, EmbeddedServer(Path(folder)) as server:
        for _ in range(2):
            loop = plain(settings, verifier, images)
            worker = asyncio.run(queued(settings, verifier, images, server.url))
            print(f"{len(images)} images: plain loop {loop:.2f}/s, worker {worker:.2f}/s, ratio {worker / loop:.3f}")


if __name__ == "__main__":
    main()

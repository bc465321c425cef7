"""What the worker counts, and the three pages that tell it: /metrics, /healthz, /readyz. Decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import socket
import sys
import time
from collections import Counter as Counted
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from utils.errors import BadSettings
from worker.http import PunctualProtocol
from worker.stream import Depth, Ending, Entry

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_MOST_CONNECTIONS = 64  # to the pages; further ones are answered 503

Page = Callable[[], Awaitable[tuple[int, str]]]


class Metrics:
    """One worker's numbers, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = at = CollectorRegistry()
        self.jobs = Counter("imgv_jobs", "jobs ended, by outcome", ["outcome"], registry=at)
        self.retried = Counter("imgv_retries", "jobs put off for a later attempt", registry=at)
        self.redelivered = Counter("imgv_redeliveries", "jobs taken over from another worker", registry=at)
        self.fenced = Counter("imgv_fenced_finishes", "answers refused because the lease had run out", registry=at)
        self.dead = Counter("imgv_dead_letters", "jobs given up", ["reason"], registry=at)
        self.disconnected = Counter("imgv_server_errors", "errors of the queue's server", ["error"], registry=at)
        self.callbacks = Counter("imgv_callbacks", "callbacks sent, by outcome", ["outcome"], registry=at)
        self.cached = Counter("imgv_cache_hits", "jobs answered from the verdict cache", registry=at)
        self.seconds = Histogram("imgv_stage_seconds", "time by stage", ["stage"], buckets=_SECONDS, registry=at)
        self.total = Histogram("imgv_job_seconds", "time from XADD to the answer", buckets=_SECONDS, registry=at)
        self.batch = Histogram("imgv_batch_images", "images judged together", buckets=(1, 2, 4, 8, 16, 32), registry=at)
        self.detector = Histogram(
            "imgv_detector_seconds", "time per image, by part", ["part"], buckets=_SECONDS, registry=at
        )
        self._release = Gauge("imgv_release", "1 for the release that judges", ["release"], registry=at)
        self.release_failures = Counter(
            "imgv_release_failures", "promoted releases that could not be taken over", registry=at
        )
        self._waiting = Gauge("imgv_jobs_waiting", "added and not yet delivered", ["stream"], registry=at)
        self._pending = Gauge("imgv_jobs_pending", "delivered and not yet ended", ["stream"], registry=at)
        self._oldest = Gauge("imgv_oldest_waiting_seconds", "age of the oldest waiting job", ["stream"], registry=at)
        self._idle = Gauge("imgv_oldest_pending_idle_seconds", "since the lease was renewed", ["stream"], registry=at)
        self._unusable = Gauge("imgv_unusable_keys", "keys that hold something else than ours", ["key"], registry=at)
        self._held = Gauge("imgv_jobs_held", "jobs in this worker", registry=at)
        self._memory = Gauge("imgv_resident_bytes", "memory of this process", registry=at)
        self._ok, self._error, self._known = (self.jobs.labels(name) for name in ("ok", "error", "duplicate"))
        self._queued = self.seconds.labels("queued")

    def judges_with(self, release: str) -> None:
        """
        Args:
            release: its name; empty: what is installed.
        """
        self._release.clear()
        self._release.labels(release or "installed").set(1)

    def taken(self, entries: Sequence[Entry]) -> None:
        """One observation per read, of its oldest entry: at full speed a histogram per job would cost as much as it."""
        self._queued.observe(_age(entries[0].id))

    def settled(self, batch: Sequence[Ending], refused: Collection[Ending], known: Collection[Ending]) -> None:
        counts = Counted(ending.status for ending in batch)
        counts.subtract(ending.status for ending in (*refused, *known))
        self._ok.inc(counts["ok"])
        self._error.inc(counts["error"])
        self._known.inc(len(known))
        self.total.observe(_age(batch[0].entry.id))

    def render(self, depths: Sequence[Depth], held: int, unusable: Collection[str] = ()) -> str:
        self._unusable.clear()
        for key in unusable:
            self._unusable.labels(key).set(1)
        for depth in depths:
            self._waiting.labels(depth.stream).set(depth.waiting)
            self._pending.labels(depth.stream).set(depth.pending)
            self._oldest.labels(depth.stream).set(depth.oldest_waiting)
            self._idle.labels(depth.stream).set(depth.oldest_pending_idle)
        self._held.set(held)
        self._memory.set(resident_bytes())
        return generate_latest(self.registry).decode()


def resident_bytes() -> int:
    """Resident memory now; where the system does not say, its peak; where it says nothing (Windows), 0."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _age(entry_id: str) -> float:
    return max(0.0, time.time() - int(entry_id.partition("-")[0]) / 1000)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the worker's


@contextlib.asynccontextmanager
async def serve(address: str, pages: Mapping[str, Page]) -> AsyncIterator[None]:
    """Answer GET and HEAD for a few pages, until the end of the context.

    Args:
        address: ``host:port``; an empty host listens on loopback only.

    Raises:
        BadSettings: nothing can listen there.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, int(port)), family=family)
    except (OSError, OverflowError) as error:
        raise BadSettings(f"IMGV_QUEUE_METRICS: cannot listen on {address}: {error}") from None
    app = Starlette(routes=[Route(path, _endpoint(page)) for path, page in pages.items()])
    config = uvicorn.Config(
        app,
        http=PunctualProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


def _endpoint(page: Page) -> Callable[[Request], Awaitable[PlainTextResponse]]:
    async def answer(_: Request) -> PlainTextResponse:
        status, body = await page()
        return PlainTextResponse(body, status)

    return answer

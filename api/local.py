"""Verdicts from this process: fetch and decode side by side, judge the images of all requests in batches on one thread.

The event loop only moves things: decoding strangers' files happens in child processes, and the models have a thread
of their own, so that the server answers while they work. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from api.jobs import Image, Job
from api.metrics import Metrics
from api.problems import BUG
from ingress.sources import Ingress, fetch_within
from utils.contracts import Sample
from utils.errors import Internal, NotFound, QueueFull, VerifyError
from utils.settings import Settings
from utils.verdict_json import verdict_dict

if TYPE_CHECKING:  # the conductor imports torch; a server that only queues does without
    from inference.detector import Judgement

log = logging.getLogger(__name__)

_FETCHES = 8  # downloads at a time: each may hold IMGV_MAX_BYTES that no one has counted yet
_MOST_KEPT = 2000  # ended jobs: about 30 MB of verdicts, and some GB of artifacts at the very most
_WITH_PIXELS = ("decoding", "judging", "reporting")


Result = TypeVar("Result")


class Verifies(Protocol):
    def verify(self, samples: Sequence[Sample], job_ids: Sequence[str | None] | None = None) -> list[Judgement]: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    sample: Sample
    job_id: str
    answer: asyncio.Future[Judgement]


class Batcher:
    """Judges what different requests sent together. While one batch is with the models, the next one gathers."""

    def __init__(self, verifier: Verifies, most: int, metrics: Metrics) -> None:
        self._verifier = verifier
        self._most = most
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, "models")
        self._task: asyncio.Task[None] | None = None
        self._began = 0.0  # of the batch that is with the models; 0 between batches

    @property
    def busy_seconds(self) -> float:
        return time.monotonic() - self._began if self._began else 0.0

    async def judge(self, sample: Sample, job_id: str) -> Judgement:
        waiting = _Waiting(sample, job_id, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await waiting.answer

    async def _drain(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            batch = [each for each in batch if not each.answer.done()]  # nobody waits for a cancelled one
            if not batch:
                continue
            self._metrics.batch.observe(len(batch))
            self._began = time.monotonic()
            with self._metrics.stage.labels("judging").time():
                outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._verify, batch)
            self._began = 0.0
            for each, outcome in zip(batch, outcomes, strict=True):
                if each.answer.done():
                    continue
                if isinstance(outcome, Exception):
                    each.answer.set_exception(outcome)
                else:
                    each.answer.set_result(outcome)

    def _verify(self, batch: Sequence[_Waiting]) -> list[Judgement | Exception]:
        """On the models' thread. When a whole batch fails, its images are judged one by one."""
        try:
            return list(self._verifier.verify([each.sample for each in batch], [each.job_id for each in batch]))
        except Exception as error:  # noqa: BLE001 - whoever waits for the answer decides
            return [self._verify([each])[0] for each in batch] if len(batch) > 1 else [error]

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class LocalBackend:
    """A Backend in this process. Use as an asynchronous context manager: it owns threads, children and files.

    The limits are the worker's, because the work is: ``queue_max_jobs``, ``queue_max_mb``, ``queue_batch``,
    ``queue_decoders`` and ``queue_drain_seconds``.
    """

    where = "in process"

    def __init__(self, settings: Settings, verifier: Verifies, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._batcher = Batcher(verifier, settings.pipeline.batch, metrics)
        self._decoders = ThreadPoolExecutor(settings.pipeline.decoders, "decode")
        self._ingresses = [Ingress(settings.decode.for_strangers()) for _ in range(settings.pipeline.decoders)]
        self._fetches, self._decoding = asyncio.Semaphore(_FETCHES), asyncio.Semaphore(settings.pipeline.decoders)
        self._jobs: dict[str, Job] = {}  # oldest first
        self._running: dict[asyncio.Task[None], Job] = {}
        self._held = 0  # bytes of files and pixels in memory
        self._most_held = settings.pipeline.max_mb << 20
        self._room = asyncio.Event()
        self._stopping = False
        self._folder = Path()

    async def __aenter__(self) -> Self:
        self._folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="img_ml_verify-"))  # mode 0700
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish what was taken, for as long as a worker would."""
        self._stopping = True
        if self._running:
            await asyncio.wait(self._running, timeout=self._settings.pipeline.drain_seconds)
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._batcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        for ingress in self._ingresses:
            ingress.__exit__(None, None, None)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def submit(self, image: Image, *, artifacts: bool) -> Job:
        size = len(image.raw or b"")
        if (
            self._stopping
            or len(self._running) >= self._settings.pipeline.max_jobs
            or self._held + size > self._most_held
        ):
            raise QueueFull("as many images are in work as this server takes; try again shortly")
        job = Job(image.source)
        self._jobs[job.id] = job
        self._held += size
        task = asyncio.create_task(self._run(job, image, artifacts))
        self._running[task] = job
        self._metrics.running.set(len(self._running))
        task.add_done_callback(self._ended)
        return job

    async def find(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise NotFound("no such job, or its answer has expired; send the image again")
        return self._jobs[job_id]

    async def trouble(self) -> str:
        if self._batcher.busy_seconds > self._settings.pipeline.stuck_seconds:
            return "the models have not come back for IMGV_PIPELINE_STUCK_SECONDS; restart the server"
        return "shutting down" if self._stopping else ""

    # --------------------------------------------------------------------------------------------------- one job's life

    async def _run(self, job: Job, image: Image, artifacts: bool) -> None:
        held = len(image.raw or b"")
        try:
            raw = image.raw if image.raw is not None else await self._fetch(job, image.url or "")
            self._held += len(raw) - held
            held = len(raw)
            async with self._decoding:  # so that at most as many images as decoders pass the limit unseen
                await self._wait_for_room()
                job.advance("decoding")
                with self._metrics.stage.labels("decoding").time():
                    sample = await self._in_thread(self._decode, raw, image.source)
                size = sample.rgb.nbytes * (1 + len(sample.frames))
                self._held += size
                held += size
            job.advance("judging")
            judgement = await self._batcher.judge(sample, job.id)
            files = await self._report(job, sample, judgement) if artifacts else {}
            job.finish(verdict_dict(judgement.verdict), files)
        except VerifyError as error:
            job.fail(error)
        except Exception:
            log.exception("job %s failed", job.id)
            job.fail(Internal(BUG))
        finally:
            self._held -= held
            self._room.set()
            self._metrics.jobs.labels(job.stage).inc()

    async def _fetch(self, job: Job, url: str) -> bytes:
        async with self._fetches:
            await self._wait_for_room()
            job.advance("fetching")
            with self._metrics.stage.labels("fetching").time():
                return await fetch_within(self._settings.fetch, url, self._settings.decode.max_bytes)

    async def _wait_for_room(self) -> None:
        """Pixels of the images before this one must leave memory first. A single image always gets through."""
        while self._held > self._most_held and any(job.stage in _WITH_PIXELS for job in self._running.values()):
            self._room.clear()
            await self._room.wait()

    def _decode(self, raw: bytes, source: str) -> Sample:
        ingress = self._ingresses.pop()  # as many as threads
        try:
            return ingress.decode(raw, source)
        finally:
            self._ingresses.append(ingress)

    async def _report(self, job: Job, sample: Sample, judgement: Judgement) -> dict[str, Path]:
        job.advance("reporting")
        with self._metrics.stage.labels("reporting").time():
            return await self._in_thread(write_files, self._folder / job.id, sample, judgement)

    async def _in_thread(self, function: Callable[..., Result], *args: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *args)

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._running.pop(task)
        self._metrics.running.set(len(self._running))
        ended = [each for each in self._jobs.values() if each.ended] if len(self._jobs) > _MOST_KEPT else []
        for old in ended[: len(self._jobs) - _MOST_KEPT]:
            self._forget(old)
        asyncio.get_running_loop().call_later(self._settings.api.keep_seconds, self._forget, job)

    def _forget(self, job: Job) -> None:
        if self._jobs.pop(job.id, None) and job.files:
            with contextlib.suppress(RuntimeError):  # shut down: the whole folder goes
                self._decoders.submit(shutil.rmtree, self._folder / job.id, ignore_errors=True)


def write_files(folder: Path, sample: Sample, judgement: Judgement) -> dict[str, Path]:
    """Heatmaps, the HTML report, and a small picture to show them on (formats that browsers do not know included).

    Returns:
        File name -> file.
    """
    import cv2

    from inference.report import shrink, write_artifacts

    # The file's own name would become a folder's: the job's will do.
    plain = replace(sample, source="image")
    written = {Path(path).name: Path(path) for path in write_artifacts(folder, plain, judgement).values()}
    (record,) = (path for name, path in written.items() if name == "verdict.json")
    preview = record.with_name("preview.jpg")
    done, data = cv2.imencode(".jpg", cv2.cvtColor(shrink(sample.upright), cv2.COLOR_RGB2BGR))
    if done:
        preview.write_bytes(bytes(data))
        written["preview.jpg"] = preview
    del written["verdict.json"]  # it names our folders; the verdict itself is the answer
    return written

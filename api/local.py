"""Verdicts from this process: the pipeline, and what it has answered for a while. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from api.jobs import Image, Job
from api.metrics import Metrics
from api.problems import BUG
from inference.live import LiveVerifier
from inference.pipeline import Pipeline, Place, Request
from utils.contracts import Sample, Verdict
from utils.errors import Internal, NotFound, QueueFull, VerifyError
from utils.live_settings import LiveSettings
from utils.releases import Release
from utils.settings import DecodeSettings, FetchSettings, ModelSettings, PipelineSettings
from utils.verdict_json import verdict_dict

if TYPE_CHECKING:  # the conductor imports every measurement; a server that only queues does without
    from inference.detector import Judgement, Verifier
    from inference.verdict_cache import VerdictFile

log = logging.getLogger(__name__)

_MOST_KEPT = 2000  # ended jobs: about 30 MB of verdicts, and some GB of artifacts at the very most
_SHARE = 4  # one caller has at most this part of the places for images that are still to be fetched


class LocalBackend:
    """A Backend in this process. Use as an asynchronous context manager: it owns threads, children and files.

    Images that are still to be fetched have places of their own, of which one caller has a share: addresses that never
    answer keep out neither files nor other callers' addresses.
    """

    where = "in process"

    def __init__(
        self,
        pipeline: PipelineSettings,
        decode: DecodeSettings,
        fetch: FetchSettings,
        verifier: Verifier,
        metrics: Metrics,
        keep_seconds: float,
        known: VerdictFile | None = None,
    ) -> None:
        """
        Args:
            keep_seconds: how long an answer and its artifacts can be fetched.
            known: verdicts that were given before.
        """
        self._settings = pipeline
        self._verifier = LiveVerifier(verifier)
        self._metrics = metrics
        self._keep_seconds = keep_seconds
        self._known = known
        self._pipeline = Pipeline(
            pipeline,
            decode.for_strangers(),
            fetch,
            {"": self._verifier},
            timed=lambda stage: metrics.stage.labels(stage).time(),
            batched=metrics.batch.observe,
        )
        self._jobs: dict[str, Job] = {}  # oldest first
        self._running: dict[asyncio.Task[None], Job] = {}
        self._fetching: Counter[str] = Counter()  # jobs without their bytes, by caller
        self._stopping = False
        self._folder = Path()

    async def __aenter__(self) -> Self:
        self._folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="img_ml_verify-"))  # mode 0700
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish what was taken, for as long as a worker would."""
        self._stopping = True
        if self._running:
            await asyncio.wait(self._running, timeout=self._settings.drain_seconds)
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._pipeline.__exit__()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def adopt(self, release: Release, models: ModelSettings) -> None:
        from inference.detector import build_verifier

        self._verifier.replace(build_verifier(models, release))

    def configure(self, values: LiveSettings, models: ModelSettings) -> None:
        self._verifier.set_threshold(models.threshold if values.threshold is None else values.threshold)

    async def submit(self, image: Image, *, artifacts: bool = False, stability: bool = False) -> Job:
        self._check_room(image)
        job = Job(image.source)
        self._jobs[job.id] = job
        request = Request(image.source, image.raw, image.url, caller=image.caller, job_id=job.id, stability=stability)
        place = self._pipeline.place(request)
        task = asyncio.create_task(self._run(job, request, place, artifacts))
        self._running[task] = job
        self._fetching[image.caller] += image.raw is None
        self._metrics.running.set(len(self._running))
        task.add_done_callback(self._ended)
        return job

    def _check_room(self, image: Image) -> None:
        """
        Raises:
            QueueFull: no place, or no memory.
        """
        most, fetching = self._settings.max_jobs, self._fetching.total()
        if image.raw is None:
            full = fetching >= most or self._fetching[image.caller] >= max(1, most // _SHARE)
        else:
            full = len(self._running) - fetching >= most or not self._pipeline.room.fits(len(image.raw))
        if full or self._stopping:
            raise QueueFull("as many images are in work as this server takes; try again shortly")

    async def find(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise NotFound("no such job, or its answer has expired; send the image again")
        return self._jobs[job_id]

    async def trouble(self) -> str:
        if self._pipeline.busy_seconds > self._settings.stuck_seconds:
            return "the models have not come back for IMGV_PIPELINE_STUCK_SECONDS; restart the server"
        return "shutting down" if self._stopping else ""

    # --------------------------------------------------------------------------------------------------- one job's life

    async def _run(self, job: Job, request: Request, place: Place, artifacts: bool) -> None:
        try:
            with place:
                try:
                    raw = await self._pipeline.read(request, place, job.advance)
                finally:
                    self._fetching[request.caller] -= request.raw is None
                verdict, files = await self._judge(job, request, raw, place, artifacts)
            job.finish(verdict_dict(verdict), files)
        except VerifyError as error:
            job.fail(error)
        except Exception:
            log.exception("job %s failed", job.id)
            job.fail(Internal(BUG))
        finally:
            self._metrics.jobs.labels(job.stage).inc()

    async def _judge(
        self, job: Job, request: Request, raw: bytes, place: Place, artifacts: bool
    ) -> tuple[Verdict, dict[str, Path]]:
        known = None if artifacts else self._known  # an artifact needs the pixels
        judges, digest = self._verifier.now, ""
        if known:
            digest = await self._pipeline.in_thread(known.digest, raw, judges, stability=request.stability)
            if earlier := await self._pipeline.in_thread(known.get, digest, request.source, job.id):
                return earlier, {}
        sample, judgement = await self._pipeline.judge(request, raw, place, job.advance)
        if artifacts:
            return await self._report(job, sample, judgement)
        # Where another release took over meanwhile, this may be either's.
        if known and not judgement.failed and judges is self._verifier.now:
            await self._pipeline.in_thread(known.put, digest, judgement.verdict)
        return judgement.verdict, {}

    async def _report(self, job: Job, sample: Sample, judgement: Judgement) -> tuple[Verdict, dict[str, Path]]:
        from inference.report import unwritten

        job.advance("reporting")
        with self._metrics.stage.labels("reporting").time():
            try:
                files = await self._pipeline.in_thread(write_files, self._folder / job.id, sample, judgement)
            except OSError as error:
                return unwritten(judgement.verdict, error), {}
        return judgement.verdict, files

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._running.pop(task)
        self._metrics.running.set(len(self._running))
        ended = [each for each in self._jobs.values() if each.ended] if len(self._jobs) > _MOST_KEPT else []
        for old in ended[: len(self._jobs) - _MOST_KEPT]:
            self._forget(old)
        asyncio.get_running_loop().call_later(self._keep_seconds, self._forget, job)

    def _forget(self, job: Job) -> None:
        if self._jobs.pop(job.id, None) and job.files:
            with contextlib.suppress(RuntimeError):  # shut down: the whole folder goes
                self._pipeline.threads.submit(shutil.rmtree, self._folder / job.id, ignore_errors=True)


def write_files(folder: Path, sample: Sample, judgement: Judgement) -> dict[str, Path]:
    """Heatmaps, the HTML report, and a small picture to show them on (for formats that browsers do not know too).

    Returns:
        File name -> file.
    """
    from inference.report import write_artifacts

    # The file's own name would become a folder's: the job's will do.
    plain = replace(sample, source="image")
    written = {Path(path).name: Path(path) for path in write_artifacts(folder, plain, judgement).values()}
    del written["verdict.json"]  # it names our folders; the verdict itself is the answer
    return written

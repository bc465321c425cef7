"""The work of a job: the pipeline, the verdict cache and the artifacts. Knows no queue."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from inference.pipeline import Pipeline, Place, Request, Stage, Verifies
from inference.verdict_cache import FROM_CACHE, digest_of
from utils.contracts import Json
from utils.errors import FileMissing
from utils.persistence import safe_name
from utils.settings import DecodeSettings, FetchSettings, PipelineSettings, QueueSettings
from utils.verdict_json import dump, verdict_dict
from worker.jobs import Job, check_deadline
from worker.loop import Answer, Outcome
from worker.metrics import Metrics


class VerdictCache(Protocol):
    """Verdicts by a digest of the image and of everything that judged it."""

    async def get(self, digest: str) -> bytes | None: ...

    async def put(self, digest: str, verdict: bytes) -> None: ...


class Judge:
    """A Handler. Use as an asynchronous context manager: it owns threads and decoding processes."""

    def __init__(
        self,
        queue: QueueSettings,
        pipeline: PipelineSettings,
        decode: DecodeSettings,
        fetch: FetchSettings,
        verifiers: Mapping[str, Verifies],
        metrics: Metrics,
        cache: VerdictCache | None = None,
        judges_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        """
        Args:
            verifiers: by profile.
            judges_of: a profile, what a cached verdict depends on beside the image at this moment; needed with a cache,
                and asked before and after each job.
        """
        self._attempts = queue.attempts
        self._artifacts_dir = queue.artifacts_dir
        self._metrics = metrics
        self._cache = cache
        self._judges_of = judges_of
        self._running: dict[asyncio.Task[None], tuple[Job, Place]] = {}
        self._fetching: dict[Request, float] = {}  # since when
        self._pipeline = Pipeline(
            pipeline,
            decode.for_strangers(),
            fetch,
            verifiers,
            timed=lambda stage: metrics.seconds.labels(_METRICS[stage]).time(),
            batched=metrics.batch.observe,
        )

    async def __aenter__(self) -> Judge:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (running := tuple(self._running)):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._pipeline.__exit__()

    # ----------------------------------------------------------------------------------------------- the loop's Handler

    def begin(self, jobs: Sequence[Job], answer: Answer[Job]) -> None:
        for job in jobs:
            request = self._request(job)
            place = self._pipeline.place(request)
            task = asyncio.create_task(self._work(job, request, place, answer))
            self._running[task] = job, place
            task.add_done_callback(lambda done: self._running.pop(done, None))

    def drop_waiting(self) -> list[Job]:
        waiting = {task: job for task, (job, place) in self._running.items() if not place.begun}
        for task in waiting:
            task.cancel()
            del self._running[task]
        return list(waiting.values())

    def stalled(self) -> int:
        return sum(time.monotonic() - since > _STALLED_SECONDS for since in self._fetching.values())

    def busy_seconds(self) -> float:
        return self._pipeline.busy_seconds

    # --------------------------------------------------------------------------------------------------------- one job

    def _request(self, job: Job) -> Request:
        return Request(
            job.source,
            job.raw,
            job.url,
            job.path,
            job.root,
            caller=job.caller or (job.url or "//").split("/")[2],  # else the host
            profile=job.profile,
            job_id=job.job_id,
            stability=job.stability,
            alone=job.entry.deliveries >= self._attempts,  # a suspect; see lua/reclaim.lua
        )

    async def _work(self, job: Job, request: Request, place: Place, answer: Answer[Job]) -> None:
        """Answers once, unless it is cancelled."""
        outcome: Outcome
        try:
            with place:
                outcome = await self._verdict(job, request, place)
        except Exception as error:  # noqa: BLE001 - the loop decides what it means
            outcome = error
        answer(job, outcome)

    async def _verdict(self, job: Job, request: Request, place: Place) -> str:
        try:
            if request.url:
                self._fetching[request] = time.monotonic()
            raw = await self._pipeline.read(request, place)
        except FileMissing:
            raise FileMissing(f"cannot read {job.source}") from None  # not where its links lead
        finally:
            self._fetching.pop(request, None)
        digest = judges = ""
        if self._cache and not job.artifacts:
            judges = self._judges_of(job.profile)
            digest = await self._pipeline.in_thread(
                digest_of, raw, judges, profile=job.profile, stability=job.stability
            )
            if cached := await self._cached(job, self._cache, digest):
                return cached
        sample, judgement = await self._pipeline.judge(request, raw, place, lambda stage: _check(job, stage))
        verdict = judgement.verdict
        for part, milliseconds in verdict.timings_ms.items():
            self._metrics.detector.labels(part).observe(milliseconds / 1000)
        if job.artifacts:
            from inference.report import unwritten, write_artifacts

            assert self._artifacts_dir  # or the job was refused
            folder = self._artifacts_dir / safe_name(job.caller or job.job_id)  # nobody replaces another's report
            try:
                written = await self._pipeline.in_thread(write_artifacts, folder, sample, judgement)
                verdict = replace(verdict, artifacts=written)
            except OSError as error:
                verdict = unwritten(verdict, error)
        text = dump(verdict_dict(verdict))
        # Where another release took over meanwhile, this may be either's.
        if self._cache and digest and not judgement.failed and judges == self._judges_of(job.profile):
            await self._cache.put(digest, text.encode())
        return text

    # ---------------------------------------------------------------------------------------------------- verdict cache

    async def _cached(self, job: Job, cache: VerdictCache, digest: str) -> str | None:
        """An earlier verdict on the same bytes, which says that it is one. None when this job must be judged."""
        found = await cache.get(digest)
        if found is None:
            return None
        try:
            verdict: dict[str, Json] = json.loads(found)
            verdict["warnings"] = [*verdict["warnings"], FROM_CACHE]
        except (ValueError, TypeError, KeyError, RecursionError):  # somebody else's value
            return None
        verdict["job_id"], verdict["source"] = job.job_id, job.source
        self._metrics.cached.inc()
        return dump(verdict)


_STALLED_SECONDS = 0.5  # most downloads take less
_METRICS = {"fetching": "fetch", "decoding": "decode", "judging": "judge"}  # as the dashboards know the stages


def _check(job: Job, stage: Stage) -> None:
    """
    Raises:
        DeadlinePassed: nobody waits for what is about to be decoded.
    """
    if stage == "decoding":
        check_deadline(job)

"""The work of a job: fetch and decode side by side, judge in batches on a thread of its own. Knows no queue.

The event loop only moves things: downloads are asynchronous, decoding happens in child processes, and the models have
one thread, so that leases are renewed while they work.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from ingress.decode import read_file
from ingress.sources import Ingress, fetch_within
from utils.contracts import Json, Sample
from utils.errors import FileMissing
from utils.settings import Settings
from utils.verdict_json import dump, verdict_dict
from worker.jobs import Job, check_deadline
from worker.loop import Answer, Outcome
from worker.metrics import Metrics

if TYPE_CHECKING:  # the conductor imports torch; a worker with other work, as in tests, does without
    from inference.detector import Judgement


class Verifies(Protocol):
    def verify(self, samples: Sequence[Sample], job_ids: Sequence[str | None] | None = None) -> list[Judgement]: ...


class VerdictCache(Protocol):
    """Verdicts by a digest of the image and of everything that judged it."""

    async def get(self, digest: str) -> bytes | None: ...

    async def put(self, digest: str, verdict: bytes) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    job: Job
    sample: Sample
    answer: Answer[Job]


class Judge:
    """A Handler. Use as an asynchronous context manager: it owns threads and decoding processes."""

    def __init__(
        self,
        settings: Settings,
        verifiers: Mapping[str, Verifies],
        metrics: Metrics,
        cache: VerdictCache | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            verifiers: by profile.
            fingerprints: by profile, what a cached verdict depends on beside the image; needed with a cache.
        """
        self._settings = settings
        self._verifiers = verifiers
        self._metrics = metrics
        self._cache = cache
        self._fingerprints = fingerprints or {}
        self._preparing: dict[asyncio.Task[None], Job] = {}
        self._ready: deque[_Ready] = deque()
        self._pixels = 0  # bytes of images decoded and not yet judged
        self._most_pixels = settings.pipeline.max_mb << 20
        self._began_batch = 0.0
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._ingresses: list[Ingress] = []
        self._decoders = ThreadPoolExecutor(settings.pipeline.decoders, "decode")
        self._decoding = asyncio.Semaphore(settings.pipeline.decoders)
        self._models = ThreadPoolExecutor(1, "models")
        self._batching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Judge:
        self._ingresses = [
            Ingress(self._settings.decode.for_strangers()) for _ in range(self._settings.pipeline.decoders)
        ]
        self._batching = asyncio.create_task(self._judge_batches(), name="judge")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drop_waiting()
        assert self._batching
        self._batching.cancel()
        await asyncio.gather(self._batching, return_exceptions=True)
        self._models.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)
        for ingress in self._ingresses:
            ingress.__exit__(None, None, None)

    # ----------------------------------------------------------------------------------------------- the loop's Handler

    def begin(self, jobs: Sequence[Job], answer: Answer[Job]) -> None:
        for job in jobs:
            task = asyncio.create_task(self._prepare(job, answer))
            self._preparing[task] = job
            task.add_done_callback(lambda done: self._preparing.pop(done, None))

    def drop_waiting(self) -> list[Job]:
        dropped = [*self._preparing.values(), *(each.job for each in self._ready)]
        for task in self._preparing:
            task.cancel()
        self._preparing.clear()
        self._ready.clear()
        return dropped

    def busy_seconds(self) -> float:
        return time.monotonic() - self._began_batch if self._began_batch else 0.0

    # -------------------------------------------------------------------------------------------------- one job's image

    async def _prepare(self, job: Job, answer: Answer[Job]) -> None:
        try:
            with self._metrics.seconds.labels("fetch").time():
                raw = await self._bytes(job)
            if cached := await self._cached(job, raw):
                answer(job, cached)
                return
            async with self._decoding:  # room is looked for when a decoder is free: at most these go beyond the limit
                while self._pixels > self._most_pixels:
                    self._room.clear()
                    await self._room.wait()
                check_deadline(job)
                with self._metrics.seconds.labels("decode").time():
                    decoding = asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, raw, job.source)
                    sample = await decoding
                self._pixels += sample.nbytes
        except Exception as error:  # noqa: BLE001 - the loop decides what it means
            answer(job, error)
            return
        self._ready.append(_Ready(job, sample, answer))
        self._wake.set()

    async def _bytes(self, job: Job) -> bytes:
        settings = self._settings
        if job.raw is not None:
            return job.raw
        if job.path is not None:
            try:
                return await asyncio.to_thread(read_file, job.path, settings.decode.max_bytes)
            except FileMissing:
                raise FileMissing(f"cannot read {job.source}") from None  # not where its links lead
        assert job.url is not None
        return await fetch_within(settings.fetch, job.url, settings.decode.max_bytes)

    def _decode(self, raw: bytes, source: str) -> Sample:
        ingress = self._ingresses.pop()  # as many as threads
        try:
            return ingress.decode(raw, source)
        finally:
            self._ingresses.append(ingress)

    # ---------------------------------------------------------------------------------------------------------- batches

    async def _judge_batches(self) -> None:
        """While the models work on one batch, the next one gathers."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._ready:
                batch = self._next_batch()
                self._began_batch = time.monotonic()
                with self._metrics.seconds.labels("judge").time():
                    outcomes = await asyncio.get_running_loop().run_in_executor(self._models, self._judge, batch)
                self._began_batch = 0.0
                self._metrics.batch.observe(len(batch))
                self._pixels -= sum(each.sample.nbytes for each in batch)
                self._room.set()
                for each, outcome in zip(batch, outcomes, strict=True):
                    each.answer(each.job, outcome)
                    await self._remember(each, outcome)

    def _next_batch(self) -> list[_Ready]:
        """The oldest ready job, and others of its profile. A suspect goes alone; see lua/reclaim.lua."""
        first = self._ready.popleft()
        batch = [first]
        if first.job.entry.deliveries < self._settings.queue.attempts:
            alike = [each for each in self._ready if _can_join(each.job, first.job, self._settings.queue.attempts)]
            for each in alike[: self._settings.pipeline.batch - 1]:
                self._ready.remove(each)
                batch.append(each)
        return batch

    def _judge(self, batch: Sequence[_Ready]) -> list[Outcome]:
        """On the models' thread. An image that fails a whole batch fails alone the second time."""
        verifier = self._verifiers[batch[0].job.profile]
        try:
            judgements = verifier.verify([each.sample for each in batch], [each.job.job_id for each in batch])
        except Exception as error:  # noqa: BLE001 - the loop decides what it means
            if len(batch) > 1:
                return [self._judge([each])[0] for each in batch]
            return [error]
        return [self._finish(each, judgement) for each, judgement in zip(batch, judgements, strict=True)]

    def _finish(self, ready: _Ready, judgement: Judgement) -> Outcome:
        try:
            verdict = judgement.verdict
            for part, milliseconds in verdict.timings_ms.items():
                self._metrics.detector.labels(part).observe(milliseconds / 1000)
            if ready.job.artifacts:
                from inference.report import write_artifacts

                folder = self._settings.queue.artifacts_dir
                assert folder  # or the job was refused
                verdict = replace(verdict, artifacts=write_artifacts(folder, ready.sample, judgement))
            return dump(verdict_dict(verdict))
        except Exception as error:  # noqa: BLE001 - the loop decides what it means
            return error

    # ---------------------------------------------------------------------------------------------------- verdict cache

    async def _cached(self, job: Job, raw: bytes) -> str | None:
        """An earlier verdict on the same bytes, which says that it is one. None when this job must be judged."""
        if self._cache is None or job.artifacts:
            return None
        found = await self._cache.get(self._digest(job, hashlib.sha256(raw).hexdigest()))
        if found is None:
            return None
        self._metrics.cached.inc()
        verdict: dict[str, Json] = json.loads(found)
        verdict["job_id"], verdict["source"] = job.job_id, job.source
        verdict["warnings"] = [*verdict["warnings"], _FROM_CACHE]
        return dump(verdict)

    async def _remember(self, ready: _Ready, outcome: Outcome) -> None:
        if self._cache and not isinstance(outcome, Exception) and not ready.job.artifacts:
            digest = self._digest(ready.job, ready.sample.sha256)
            await self._cache.put(digest, outcome.encode() if isinstance(outcome, str) else outcome)

    def _digest(self, job: Job, sha256: str) -> str:
        return hashlib.sha256(f"{sha256} {job.profile} {self._fingerprints[job.profile]}".encode()).hexdigest()


_FROM_CACHE = "from the verdict cache: the same bytes were judged before by the same models; timings are of that time"


def _can_join(job: Job, first: Job, attempts: int) -> bool:
    return job.profile == first.profile and job.entry.deliveries < attempts

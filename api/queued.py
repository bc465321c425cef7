"""Verdicts from workers behind Redis: adds jobs as any producer would, and looks for their answers.

Knows the queue's wire format (worker/jobs.py) and nothing of images. A job outlives this process: another one with the
same Redis finds its answer by its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from redis.exceptions import RedisError, ResponseError

from api.jobs import Image, Job
from api.metrics import Metrics
from api.problems import coded
from utils.errors import Internal, NotFound, QueueUnreachable
from utils.live_settings import LiveSettings
from utils.releases import Release
from utils.settings import ModelSettings, QueueSettings
from worker.connect import connect
from worker.live_settings import RedisKeeper
from worker.rights import check_rights, producer_needs
from worker.stream import Keys
from worker.submit import enqueue

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05  # one MGET for all that wait; a verdict takes several times as long
_JOB_ID = re.compile(r"[0-9a-f]{32}")  # ours; other producers may use ids that can be guessed
_SERVED = (".png", ".html")  # of what a worker writes; its copy of the verdict names the worker's folders


class QueueBackend:
    """A Backend that leaves the work to workers. Use as an asynchronous context manager."""

    where = "workers"

    def __init__(self, settings: QueueSettings, url: str, metrics: Metrics) -> None:
        """
        Raises:
            BadSettings: the URL is none that we understand.
        """
        self._settings = settings
        self._client = connect(url)
        self._keys = Keys(settings.prefix)
        self._metrics = metrics
        self._waiting: dict[str, Job] = {}
        self._poller: asyncio.Task[None] | None = None
        self._artifacts = settings.artifacts_dir and settings.artifacts_dir.resolve()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._poller:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        await self._client.aclose()

    def adopt(self, release: Release, models: ModelSettings) -> None: ...

    def configure(self, values: LiveSettings, models: ModelSettings) -> None: ...

    def keeper(self) -> RedisKeeper:
        """Of the settings that workers share with us."""
        return RedisKeeper(self._client, self._keys)

    async def check(self) -> None:
        """
        Raises:
            BadSettings: the server lets us not do what we shall do. One that does not answer may come back.
        """
        with contextlib.suppress(RedisError, OSError):
            await check_rights(self._client, producer_needs(self._keys))

    async def submit(self, image: Image, *, artifacts: bool = False, stability: bool = False) -> Job:
        job = Job(image.source)
        fields: dict[str, str | bytes] = (
            {"source": image.url} if image.url else {"image": image.raw or b"", "filename": image.source}
        )
        if image.caller:
            fields["caller"] = image.caller
        if artifacts and self._artifacts:
            fields["artifacts"] = "1"
        if stability:
            fields["stability"] = "1"
        await self._enqueue(job.id, fields)
        self._await_answer(job)
        return job

    async def _enqueue(self, job_id: str, fields: Mapping[str, str | bytes]) -> None:
        try:
            await enqueue(self._client, self._settings, job_id, fields)
        except (RedisError, OSError) as error:
            log.warning("cannot queue: %s", error)
            does = "refuses the job" if isinstance(error, ResponseError) else "does not answer"
            raise QueueUnreachable(f"the queue's server {does}; try again shortly") from None

    async def find(self, job_id: str) -> Job:
        if job_id in self._waiting:
            return self._waiting[job_id]
        missing = NotFound("no such job, or its answer has expired; send the image again")
        if not _JOB_ID.fullmatch(job_id):
            raise missing
        with self._reachable():
            answer = await self._client.get(self._keys.verdict(job_id))
            queued = answer or await self._client.exists(self._keys.queued(job_id))
        job = Job("", job_id)
        if answer:
            self._end(job, answer)
        elif queued:
            self._await_answer(job)
        else:
            raise missing
        return job

    async def trouble(self) -> str:
        try:
            await self._client.ping()
        except (RedisError, OSError):
            return "the queue's server does not answer"
        return ""

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            log.warning("cannot look up a job: %s", error)
            raise QueueUnreachable("the queue's server does not answer; try again shortly") from None

    # ----------------------------------------------------------------------------------------------------- the answers

    def _await_answer(self, job: Job) -> None:
        self._waiting[job.id] = job
        self._metrics.running.set(len(self._waiting))
        asyncio.get_running_loop().call_later(self._settings.answer_seconds, self._waiting.pop, job.id, None)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(_POLL_SECONDS)
            jobs = tuple(self._waiting.values())
            try:
                answers = await self._client.mget([self._keys.verdict(job.id) for job in jobs])
            except (RedisError, OSError) as error:
                log.warning("cannot look for answers: %s", error)
                await asyncio.sleep(1.0)
                continue
            for job, answer in zip(jobs, answers, strict=True):
                if answer:
                    self._waiting.pop(job.id, None)
                    self._end(job, answer)
                    self._metrics.jobs.labels(job.stage).inc()
            self._metrics.running.set(len(self._waiting))

    def _end(self, job: Job, answer: str | bytes) -> None:
        try:
            found = json.loads(answer)
            if error := found.get("error"):
                job.fail(coded(error["code"], error["message"]))
                return
            job.source = found["source"]
            job.finish(found, self._files(found["artifacts"]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            log.error("%s holds something else than a worker's answer", self._keys.verdict(job.id))
            job.fail(Internal("something else than the answer stands under the job's key; the server's log names it"))

    def _files(self, artifacts: Mapping[str, str]) -> dict[str, Path]:
        """What a worker wrote into the folder that we share with it."""
        paths = [Path(path).resolve() for path in artifacts.values()]
        root = self._artifacts
        if root is None:
            return {}
        return {path.name: path for path in paths if path.is_relative_to(root) and path.suffix in _SERVED}

"""A worker put together from the settings: queue, handler, callbacks, pages. Knows no command line and no signal."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace

from redis.exceptions import RedisError, ResponseError

from ingress.fetch import post_async
from utils import live_settings
from utils.emf import Emf
from utils.errors import BadSettings, SetupError
from utils.live_settings import LiveSettings
from utils.releases import Release
from utils.settings import FetchSettings, PipelineSettings, QueueSettings, Settings
from worker.cache import RedisCache
from worker.callbacks import Callback, CallbackJobs, Sender, signing_key
from worker.connect import BLOCK_MS, Client, connect
from worker.jobs import ImageJobs, Job, Rules
from worker.live_settings import RedisKeeper
from worker.loop import Handler, Limits, Loop
from worker.metrics import Metrics, Page, serve
from worker.rights import check_rights, warn_of_eviction, worker_needs
from worker.stream import Keys, Queue

log = logging.getLogger(__name__)

Prefer = Callable[[str | None], None]  # as ImageJobs.prefer
MakeHandler = Callable[[Metrics, Client, Prefer], AbstractAsyncContextManager[Handler[Job]]]
MakeHandlerOf = Callable[[Settings, Metrics, Client, Prefer], AbstractAsyncContextManager[Handler[Job]]]

_CALLBACK_SECONDS = 15.0  # the upper end of what Standard Webhooks recommends for one attempt
_CALLBACKS_AT_ONCE = 16
CALLBACK_RETRY_SECONDS = 5.0
_CHECK_AGAIN_SECONDS = 2.0


@asynccontextmanager
async def judging(settings: Settings, metrics: Metrics, client: Client, prefer: Prefer) -> AsyncIterator[Handler[Job]]:
    """The real handler: loads every profile's models before the first job is taken, and follows what changes.

    Raises:
        SetupError: this installation is incomplete.
    """
    from inference.detector import build_verifier, promoted
    from inference.live import LiveVerifier, following
    from inference.verdict_cache import Judges
    from utils.threads import limit_library_threads
    from worker.judge import Judge

    queue, models, release = settings.queue, settings.models, promoted(settings.models)
    installed = models.model_copy(update={"release": ""})  # a release is for one profile
    verifiers = {
        name: LiveVerifier(
            build_verifier(models, release)
            if name == models.profile
            else build_verifier(installed.model_copy(update={"profile": name}))
        )
        for name in profiles(models.profile, queue)
    }
    limit_library_threads()

    threshold = models.threshold

    def adopt(promoted: Release) -> None:
        verifiers[models.profile].replace(build_verifier(models, promoted).with_threshold(threshold))
        metrics.judges_with(promoted.name)

    def apply(values: LiveSettings) -> None:
        nonlocal threshold
        threshold = models.threshold if values.threshold is None else values.threshold
        for verifier in verifiers.values():
            verifier.set_threshold(threshold)
        prefer(values.profile)
        logging.getLogger().setLevel(values.log_level or settings.log.level)

    current = release.name if release else ""
    metrics.judges_with(current)
    cache = RedisCache(client, Keys(queue.prefix), queue.cache_seconds) if queue.cache_seconds else None
    known = Judges(settings) if cache else None

    def judges_of(name: str) -> str:
        return known(verifiers[name].now) if known else ""

    parts = queue, settings.pipeline, settings.decode, settings.fetch
    following_release = following(models, current, adopt, metrics.release_failures.inc)
    keeper = RedisKeeper(client, Keys(queue.prefix))
    following_settings = live_settings.following(keeper, apply, models.release_refresh_seconds)
    judge = Judge(*parts, verifiers, metrics, cache, judges_of)
    async with following_release, following_settings, judge:
        yield judge


def build_service(settings: Settings, url: str, make_handler: MakeHandlerOf = judging) -> Service:
    """A worker with all that the settings say.

    Args:
        url: of the queue's server.
        make_handler: what does the work; measurements of the queue itself put a handler without work here.

    Raises:
        BadSettings: a setting that only the worker reads.
    """
    return Service(
        url,
        rules(settings.models.profile, settings.decode.max_bytes, settings.queue),
        settings.queue,
        settings.pipeline,
        settings.fetch,
        functools.partial(make_handler, settings),
        settings.log.metrics_seconds,
    )


class Service:
    """One worker process. ``run`` returns its exit status."""

    def __init__(
        self,
        url: str,
        rules: Rules,
        settings: QueueSettings,
        pipeline: PipelineSettings,
        fetch: FetchSettings,
        make_handler: MakeHandler,
        metrics_seconds: float = 0,
    ) -> None:
        """
        Args:
            fetch: how callbacks may connect.
            metrics_seconds: how often numbers are printed for CloudWatch; 0: never.

        Raises:
            BadSettings: a setting that only the worker reads.
        """
        self._settings = settings
        self._fetch = fetch
        self._make_handler = make_handler
        self._metrics_seconds = metrics_seconds
        self._client = connect(url)
        self._keys = Keys(settings.prefix)
        if "+cluster" in url.partition("://")[0] and not ("{" in self._keys.prefix and "}" in self._keys.prefix):
            raise BadSettings("IMGV_QUEUE_PREFIX: Redis Cluster needs a hash tag, as in {image_verify}")
        secret = settings.callback_secret.get_secret_value()
        self._signing_key = signing_key(secret) if secret else None
        self._rules = rules
        self._limits = Limits(
            pipeline.max_jobs,
            pipeline.max_mb << 20,
            settings.retry_seconds,
            pipeline.stuck_seconds,
            pipeline.drain_seconds,
        )
        self.metrics = Metrics()
        self.loop: Loop[Job] | None = None
        self._callbacks: Loop[Callback] | None = None
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    def stop(self) -> None:
        for loop in (self.loop, self._callbacks):
            if loop:
                loop.stop()

    async def run(self, ready: Callable[[], None] = lambda: None) -> SetupError | Exception | None:
        """Work until ``stop``. Returns why the worker ended by itself, if it did.

        Raises:
            SetupError: it cannot start.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._client.aclose)
            answers = await self._check_server()
            kind = ImageJobs(self._rules)
            handler = await stack.enter_async_context(self._make_handler(self.metrics, self._client, kind.prefer))
            queue = self._queue(self._keys.streams, self._settings.attempts)
            self.loop = Loop(queue, kind, handler, self._limits, self.metrics)
            await self._ensure(queue)
            if not answers:
                stack.callback(asyncio.create_task(self._check_when_back(self.loop)).cancel)
            running = [self.loop.run()]
            if self._signing_key:
                self._callbacks = self._callback_loop(self._signing_key)
                await self._ensure(self._callbacks.queue)
                running.append(self._callbacks.run())
            if self._settings.metrics:
                await stack.enter_async_context(serve(self._settings.metrics, self._pages(self.loop)))
            if self._metrics_seconds:
                stack.callback(asyncio.create_task(self._print_numbers(self.loop, self._metrics_seconds)).cancel)
            ready()
            await asyncio.gather(*(self._together(each) for each in running))
        return self.loop.failure

    async def _together(self, running: Coroutine[None, None, None]) -> None:
        try:
            await running
        finally:
            self.stop()

    def _queue(self, streams: tuple[str, ...], attempts: int) -> Queue:
        settings = self._settings
        return Queue(
            self._client,
            self._keys,
            self.name,
            streams=streams,
            lease_seconds=settings.lease_seconds,
            attempts=attempts,
            answer_seconds=settings.answer_seconds,
            results_kept=settings.results_kept,
        )

    def _callback_loop(self, key: bytes) -> Loop[Callback]:
        post = functools.partial(
            post_async,
            seconds=_CALLBACK_SECONDS,
            connect_seconds=self._fetch.connect_seconds,
            ports=frozenset(self._fetch.ports),
        )
        queue = self._queue((self._keys.callbacks,), self._settings.callback_attempts)
        fewer = replace(self._limits, max_jobs=_CALLBACKS_AT_ONCE, retry_seconds=CALLBACK_RETRY_SECONDS)
        return Loop(queue, CallbackJobs(), Sender(post, key, self.metrics), fewer, self.metrics)

    async def _check_server(self) -> bool:
        """Whether the server answers. What it forbids is ours to mend, before the models load.

        Raises:
            BadSettings: a wrong password, or a right that will be needed is missing.
        """
        caching = bool(self._settings.cache_seconds)
        needs = worker_needs(self._keys, self.name, callbacks=self._signing_key is not None, cache=caching)
        try:
            await check_rights(self._client, needs)
            with contextlib.suppress(ResponseError):  # a right that we can do without
                await warn_of_eviction(self._client)
        except (RedisError, OSError) as error:
            log.warning("the server does not answer yet: %s", error)  # it may come back
            return False
        return True

    async def _check_when_back(self, loop: Loop[Job]) -> None:
        """For a server that was down at the start."""
        try:
            while not await self._check_server():
                await asyncio.sleep(_CHECK_AGAIN_SECONDS)
        except BadSettings as error:
            loop.failure = error
            self.stop()

    async def _ensure(self, queue: Queue) -> None:
        with contextlib.suppress(RedisError, OSError):  # the loop makes the group when the server is back
            await queue.ensure()

    async def _numbers(self, loop: Loop[Job]) -> str:
        try:
            depths = await loop.queue.depth()
        except (RedisError, OSError):
            depths = []  # our own numbers are true without the server's
        loops = (loop, self._callbacks) if self._callbacks else (loop,)
        return self.metrics.render(depths, loop.held, {key for each in loops for key in each.queue.unusable})

    async def _print_numbers(self, loop: Loop[Job], seconds: float) -> None:
        emf = Emf(self.metrics.registry)
        while True:
            await asyncio.sleep(seconds)
            await self._numbers(loop)  # the queue's gauges
            emf.print()

    def _pages(self, loop: Loop[Job]) -> dict[str, Page]:
        async def metrics() -> tuple[int, str]:
            return 200, await self._numbers(loop)

        async def health() -> tuple[int, str]:
            # Not whether the server answers: restarting every worker would not bring it back.
            beats = time.monotonic() - loop.last_beat < 10 * BLOCK_MS / 1000
            return (200, "ok\n") if beats and not loop.failure else (503, "the reader stands still\n")

        async def readiness() -> tuple[int, str]:
            reads = time.monotonic() - loop.last_read < 2 * BLOCK_MS / 1000
            return (200, "ok\n") if reads else (503, "the server does not answer\n")

        return {"/metrics": metrics, "/healthz": health, "/readyz": readiness}


def profiles(default: str, settings: QueueSettings) -> tuple[str, ...]:
    """Those that jobs may name; the first is the default."""
    return tuple(dict.fromkeys((default, *settings.profiles)))


def rules(default_profile: str, max_bytes: int, settings: QueueSettings) -> Rules:
    """What jobs may ask.

    Args:
        max_bytes: of one image.

    Raises:
        BadSettings: a folder opened to jobs does not exist.
    """
    roots = tuple(path.resolve() for path in settings.paths)
    for root in roots:
        if not root.is_dir():
            raise BadSettings(f"IMGV_QUEUE_PATHS: {root} is not a folder")
    return Rules(
        profiles(default_profile, settings),
        max_bytes,
        roots,
        callbacks=bool(settings.callback_secret.get_secret_value()),
        artifacts=settings.artifacts_dir is not None,
    )

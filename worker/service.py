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

from redis.exceptions import RedisError

from ingress.fetch import post_async
from utils.errors import BadSettings, SetupError
from utils.settings import Settings
from worker.cache import RedisCache, fingerprint
from worker.callbacks import Callback, CallbackJobs, Sender, signing_key
from worker.connect import BLOCK_MS, Client, connect
from worker.jobs import ImageJobs, Job, Rules
from worker.loop import Handler, Limits, Loop
from worker.metrics import Metrics, Page, serve
from worker.rights import check_rights, worker_needs
from worker.stream import Keys, Queue

log = logging.getLogger(__name__)

MakeHandler = Callable[[Settings, Metrics, Client], AbstractAsyncContextManager[Handler[Job]]]

_CALLBACK_SECONDS = 15.0  # the upper end of what Standard Webhooks recommends for one attempt
_CALLBACKS_AT_ONCE = 16
_CALLBACK_RETRY_SECONDS = 5.0
_CHECK_AGAIN_SECONDS = 2.0


@asynccontextmanager
async def judging(settings: Settings, metrics: Metrics, client: Client) -> AsyncIterator[Handler[Job]]:
    """The real handler: loads every profile's models before the first job is taken.

    Raises:
        SetupError: this installation is incomplete.
    """
    from inference.detector import build_verifier
    from utils.threads import limit_library_threads
    from worker.judge import Judge

    verifiers = {
        name: build_verifier(settings.models.model_copy(update={"profile": name})) for name in profiles(settings)
    }
    limit_library_threads()
    cache, fingerprints = None, {}
    if settings.queue.cache_seconds:
        cache = RedisCache(client, Keys(settings.queue.prefix), settings.queue.cache_seconds)
        fingerprints = {name: fingerprint(verifier) for name, verifier in verifiers.items()}
    async with Judge(settings, verifiers, metrics, cache, fingerprints) as judge:
        yield judge


class Service:
    """One worker process. ``run`` returns its exit status."""

    def __init__(self, settings: Settings, url: str, make_handler: MakeHandler = judging) -> None:
        """
        Args:
            make_handler: what does the work; measurements of the queue itself put a handler without work here.

        Raises:
            BadSettings: a setting that only the worker reads.
        """
        self._settings = settings
        self._make_handler = make_handler
        self._client = connect(url)
        self._keys = Keys(settings.queue.prefix)
        if "+cluster" in url.partition("://")[0] and not ("{" in self._keys.prefix and "}" in self._keys.prefix):
            raise BadSettings("IMGV_QUEUE_PREFIX: Redis Cluster needs a hash tag, as in {image_verify}")
        secret = settings.queue.callback_secret.get_secret_value()
        self._signing_key = signing_key(secret) if secret else None
        self._rules = rules(settings)
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
        settings = self._settings
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._client.aclose)
            answers = await self._check_server()
            handler = await stack.enter_async_context(self._make_handler(settings, self.metrics, self._client))
            queue = self._queue(self._keys.streams, settings.queue.attempts)
            limits = Limits(
                settings.pipeline.max_jobs,
                settings.pipeline.max_mb << 20,
                settings.queue.retry_seconds,
                settings.pipeline.stuck_seconds,
                settings.pipeline.drain_seconds,
            )
            self.loop = Loop(queue, ImageJobs(self._rules), handler, limits, self.metrics)
            await self._ensure(queue)
            if not answers:
                stack.callback(asyncio.create_task(self._check_when_back(self.loop)).cancel)
            running = [self.loop.run()]
            if self._signing_key:
                self._callbacks = self._callback_loop(self._signing_key, limits)
                await self._ensure(self._callbacks.queue)
                running.append(self._callbacks.run())
            if settings.queue.metrics:
                await stack.enter_async_context(serve(settings.queue.metrics, self._pages(self.loop)))
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
            lease_seconds=settings.queue.lease_seconds,
            attempts=attempts,
            answer_seconds=settings.queue.answer_seconds,
            results_kept=settings.queue.results_kept,
        )

    def _callback_loop(self, key: bytes, limits: Limits) -> Loop[Callback]:
        settings = self._settings
        post = functools.partial(
            post_async,
            seconds=_CALLBACK_SECONDS,
            connect_seconds=settings.fetch.connect_seconds,
            ports=frozenset(settings.fetch.ports),
        )
        queue = self._queue((self._keys.callbacks,), settings.queue.callback_attempts)
        fewer = Limits(
            _CALLBACKS_AT_ONCE, limits.max_bytes, _CALLBACK_RETRY_SECONDS, limits.stuck_seconds, limits.drain_seconds
        )
        return Loop(queue, CallbackJobs(), Sender(post, key, self.metrics), fewer, self.metrics)

    async def _check_server(self) -> bool:
        """Whether the server answers. What it forbids is ours to mend, before the models load.

        Raises:
            BadSettings: a wrong password, or a right that will be needed is missing.
        """
        caching = bool(self._settings.queue.cache_seconds)
        needs = worker_needs(self._keys, self.name, callbacks=self._signing_key is not None, cache=caching)
        try:
            await check_rights(self._client, needs)
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

    def _pages(self, loop: Loop[Job]) -> dict[str, Page]:
        async def metrics() -> tuple[int, str]:
            try:
                depths = await loop.queue.depth()
            except (RedisError, OSError):
                depths = []  # our own numbers are true without the server's
            loops = (loop, self._callbacks) if self._callbacks else (loop,)
            return 200, self.metrics.render(depths, loop.held, {key for each in loops for key in each.queue.unusable})

        async def health() -> tuple[int, str]:
            # Not whether the server answers: restarting every worker would not bring it back.
            beats = time.monotonic() - loop.last_beat < 10 * BLOCK_MS / 1000
            return (200, "ok\n") if beats and not loop.failure else (503, "the reader stands still\n")

        async def readiness() -> tuple[int, str]:
            reads = time.monotonic() - loop.last_read < 2 * BLOCK_MS / 1000
            return (200, "ok\n") if reads else (503, "the server does not answer\n")

        return {"/metrics": metrics, "/healthz": health, "/readyz": readiness}


def profiles(settings: Settings) -> tuple[str, ...]:
    """Those that jobs may name; the first is the default."""
    return tuple(dict.fromkeys((settings.models.profile, *settings.queue.profiles)))


def rules(settings: Settings) -> Rules:
    """
    Raises:
        BadSettings: a folder opened to jobs does not exist.
    """
    roots = tuple(path.resolve() for path in settings.queue.paths)
    for root in roots:
        if not root.is_dir():
            raise BadSettings(f"IMGV_QUEUE_PATHS: {root} is not a folder")
    return Rules(
        profiles(settings),
        settings.decode.max_bytes,
        roots,
        callbacks=bool(settings.queue.callback_secret.get_secret_value()),
        artifacts=settings.queue.artifacts_dir is not None,
    )

"""The application with a small verifier, by ASGI; and the real product behind a real server, for what needs sockets."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from sklearn.datasets import load_sample_image

from api.app import create_app
from api.limits import WEBSOCKET_BYTES
from api.local import LocalBackend
from api.metrics import Metrics
from inference.detector import Verifier
from inference.ensemble import Ensemble
from inference.verdict_cache import VerdictFile
from tests.fakes import FakeDetector, fusion_model
from utils.contracts import PUBLIC_FEATURES
from utils.releases import Release
from utils.settings import Settings
from worker.http import PunctualProtocol

Work = Callable[[httpx.AsyncClient], Awaitable[object]]


def photo(name: str = "china.jpg", kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image(name)).save(buffer, kind)
    return buffer.getvalue()


class Watched(Verifier):
    """Judges by brightness; remembers its batches, and waits while it is held."""

    def __init__(self, error: Exception | None = None, fails_on: str | None = None) -> None:
        super().__init__(
            Ensemble([FakeDetector("effnet")], [], {}), fusion_model("effnet_prob"), {"effnet_prob": "brightness"}
        )
        self.meanings = dict.fromkeys(PUBLIC_FEATURES, "") | {"effnet_prob": "brightness"}
        self.batches: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.error = error
        self.fails_on = fails_on

    def verify(self, samples, job_ids=None, stability=()):
        self.batches.append(len(samples))
        assert self.free.wait(30)
        if self.error and any(self.fails_on in (None, sample.source) for sample in samples):
            raise self.error
        return super().verify(samples, job_ids, stability)


@pytest.fixture
def verifier() -> Watched:
    return Watched()


def settings_of(**changed: object) -> Settings:
    return Settings.of(**{"pipeline_drain_seconds": 5, **changed})


def local_app(settings: Settings, verifier: Verifier) -> FastAPI:
    """The application, whose images this verifier judges in this process."""

    def backend(given: Settings, metrics: Metrics, _release: Release | None) -> LocalBackend:
        parts = given.pipeline, given.decode, given.fetch, verifier, metrics
        return LocalBackend(*parts, given.api.keep_seconds, VerdictFile.at(given))

    return create_app(settings, backend)


@pytest.fixture
def serve(verifier) -> Callable[..., object]:
    """Run ``work(client)`` against the application; by ASGI, so without a socket."""

    def run(
        work: Work, judge: Watched | None = None, headers: dict[str, str] | None = None, **changed: object
    ) -> object:
        app = local_app(settings_of(**changed), judge or verifier)

        async def main() -> object:
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app)
                base = "http://127.0.0.1"
                async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as client:
                    return await work(client)

        return asyncio.run(main())

    return run


class LiveServer:
    """uvicorn on loopback, in a thread."""

    def __init__(self, app) -> None:
        config = uvicorn.Config(
            app,
            port=0,
            log_config=None,
            access_log=False,
            http=PunctualProtocol,
            ws="websockets-sansio",
            ws_max_size=WEBSOCKET_BYTES,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        host, port = self._server.servers[0].sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture(scope="session")
def live() -> Iterator[LiveServer]:
    """The embedded profile as it ships."""
    settings = settings_of(api_rate_per_minute=100_000, fetch_seconds=0.5, api_wait_seconds=60)
    with LiveServer(create_app(settings)) as server:
        yield server

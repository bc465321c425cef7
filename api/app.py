"""The application put together: a backend, the routes, and the layers around them. Knows no single route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import TypeAlias

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from api import config, page, routes
from api.catalogue import catalogue
from api.config import Configurator
from api.documents import finish_openapi
from api.edge import Edge
from api.feedback import FeedbackBox
from api.jobs import Backend, SharesSettings
from api.limits import Gate, RateLimiter
from api.metrics import Metrics
from api.problems import respond
from api.server import Server
from inference.detector import promoted
from inference.live import following
from utils import live_settings
from utils.errors import BadRequest, NotFound, VerifyError
from utils.live_settings import Keeper, LiveSettings, MemoryKeeper
from utils.releases import Release
from utils.settings import Settings

MakeBackend: TypeAlias = Callable[[Settings, Metrics, Release | None], Backend]


def default_backend(settings: Settings, metrics: Metrics, release: Release | None) -> Backend:
    """Workers when there is a REDIS_URL, else this process with its models loaded.

    Raises:
        SetupError: this installation is incomplete.
    """
    if url := settings.queue.redis_url.get_secret_value():
        from api.queued import QueueBackend

        return QueueBackend(settings.queue, url, metrics)
    from api.local import LocalBackend
    from inference.detector import build_verifier
    from inference.verdict_cache import VerdictFile
    from utils.threads import limit_library_threads

    verifier = build_verifier(settings.models, release)
    limit_library_threads()
    parts = settings.pipeline, settings.decode, settings.fetch, verifier, metrics
    return LocalBackend(*parts, settings.api.keep_seconds, VerdictFile.at(settings))


def create_app(settings: Settings, make_backend: MakeBackend = default_backend) -> FastAPI:
    """The ASGI application, with its models loaded.

    Raises:
        SetupError: this installation is incomplete.
    """
    metrics, limiter = Metrics(), RateLimiter(settings.api.rate_per_minute)
    release = promoted(settings.models)  # once: every file of it is read
    backend = make_backend(settings, metrics, release)
    models = catalogue(settings.models, backend.where, release)
    feedback = None
    if folder := settings.api.feedback_dir:
        days, images = settings.api.feedback_days, settings.api.feedback_images
        feedback = FeedbackBox(folder, keep_images=images, keep_days=days)
    judging = release
    overridden = settings.models

    def apply(values: LiveSettings) -> None:
        nonlocal overridden
        threshold = settings.models.threshold if values.threshold is None else values.threshold
        overridden = settings.models.model_copy(update={"threshold": threshold})
        limits = {"rate_per_minute": values.rate_per_minute, "batch_images": values.batch_images}
        server.settings = settings.api.model_copy(update={name: each for name, each in limits.items() if each})
        limiter.set_rate(server.settings.rate_per_minute)
        logging.getLogger().setLevel(values.log_level or settings.log.level)
        backend.configure(values, settings.models)
        server.models = catalogue(overridden, backend.where, judging)

    keeper: Keeper = backend.keeper() if isinstance(backend, SharesSettings) else MemoryKeeper()
    server = Server(
        settings.api,
        settings.decode.max_bytes,
        settings.pipeline.batch,
        backend,
        limiter,
        feedback,
        metrics,
        models,
        Configurator(settings, keeper, apply),
        asyncio.Event(),
    )

    def adopt(release: Release) -> None:
        nonlocal judging
        backend.adopt(release, overridden)
        judging = release
        server.models = catalogue(overridden, backend.where, release)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = feedback.sweeping() if feedback else nullcontext()
        current = release.name if release else ""
        seconds = settings.models.release_refresh_seconds
        following_settings = live_settings.following(keeper, apply, seconds) if settings.api.admins else nullcontext()
        async with backend, following(settings.models, current, adopt), following_settings, sweeping:
            yield

    origins = settings.api.origins
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "X-API-Key", "Content-Type", "X-Request-ID"],
        expose_headers=["Location", "Retry-After", "X-Request-ID"],
    )
    app = FastAPI(
        title="img_ml_verify",
        version="1",
        summary="Tells whether an image is AI-generated, and shows why.",
        docs_url=None,  # api/page.py has both, from files of our own: FastAPI's load scripts from another host
        redoc_url=None,
        lifespan=lifespan,
        middleware=[
            Middleware(Edge, metrics=metrics),
            *([cors] if origins else []),
            Middleware(
                Gate,
                settings=settings.api,
                pipeline=settings.pipeline,
                max_bytes=settings.decode.max_bytes,
                limiter=limiter,
                metrics=metrics,
            ),
        ],
        exception_handlers={
            VerifyError: _on_coded,
            RequestValidationError: _on_invalid,
            HTTPException: _on_http,
        },
    )
    app.state.server = server
    app.include_router(routes.router)
    app.include_router(config.router)
    app.include_router(page.router)
    app.mount("/static/reference", page.reference)
    app.mount("/static", page.assets)
    finish_openapi(app)
    return app


async def _on_coded(request: Request, error: Exception) -> Response:
    assert isinstance(error, VerifyError)
    return respond(error, request.state.request_id)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return respond(BadRequest(f"{where}: {first['msg']}"), request.state.request_id)


async def _on_http(request: Request, error: Exception) -> Response:
    """No such page, or not by this method."""
    assert isinstance(error, HTTPException)
    coded = NotFound("no such page") if error.status_code == 404 else BadRequest(str(error.detail))
    answer = respond(coded, request.state.request_id)
    answer.status_code = error.status_code
    answer.headers.update(error.headers or {})
    return answer

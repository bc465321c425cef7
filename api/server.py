"""What every route may use. Decides nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from api.feedback import FeedbackBox
from api.jobs import Backend
from api.limits import RateLimiter
from api.metrics import Metrics
from api.schemas import Models
from utils.settings import ApiSettings

if TYPE_CHECKING:  # it has routes, which need this module
    from api.config import Configurator


@dataclass(slots=True)
class Server:
    """One for the whole application."""

    settings: ApiSettings
    max_bytes: int  # of one image
    window: int  # images of one batch request that are in work at a time
    backend: Backend
    limiter: RateLimiter
    feedback: FeedbackBox | None  # None: none is taken
    metrics: Metrics
    models: Models  # another one when another release judges
    config: Configurator
    stopping: asyncio.Event  # set on the first signal, so that streams end by themselves


def server_of(request: Request) -> Server:
    server: Server = request.app.state.server
    return server

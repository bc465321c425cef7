"""What a command of the lifecycle tells: a structured log, gauges for Prometheus, a signed webhook. Decides nothing."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from ingress.fetch import post_async
from utils.contracts import Json
from utils.emf import Emf
from utils.errors import VerifyError
from utils.settings import Settings
from worker.callbacks import signature_headers, signing_key

GAUGES = "lifecycle.prom"  # in IMGV_LIFECYCLE_DIR, for node_exporter's textfile collector
_SECONDS = 15.0


class _Both:
    """A line of JSON into the run's log and onto stderr."""

    def __init__(self, path: Path, shown: TextIO) -> None:
        self._path, self._shown = path, shown

    def msg(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, file=self._shown, flush=True)

    log = debug = info = warning = error = critical = msg


def log_to(path: Path, run: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose every line has the run, the level and the time."""
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        _Both(path, sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )
    return logger.bind(run=run)


def gauges(settings: Settings, *, failed: bool) -> None:
    """Write how the last retraining ended, in one step."""
    settings.lifecycle.folder.mkdir(parents=True, exist_ok=True)
    registry = CollectorRegistry()
    Gauge("imgv_retrain_failed", "1 when the last retraining failed", registry=registry).set(failed)
    at = Gauge("imgv_retrain_ended_timestamp_seconds", "when the last retraining ended", registry=registry)
    at.set_to_current_time()
    write_to_textfile(str(settings.lifecycle.folder / GAUGES), registry)
    if settings.log.metrics_seconds:
        Emf(registry).print()


def notify(settings: Settings, event: Mapping[str, Json]) -> bool:
    """POST an event to IMGV_NOTIFY_URL, signed with IMGV_CALLBACK_SECRET as callbacks are. Whether it was taken.

    A receiver that does not answer must not make a failed run fail otherwise: it is said on stderr.
    """
    url = settings.lifecycle.notify_url
    if not url:
        return False
    body = json.dumps(event, ensure_ascii=False)
    secret = settings.queue.callback_secret.get_secret_value()
    message = f"lifecycle-{secrets.token_hex(8)}"
    headers = {"Content-Type": "application/json"}
    if secret:
        headers |= signature_headers(signing_key(secret), message, body)
    try:
        asyncio.run(
            post_async(
                url,
                body.encode(),
                headers,
                seconds=_SECONDS,
                connect_seconds=settings.fetch.connect_seconds,
                ports=frozenset(settings.fetch.ports),
            )
        )
    except VerifyError as error:
        print(f"notify: {error.code}: {error}", file=sys.stderr)
        return False
    return True

"""Answers sent to the URL a job named, signed as Standard Webhooks ask. Knows nothing of images.

Specification: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md: the headers webhook-id,
webhook-timestamp and webhook-signature "v1,<base64 HMAC-SHA256 of id.timestamp.body>", with a secret "whsec_<base64>".
Callbacks are jobs on a stream of their own, with the same leases, retries and dead letters.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from standardwebhooks import Webhook

from utils.errors import BadMessage, BadSettings, FetchFailed, InputError, UrlNotFound, VerifyError
from worker.jobs import check_size, job_id_of, traceparent_of
from worker.loop import Answer
from worker.metrics import Metrics
from worker.stream import Ending, Entry


@dataclass(frozen=True, slots=True, eq=False)
class Callback:
    entry: Entry
    job_id: str
    url: str
    body: str
    traceparent: str


class CallbackJobs:
    """Callbacks as jobs; see worker.loop.Kind. Nobody waits for an answer, so what cannot be sent is a dead letter."""

    buries_input_errors = True

    def parse(self, entry: Entry) -> Callback:
        check_size(entry)
        url = entry.fields.get(b"url", b"").decode("utf-8", "replace")
        try:
            body = entry.fields.get(b"body", b"").decode()
        except UnicodeDecodeError:
            raise BadMessage("body: not UTF-8") from None
        if not url or not body:
            raise BadMessage("a callback has url and body")
        return Callback(entry, job_id_of(entry), url, body, traceparent_of(entry))

    def done(self, job: Callback, outcome: str | bytes) -> Ending:
        return Ending(job.entry, job.job_id)

    def failed(self, entry: Entry, error: VerifyError) -> Ending:
        return Ending(entry, job_id_of(entry))


class Post(Protocol):
    """ingress.fetch.post_async with its limits, or a test's double with the same errors."""

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> None: ...


class Sender:
    """A Handler that sends callbacks, each in a task of its own."""

    def __init__(self, post: Post, key: bytes, metrics: Metrics) -> None:
        self._post = post
        self._key = key
        self._metrics = metrics
        self._sending: dict[asyncio.Task[None], Callback] = {}

    def begin(self, jobs: Sequence[Callback], answer: Answer[Callback]) -> None:
        for job in jobs:
            task = asyncio.create_task(self._send(job, answer))
            self._sending[task] = job
            task.add_done_callback(lambda done: self._sending.pop(done, None))

    def drop_waiting(self) -> list[Callback]:
        return []  # each is short, and a request once sent cannot be taken back

    def stalled(self) -> int:
        return 0

    def busy_seconds(self) -> float:
        return 0.0  # the post has its own limit

    async def _send(self, job: Callback, answer: Answer[Callback]) -> None:
        headers = {"Content-Type": "application/json", **signature_headers(self._key, job.job_id, job.body)}
        if job.traceparent:
            headers["traceparent"] = job.traceparent
        try:
            await self._post(job.url, job.body.encode(), headers)
        except UrlNotFound as error:  # a receiver that says 404 today is being deployed; the specification retries it
            self._metrics.callbacks.labels("failed").inc()
            answer(job, FetchFailed(error.message))
        except Exception as error:  # noqa: BLE001 - the loop decides what it means
            self._metrics.callbacks.labels("refused" if isinstance(error, InputError) else "failed").inc()
            answer(job, error)
        else:
            self._metrics.callbacks.labels("sent").inc()
            answer(job, b"")


def signature_headers(key: bytes, message_id: str, body: str, now: float | None = None) -> dict[str, str]:
    """Standard Webhooks headers. The id stays the same over retries, so that a receiver can drop repeats."""
    sent = datetime.fromtimestamp(int(time.time() if now is None else now), UTC)
    signature = Webhook(key).sign(message_id, sent, body)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": f"{sent.timestamp():.0f}",
        "webhook-signature": signature,
    }


def signing_key(secret: str) -> bytes:
    """The secret's bytes. The library would take any length, and skip what is not base64.

    Raises:
        BadSettings: not ``whsec_`` and the base64 of 24 to 64 bytes, as the specification asks.
    """
    prefix, _, encoded = secret.partition("_")
    try:
        key = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        key = b""
    if prefix != "whsec" or not 24 <= len(key) <= 64:
        raise BadSettings(
            "IMGV_CALLBACK_SECRET: give whsec_ and the base64 of 24 to 64 random bytes, as from: "
            'echo "whsec_$(openssl rand -base64 32)"'
        )
    return key

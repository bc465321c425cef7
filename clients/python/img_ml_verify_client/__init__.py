"""A Python client of img_ml_verify's HTTP API. Needs httpx only.

client = Client("http://127.0.0.1:8000", key="imgv_…")
client.verify("photo.jpg")["tier"]
for index, answer in client.verify_many(["a.jpg", "b.png"]): ...

``AsyncClient`` is the same, to be awaited.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypedDict, cast

import httpx

from img_ml_verify_client.answers import FeedbackTaken, Models, Problem, Verdict

__all__ = ["AsyncClient", "Client", "Failed", "FeedbackTaken", "Image", "Models", "Problem", "Refused", "Verdict"]

Image: TypeAlias = "str | Path | bytes"  # a URL or a path; a path; the file itself

_TRIES = 5  # of a request that a busy server put off
_POLL_SECONDS = 0.5


class Failed(TypedDict):
    """Of an image in a batch."""

    error: Problem


class Refused(Exception):
    """The server's problem details (RFC 9457). ``code`` is one of the server's docs/errors.md."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem['code']}: {problem['detail']}")
        self.code = problem["code"]
        self.problem = problem


class Client:
    """Use as a context manager, or close it. Threads may share it."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str = "",
        timeout_seconds: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            transport: how requests travel; None: over the network.
        """
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout_seconds, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def verify(self, image: Image, *, artifacts: bool = False, stability: bool = False) -> Verdict:
        """The verdict on one image, however long it takes.

        Args:
            stability: also find out whether the label holds; the work of five images.

        Raises:
            Refused: the image cannot be judged, or we may not ask.
            httpx.HTTPError: no server there.
        """
        answer = self._ask("POST", "/v1/verify", **_one(image, artifacts=artifacts, stability=stability))
        while (verdict := _verdict_in(answer)) is None:  # 202: the server's patience ended before the work
            time.sleep(_POLL_SECONDS)
            answer = self._ask("GET", answer["links"]["self"])
        return verdict

    def verify_many(
        self, images: Sequence[str | Path | bytes], *, artifacts: bool = False, stability: bool = False
    ) -> Iterator[tuple[int, Verdict | Failed]]:
        """Index and answer, a verdict or ``{"error": …}``, of every file, as they are done.

        Raises:
            Refused: the whole batch is too large, or we may not ask.
        """
        with self._http.stream(
            "POST", "/v1/verify/batch", **_many(images, artifacts=artifacts, stability=stability)
        ) as response:
            if response.is_error:
                response.read()
                raise Refused(response.json())
            for line in filter(None, response.iter_lines()):
                yield _line(line)

    def artifact(self, verdict: Verdict, name: str) -> bytes:
        """A heatmap (PNG), ``preview`` (JPEG) or ``report`` (HTML) of a verdict that was asked for with artifacts."""
        return self._send("GET", verdict["artifacts"][name]).content

    def models(self) -> Models:
        """What judges there."""
        return cast(Models, self._ask("GET", "/v1/models"))

    def feedback(self, verdict: Verdict, label: Literal["real", "ai"], why: str = "") -> FeedbackTaken:
        """Say what the image of a verdict is, where the server takes reports."""
        return cast(FeedbackTaken, self._ask("POST", "/v1/feedback", json=_report(verdict, label, why)))

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        return dict(self._send(method, path, **request).json())

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Comes back when a busy server says when."""
        for tries_left in reversed(range(_TRIES)):
            response = self._http.request(method, path, **request)
            if not response.is_error:
                break
            time.sleep(_pause(response, tries_left))
        return response


class AsyncClient:
    """As ``Client``; use as an asynchronous context manager. Tasks may share it."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str = "",
        timeout_seconds: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers=_headers(key), timeout=timeout_seconds, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def verify(self, image: Image, *, artifacts: bool = False, stability: bool = False) -> Verdict:
        """As ``Client.verify``."""
        answer = await self._ask("POST", "/v1/verify", **_one(image, artifacts=artifacts, stability=stability))
        while (verdict := _verdict_in(answer)) is None:
            await asyncio.sleep(_POLL_SECONDS)
            answer = await self._ask("GET", answer["links"]["self"])
        return verdict

    async def verify_many(
        self, images: Sequence[str | Path | bytes], *, artifacts: bool = False, stability: bool = False
    ) -> AsyncIterator[tuple[int, Verdict | Failed]]:
        """As ``Client.verify_many``."""
        async with self._http.stream(
            "POST", "/v1/verify/batch", **_many(images, artifacts=artifacts, stability=stability)
        ) as response:
            if response.is_error:
                await response.aread()
                raise Refused(response.json())
            async for line in response.aiter_lines():
                if line:
                    yield _line(line)

    async def artifact(self, verdict: Verdict, name: str) -> bytes:
        """As ``Client.artifact``."""
        return (await self._send("GET", verdict["artifacts"][name])).content

    async def models(self) -> Models:
        """As ``Client.models``."""
        return cast(Models, await self._ask("GET", "/v1/models"))

    async def feedback(self, verdict: Verdict, label: Literal["real", "ai"], why: str = "") -> FeedbackTaken:
        """As ``Client.feedback``."""
        return cast(FeedbackTaken, await self._ask("POST", "/v1/feedback", json=_report(verdict, label, why)))

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        return dict((await self._send(method, path, **request)).json())

    async def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        for tries_left in reversed(range(_TRIES)):
            response = await self._http.request(method, path, **request)
            if not response.is_error:
                break
            await asyncio.sleep(_pause(response, tries_left))
        return response


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _one(image: Image, *, artifacts: bool, stability: bool) -> dict[str, Any]:
    """The request for one image."""
    asked: dict[str, Any] = {"params": {"artifacts": artifacts, "stability": stability}}
    is_url = isinstance(image, str) and image.startswith(("http://", "https://"))
    return asked | ({"json": {"url": image}} if is_url else {"files": [_part(image)]})


def _many(images: Sequence[str | Path | bytes], *, artifacts: bool, stability: bool) -> dict[str, Any]:
    """The request for many."""
    asked = {"artifacts": str(artifacts).lower(), "stability": str(stability).lower()}
    return {"files": [_part(image) for image in images], "data": asked}


def _report(verdict: Verdict, label: str, why: str) -> dict[str, str]:
    return {"sha256": verdict["sha256"], "label": label, "why": why}


def _line(line: str) -> tuple[int, Verdict | Failed]:
    answer = json.loads(line)
    verdict: Verdict | None = answer.get("verdict")
    failed: Failed = {"error": answer.get("error")}
    return answer["index"], verdict or failed


def _verdict_in(answer: dict[str, Any]) -> Verdict | None:
    """The verdict that was asked for, or that of a job; None while the job runs.

    Raises:
        Refused: the job failed.
    """
    if "status" not in answer:
        return cast(Verdict, answer)
    if answer["status"] == "failed":
        raise Refused(answer["error"])
    return cast("Verdict | None", answer.get("verdict"))


def _pause(response: httpx.Response, tries_left: int) -> int:
    """How many seconds to wait before the request is made again.

    Raises:
        Refused: it would be in vain.
    """
    if not (tries_left and "Retry-After" in response.headers):
        raise Refused(response.json())
    return int(response.headers["Retry-After"])


def _part(image: str | Path | bytes) -> tuple[str, tuple[str, bytes]]:
    if isinstance(image, bytes):
        return "file", ("image", image)
    path = Path(image)
    return "file", (path.name, path.read_bytes())

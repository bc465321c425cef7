"""A Python client of the HTTP API in one file: copy it, or `from api.client import Client`. Needs httpx only.

client = Client("http://127.0.0.1:8000", key="imgv_…")
client.verify("photo.jpg")["tier"]
for index, answer in client.verify_many(["a.jpg", "b.png"]): ...
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import httpx

Image: TypeAlias = "str | Path | bytes"  # a URL or a path; a path; the file itself
Answer: TypeAlias = "dict[str, Any]"

_TRIES = 5  # of a request that a busy server put off
_POLL_SECONDS = 0.5


class Refused(Exception):
    """The server's problem details (RFC 9457). ``code`` is one of docs/errors.md."""

    def __init__(self, problem: Answer) -> None:
        super().__init__(f"{problem['code']}: {problem['detail']}")
        self.code: str = problem["code"]
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
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_seconds, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def verify(self, image: Image, *, artifacts: bool = False, stability: bool = False) -> Answer:
        """The verdict on one image, however long it takes.

        Args:
            stability: also find out whether the label holds; the work of five images.

        Raises:
            Refused: the image cannot be judged, or we may not ask.
            httpx.HTTPError: no server there.
        """
        asked = {"params": {"artifacts": artifacts, "stability": stability}}
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            answer = self._ask("POST", "/v1/verify", json={"url": image}, **asked)
        else:
            answer = self._ask("POST", "/v1/verify", files=[_part(image)], **asked)
        while answer.get("status") == "running":  # 202: the server's patience ended before the work
            time.sleep(_POLL_SECONDS)
            answer = self._ask("GET", answer["links"]["self"])
            if answer["status"] == "done":
                return dict(answer["verdict"])
            if answer["status"] == "failed":
                raise Refused(answer["error"])
        return answer

    def verify_many(
        self, images: Sequence[str | Path | bytes], *, artifacts: bool = False, stability: bool = False
    ) -> Iterator[tuple[int, Answer]]:
        """Index and answer, a verdict or ``{"error": …}``, of every file, as they are done.

        Raises:
            Refused: the whole batch is too large, or we may not ask.
        """
        asked = {"artifacts": str(artifacts).lower(), "stability": str(stability).lower()}
        request = {"files": [_part(image) for image in images], "data": asked}
        with self._http.stream("POST", "/v1/verify/batch", **request) as response:  # type: ignore[arg-type]
            if response.is_error:
                response.read()
                raise Refused(response.json())
            for line in filter(None, response.iter_lines()):
                answer = json.loads(line)
                yield answer["index"], answer.get("verdict") or {"error": answer["error"]}

    def artifact(self, verdict: Answer, name: str) -> bytes:
        """A heatmap (PNG), ``preview`` (JPEG) or ``report`` (HTML) of a verdict that was asked for with artifacts."""
        return self._send("GET", verdict["artifacts"][name]).content

    def models(self) -> Answer:
        """What judges there."""
        return self._ask("GET", "/v1/models")

    def _ask(self, method: str, path: str, **request: Any) -> Answer:
        return dict(self._send(method, path, **request).json())

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Comes back when a busy server says when."""
        for tries_left in reversed(range(_TRIES)):
            response = self._http.request(method, path, **request)
            if not response.is_error:
                break
            if not (tries_left and "Retry-After" in response.headers):
                raise Refused(response.json())
            time.sleep(int(response.headers["Retry-After"]))
        return response


def _part(image: str | Path | bytes) -> tuple[str, tuple[str, bytes]]:
    if isinstance(image, bytes):
        return "file", ("image", image)
    path = Path(image)
    return "file", (path.name, path.read_bytes())

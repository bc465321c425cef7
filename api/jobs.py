"""One image on its way to a verdict, as a client sees it. Knows neither HTTP nor who does the work."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self, TypeAlias, runtime_checkable

from utils.contracts import Json
from utils.errors import VerifyError
from utils.live_settings import Keeper, LiveSettings
from utils.releases import Release
from utils.settings import ModelSettings

Stage: TypeAlias = Literal["queued", "fetching", "decoding", "judging", "reporting", "done", "failed"]


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """What a caller sent. Exactly one of ``raw`` and ``url`` is there."""

    source: str  # a name for people
    raw: bytes | None = None
    url: str | None = None
    caller: str = ""  # whose it is; shares downloads with others


class Job:
    """Its id is the only key to it, to its verdict and to its artifacts: 128 random bits."""

    def __init__(self, source: str, job_id: str = "") -> None:
        self.id = job_id or secrets.token_hex(16)
        self.source = source
        self.verdict: dict[str, Json] | None = None
        self.error: VerifyError | None = None
        self.files: Mapping[str, Path] = {}  # artifact name -> file
        self.history: list[tuple[Stage, float]] = []
        self._began = time.monotonic()
        self._changed = asyncio.Event()
        self.advance("queued")

    @property
    def stage(self) -> Stage:
        return self.history[-1][0]

    @property
    def ended(self) -> bool:
        return self.stage in ("done", "failed")

    def advance(self, stage: Stage) -> None:
        self.history.append((stage, time.monotonic() - self._began))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def finish(self, verdict: dict[str, Json], files: Mapping[str, Path]) -> None:
        """Artifacts are named in the verdict by the addresses they are served under."""
        self.files = files
        named = {name.partition(".")[0]: f"/v1/verdicts/{self.id}/artifacts/{name}" for name in files}
        self.verdict = verdict | {"job_id": self.id, "artifacts": named}
        self.advance("done")

    def fail(self, error: VerifyError) -> None:
        self.error = error
        self.advance("failed")

    async def wait(self, seconds: float) -> bool:
        """Whether it ended within that time."""
        try:
            async with asyncio.timeout(seconds):
                while not self.ended:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.ended

    async def stages(self, idle_seconds: float) -> AsyncIterator[tuple[Stage, float] | None]:
        """Every stage and when it began, in seconds from the start; None after each idle time without a new one."""
        seen = 0
        while True:
            while seen < len(self.history):
                yield self.history[seen]
                seen += 1
            if self.ended:
                return
            try:
                async with asyncio.timeout(idle_seconds):
                    await self._changed.wait()
            except TimeoutError:
                yield None


class Backend(Protocol):
    """Who turns images into verdicts: this process (api/local.py), or workers behind Redis (api/queued.py)."""

    where: str  # "in process" or "workers"

    def adopt(self, release: Release, models: ModelSettings) -> None:
        """Judge with another release, from the next batch on; workers look for it themselves. Takes as long as loading.

        Raises:
            SetupError: it cannot be used; the old one goes on.
        """

    def configure(self, values: LiveSettings, models: ModelSettings) -> None:
        """Judge with these settings; workers look for them themselves."""

    async def submit(self, image: Image, *, artifacts: bool = False, stability: bool = False) -> Job:
        """
        Args:
            stability: also judge the image as delivered otherwise.

        Raises:
            QueueFull: no room; nothing was taken.
            QueueUnreachable: the queue's server does not answer.
        """

    async def find(self, job_id: str) -> Job:
        """
        Raises:
            NotFound: no such job, or not any more.
            QueueUnreachable: the queue's server does not answer.
        """

    async def trouble(self) -> str:
        """Why no image can be judged at the moment; empty when it can."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


@runtime_checkable
class SharesSettings(Protocol):
    """A backend whose workers share the settings that change at run time."""

    def keeper(self) -> Keeper: ...

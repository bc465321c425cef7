"""The release that judges: taken over while the process runs, between two batches. Knows no queue and no HTTP."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from utils.background import in_background
from utils.contracts import Sample
from utils.errors import VerifyError
from utils.releases import Release, store_at
from utils.settings import ModelSettings

if TYPE_CHECKING:
    from inference.detector import Judgement, Verifier  # it imports every measurement

V = TypeVar("V", bound="Verifier")

log = logging.getLogger(__name__)


class LiveVerifier(Generic[V]):
    """Judges with a verifier whose place another may take: not within a batch, and nobody waits for its loading."""

    def __init__(self, verifier: V) -> None:
        self.now = verifier
        self._judging = threading.Lock()

    def verify(
        self, samples: Sequence[Sample], job_ids: Sequence[str | None] | None = None, stability: Sequence[bool] = ()
    ) -> list[Judgement]:
        with self._judging:
            return self.now.verify(samples, job_ids, **({"stability": stability} if stability else {}))

    def replace(self, verifier: V) -> None:
        """Judge with another one from the next batch on. The present batch is waited for, then its models are freed."""
        with self._judging:
            old, self.now = self.now, verifier
        old.__exit__(None, None, None)

    def set_threshold(self, threshold: float | None) -> None:
        """Judge with another threshold of the label from the next batch on."""
        with self._judging:
            if self.now.threshold != threshold:
                self.now = self.now.with_threshold(threshold)


class Follower:
    """Looks which release the store points at, and hands each new one on."""

    def __init__(self, settings: ModelSettings, current: str, adopt: Callable[[Release], object]) -> None:
        """
        Args:
            current: the release that judges already.
            adopt: loads a release and judges with it; called on a thread. What it raises leaves the old one in place.
        """
        self._store = store_at(settings.release)
        self._adopt = adopt
        self.current = current

    def look(self) -> bool:
        """Whether another release was taken over. May take as long as models take to load.

        Raises:
            VerifyError: it cannot be; the old one stays.
        """
        pointer = self._store.pointer()
        if pointer.release == self.current:
            return False
        self._adopt(self._store.open(pointer.release, pointer.sha256))
        log.warning("release %s took the place of %s", pointer.release, self.current or "the installed models")
        self.current = pointer.release
        return True


@asynccontextmanager
async def following(
    settings: ModelSettings, current: str, adopt: Callable[[Release], object], failed: Callable[[], object] = int
) -> AsyncIterator[None]:
    """While inside, follow the store of the settings; without one, nothing is done.

    Args:
        failed: is told when a release could not be taken over.
    """
    if not settings.release:
        yield
        return
    follower = Follower(settings, current, adopt)

    async def follow() -> None:
        while True:
            await asyncio.sleep(settings.release_refresh_seconds)
            try:
                await asyncio.to_thread(follower.look)
            except VerifyError as error:
                log.error("%s; %s goes on judging", error, follower.current or "what was installed")
                failed()
            except Exception:
                log.exception("a release could not be taken over; %s goes on judging", follower.current)
                failed()

    async with in_background(follow(), "follow releases"):
        yield

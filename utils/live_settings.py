"""What may change while worker and API run: its names and checks, its history, and where it is kept.

A change is kept as one JSON value, whole and with those before it, so that one call undoes it. Whoever runs looks at it
now and then (``following``). Applies nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.background import in_background
from utils.contracts import Json
from utils.errors import BadRequest, VerifyError

log = logging.getLogger(__name__)

REMEMBERED = 20  # earlier states that undoing may return to


class LiveSettings(BaseModel):
    """Each overrides a setting of the same meaning; null: the setting's own value holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float | None = Field(None, ge=0, le=1, description="label is AI from this probability")
    profile: str | None = Field(None, max_length=100, description="of jobs that name none; one that workers run")
    rate_per_minute: int | None = Field(None, gt=0, le=2**40, description="images one caller may send to the API")
    batch_images: int | None = Field(None, gt=0, le=2**40, description="images in one batch request")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None = Field(None, description="of workers and API")
    release: str | None = Field(None, max_length=100, description="of the store of IMGV_RELEASE; its pointer is moved")


class State(BaseModel):
    """The settings that hold now, and those before, newest first."""

    version: int = 0
    values: LiveSettings = LiveSettings()
    by: str = ""  # whose key
    at: str = ""  # ISO 8601, UTC
    earlier: tuple[LiveSettings, ...] = ()

    def changed(self, given: Mapping[str, Json], by: str, release: str = "") -> State:
        """
        Args:
            given: the settings to change, by name.
            release: that judges, to return to where the change names another.

        Raises:
            BadRequest: a name or value that is not understood.
        """
        try:
            values = LiveSettings.model_validate(self.values.model_dump() | dict(given))
        except ValidationError as error:
            first = error.errors()[0]
            raise BadRequest(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        before = (
            self.values.model_copy(update={"release": release}) if given.get("release") and release else self.values
        )
        return self._next(values, by, (before, *self.earlier)[:REMEMBERED])

    def undone(self, by: str) -> State:
        """
        Raises:
            BadRequest: nothing was changed.
        """
        if not self.earlier:
            raise BadRequest("nothing is left to undo: every setting is as the environment has it")
        return self._next(self.earlier[0], by, self.earlier[1:])

    def _next(self, values: LiveSettings, by: str, earlier: tuple[LiveSettings, ...]) -> State:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return State(version=self.version + 1, values=values, by=by, at=at, earlier=earlier)


class Keeper(Protocol):
    """Where the state is kept."""

    async def read(self) -> State: ...

    async def write(self, state: State) -> bool:
        """Whether it was written: not where another change came between, by its version."""
        ...


class MemoryKeeper:
    """Of an API that judges by itself: until it ends."""

    def __init__(self) -> None:
        self._state = State()

    async def read(self) -> State:
        return self._state

    async def write(self, state: State) -> bool:
        if state.version != self._state.version + 1:
            return False
        self._state = state
        return True


@asynccontextmanager
async def following(keeper: Keeper, apply: Callable[[LiveSettings], object], seconds: float) -> AsyncIterator[None]:
    """While inside, hand on what holds to ``apply``, which is called in a thread: at once, and after each change."""
    known = 0

    async def look() -> None:
        nonlocal known
        state = await keeper.read()
        if state.version != known:
            await asyncio.to_thread(apply, state.values)
            log.warning("settings of version %d hold: %s", state.version, shown(state.values))
            known = state.version

    async def follow() -> None:
        while True:
            try:
                await look()
            except (VerifyError, OSError, ValidationError) as error:
                log.error("settings at run time cannot be read; those that hold go on: %s", error)
            except Exception:
                log.exception("settings at run time cannot be applied; those that hold go on")
            await asyncio.sleep(seconds)

    async with in_background(follow(), "follow settings"):
        yield


def shown(values: LiveSettings) -> str:
    """For the log: those that override."""
    return (
        ", ".join(f"{name}={value}" for name, value in values.model_dump(exclude_none=True).items()) or "none changed"
    )

"""GET and PATCH /v1/config: what may change while workers and API run. IMGV_API_ADMINS names who may call it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from api.documents import PROBLEMS, body_of, inlined
from api.intake import read_json_object
from api.server import Server, server_of
from utils.errors import BadRequest, Conflict, Forbidden, ReleaseUnusable
from utils.live_settings import Keeper, LiveSettings, State, shown
from utils.releases import store_at
from utils.settings import Settings
from utils.verdict_json import dump

log = logging.getLogger(__name__)

router = APIRouter(responses=PROBLEMS, tags=["about"])


class Config(BaseModel):
    """The settings at run time."""

    version: int = Field(description="how often they were changed")
    values: dict[str, Any] = Field(description="what holds now, by name")
    changed: list[str] = Field(description="of these, what differs from the environment's settings by a change")
    by: str = Field(description="whose key made the last change")
    at: str = Field(description="when, ISO 8601")
    can_undo: int = Field(description="how many changes can be undone")


class Configurator:
    """Changes what holds, one change at a time.

    Args:
        apply: to this process, at once; others look for themselves.
    """

    def __init__(self, settings: Settings, keeper: Keeper, apply: Callable[[LiveSettings], None]) -> None:
        self.keeper = keeper
        self.apply = apply
        self._settings = settings

    async def now(self) -> Config:
        return self._shown(await self.keeper.read())

    async def change(self, given: dict[str, Any], by: str) -> Config:
        """
        Raises:
            BadRequest: a name or value that is not understood or does not fit this installation.
            ReleaseUnusable: a release that the store does not have, or that cannot be promoted from here.
            Conflict: another change came between.
        """
        state = await self.keeper.read()
        new = state.changed(given, by, self._judging())
        self._check(new.values)
        return await self._keep(state, new, given.get("release"))

    async def undo(self, by: str) -> Config:
        """
        Raises:
            BadRequest: nothing is left to undo.
            ReleaseUnusable, Conflict: as ``change``.
        """
        state = await self.keeper.read()
        new = state.undone(by)
        return await self._keep(state, new, new.values.release if new.values.release != state.values.release else None)

    def _check(self, values: LiveSettings) -> None:
        known = (self._settings.models.profile, *self._settings.queue.profiles)
        if values.profile is not None and values.profile not in known:
            raise BadRequest(
                f"profile: {values.profile!r} does not run here; IMGV_QUEUE_PROFILES has {', '.join(known)}"
            )
        if values.release is not None and not self._settings.models.release:
            raise BadRequest("release: this installation follows no store; set IMGV_RELEASE")

    async def _keep(self, old: State, new: State, release: str | None) -> Config:
        """Keep a change, then promote the release that it names; if that fails, the settings are as they were."""
        if not await self.keeper.write(new):
            raise Conflict("another change came between; look at GET /v1/config and try again")
        if release:
            try:
                await asyncio.to_thread(self._promote, release)
            except Exception:
                await self.keeper.write(old.model_copy(update={"version": new.version + 1}))
                raise
        await asyncio.to_thread(self.apply, new.values)
        log.warning("settings at run time: version %d by %s: %s", new.version, new.by, shown(new.values))
        log.info("before: %s", shown(old.values))
        return self._shown(new)

    def _judging(self) -> str:
        store = self._settings.models.release
        return store_at(store).judging() if store else ""

    def _promote(self, release: str) -> None:
        try:
            store_at(self._settings.models.release).promote(release)
        except OSError as error:
            raise ReleaseUnusable(
                f"the store cannot be written from here ({error.strerror}): lifecycle.registry promote {release}"
            ) from error

    def _shown(self, state: State) -> Config:
        settings, changed = self._settings, state.values.model_dump(exclude_none=True)
        own = {
            "threshold": settings.models.threshold,
            "profile": settings.models.profile,
            "rate_per_minute": settings.api.rate_per_minute,
            "batch_images": settings.api.batch_images,
            "log_level": settings.log.level,
            "release": self._judging() or None,
        }
        own |= {name: value for name, value in changed.items() if name != "release"}
        return Config(
            version=state.version,
            values=own,
            changed=sorted(changed),
            by=state.by,
            at=state.at,
            can_undo=len(state.earlier),
        )


def _admin(request: Request) -> tuple[Server, str]:
    """
    Raises:
        Forbidden: the key lacks the right.
    """
    server, caller = server_of(request), str(request.state.caller)
    if caller not in server.settings.admins:
        raise Forbidden("this key may not see or change settings; IMGV_API_ADMINS names those that may")
    return server, caller


def _json(config: Config) -> Response:
    return Response(dump(config.model_dump()), media_type="application/json")


@router.get("/v1/config", summary="Settings that may change at run time", response_model=Config)
async def get_config(request: Request) -> Response:
    server, _ = _admin(request)
    return _json(await server.config.now())


@router.patch(
    "/v1/config",
    summary="Change settings at run time",
    response_model=Config,
    openapi_extra=body_of({"application/json": inlined(LiveSettings.model_json_schema())}),
)
async def patch_config(request: Request) -> Response:
    """Only what is given changes; null returns to the environment's value. Workers follow within seconds."""
    server, caller = _admin(request)
    return _json(await server.config.change(await read_json_object(request), caller))


@router.post("/v1/config/undo", summary="Take the last change of settings back", response_model=Config)
async def undo_config(request: Request) -> Response:
    server, caller = _admin(request)
    return _json(await server.config.undo(caller))

"""The API follows a store of releases: opened once at the start, and told as changed only when it is."""

import asyncio
import logging
import shutil

import httpx
import pytest

import inference.detector
from api.app import create_app
from models.loaders import SHIPPED
from tests.api.conftest import Watched, settings_of
from utils.profiles import DEFAULT_PROFILE, PROFILES
from utils.releases import FUSION, Store, seal


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    for name in ("one", "two"):
        shutil.copytree(SHIPPED / PROFILES[DEFAULT_PROFILE].fusion, tmp_path / name / FUSION)
        sealed = seal(tmp_path / name, name, profile=DEFAULT_PROFILE, code="", data="", weights={})
        store.publish(sealed)
    store.promote("one")
    return store


@pytest.mark.parametrize("redis_url", ["", "redis://127.0.0.1:1/0"], ids=["in process", "workers"])
def test_a_release_is_opened_once_and_followed_when_another_is_promoted(store, monkeypatch, caplog, redis_url):
    opened, built, opens = [], [], Store.open
    monkeypatch.setattr(Store, "open", lambda self, name, sha256="": opened.append(name) or opens(self, name, sha256))
    monkeypatch.setattr(
        inference.detector, "build_verifier", lambda _, release: built.append(release.name) or Watched()
    )
    caplog.set_level(logging.INFO, "inference.live")
    app = create_app(settings_of(release=str(store.folder), release_refresh_seconds=0.02, redis_url=redis_url))

    async def work():
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
        ):

            async def judging():
                return (await client.get("/v1/models")).json()["release"]

            await asyncio.sleep(0.3)  # it looks many times
            before = await judging(), list(opened), list(caplog.messages)
            opened.clear()
            store.promote("two")
            async with asyncio.timeout(20):
                while await judging() != "two":
                    await asyncio.sleep(0.02)
            return before

    release, at_start, told = asyncio.run(work())
    assert (release, at_start, told) == ("one", ["one"], [])
    assert caplog.messages == ["release two took the place of one"]
    assert built == ([] if redis_url else ["one", "two"])

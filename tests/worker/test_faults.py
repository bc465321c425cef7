"""Workers and servers that die, freeze and forget, with real processes and signals."""

import asyncio
import collections
import os
import signal
import time

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from tests.worker.conftest import LEASE, eventually, results
from worker.connect import connect
from worker.rights import warn_of_eviction
from worker.stream import Ending, Queue


def begun(tmp_path):
    path = tmp_path / "begun"
    return collections.Counter(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else {}


def on_server(server, keys, scenario):
    """Run a coroutine function with two consumers, A and B, of one group."""

    async def main():
        async with connect(server.url) as client:
            pair = [
                Queue(client, keys, name, lease_seconds=LEASE, attempts=3, streams=keys.streams[1:2]) for name in "AB"
            ]
            await pair[0].ensure()
            return await scenario(*pair)

    return asyncio.run(main())


def test_a_job_of_a_killed_worker_is_done_within_two_leases(db, keys, start_process, tmp_path):
    workers = {process.pid: process for process in (start_process(), start_process())}
    db.xadd(keys.streams[1], {"image": "sleep 0.5", "job_id": "long"})
    eventually(lambda: begun(tmp_path))
    workers[int((tmp_path / "begun").read_text().split()[1])].kill()
    killed = time.monotonic()
    eventually(lambda: begun(tmp_path)["long"] == 2)
    assert time.monotonic() - killed < 2 * LEASE
    eventually(lambda: results(db, keys) == {"long": ["ok"]})


def test_a_job_five_leases_long_starts_once(db, keys, start_process, tmp_path):
    start_process()
    start_process()
    db.xadd(keys.streams[1], {"image": f"sleep {5 * LEASE}", "job_id": "long"})
    eventually(lambda: results(db, keys) == {"long": ["ok"]})
    assert begun(tmp_path) == {"long": 1}


def test_an_image_that_kills_its_workers_is_buried_while_the_rest_flows(db, keys, start_process, tmp_path):
    """Neighbours that were held when it struck are not condemned with it."""
    for number in range(10):
        db.xadd(keys.streams[1], {"image": "ok", "job_id": f"before-{number}"})
    db.xadd(keys.streams[1], {"image": "kill", "job_id": "poison"})
    for number in range(10):
        db.xadd(keys.streams[1], {"image": "ok", "job_id": f"after-{number}"})
    running = []

    def done():
        running[:] = [each for each in running if each.poll() is None] or [start_process(QUEUE_ATTEMPTS=3)]
        return len(results(db, keys)) == 21

    eventually(done, 120)  # five processes start one after the other, on a busy machine in seconds each
    assert begun(tmp_path)["poison"] == 3
    found = results(db, keys)
    assert found.pop("poison") == ["error"]
    assert set(map(tuple, found.values())) == {("ok",)}
    (letter,) = [fields for _, fields in db.xrange(keys.dead)]
    assert (letter[b"dead.reason"], letter[b"dead.attempts"]) == (b"worker_lost", b"3")


def test_a_frozen_worker_can_neither_answer_nor_acknowledge(server, db, keys):
    async def scenario(a, b):
        await a.client.xadd(a.streams[0], {"image": "ok"})
        (stale,) = await a.take(1, 1000)
        await asyncio.sleep(LEASE * 1.1)
        (taken,) = await b.reclaim([], 1, 1000, True)
        assert (taken.id, taken.deliveries) == (stale.id, 2)
        assert await a.renew([stale.key]) == [stale.key]
        refused, _ = await a.settle([Ending(stale, "x", "ok", "{}")])
        assert len(refused) == 1
        assert not await a.retry(stale, 0, {})
        assert await a.client.xlen(a.keys.results) == 0
        refused, _ = await b.settle([Ending(taken, "x", "ok", "{}")])
        assert not refused
        refused, _ = await b.settle([Ending(taken, "x", "ok", "{}")])  # again, after a lost reply
        assert len(refused) == 1
        assert await a.client.xlen(a.keys.results) == 1

    on_server(server, keys, scenario)


def test_a_delivery_that_was_lost_on_the_way_is_taken_again_by_the_same_worker(server, keys):
    async def scenario(a, _):
        await a.client.xadd(a.streams[0], {"image": "ok"})
        await a.take(1, 1000)  # as if the reply had not arrived
        await asyncio.sleep(LEASE * 1.1)
        assert await a.reclaim([], 1, 1000, True)

    on_server(server, keys, scenario)


def test_what_is_in_hand_is_not_taken_again(server, keys):
    async def scenario(a, _):
        await a.client.xadd(a.streams[0], {"image": "ok"})
        (entry,) = await a.take(1, 1000)
        await asyncio.sleep(LEASE * 1.1)
        assert await a.reclaim([entry.key], 1, 1000, True) == []

    on_server(server, keys, scenario)


def test_suspects_are_held_one_at_a_time(server, keys):
    async def scenario(a, b):
        for _ in range(3):
            await a.client.xadd(a.streams[0], {"image": "ok"})
        await a.take(3, 1000)
        await asyncio.sleep(LEASE * 1.1)
        assert len(await b.reclaim([], 10, 1000, True)) == 3  # second of three attempts
        await asyncio.sleep(LEASE * 1.1)
        (suspect,) = await a.reclaim([], 10, 1000, True)
        assert suspect.deliveries == 3
        assert await a.reclaim([suspect.key], 10, 1000, False) == []

    on_server(server, keys, scenario)


def test_jobs_handed_back_unbegun_do_not_count_as_tried(server, keys):
    async def scenario(a, b):
        for _ in range(2):
            await a.client.xadd(a.streams[0], {"image": "ok"})
        begun, _ = await a.take(2, 1000)
        assert await a.hand_back([begun.key]) == 2
        again = await b.reclaim([], 10, 1000, True)  # at once, no lease has to run out
        assert [entry.deliveries for entry in again] == [2, 1]

    on_server(server, keys, scenario)


def test_a_consumer_that_owns_jobs_is_never_forgotten(server, keys):
    async def scenario(a, b):
        await a.client.xadd(a.streams[0], {"image": "ok"})
        await a.take(1, 1000)
        await b.client.xgroup_createconsumer(a.streams[0], "workers", "B")  # before 7.2 an empty read makes none
        assert await b.forget_consumers(0) == 1
        names = [row["name"] for row in await a.client.xinfo_consumers(a.streams[0], "workers")]
        assert names == [b"A"]

    on_server(server, keys, scenario)


def test_a_lost_group_is_made_again_and_nothing_is_skipped(db, keys, start_process):
    for _ in range(2):
        start_process()
    db.xadd(keys.streams[1], {"image": "sleep 1", "job_id": "in-hand"})
    eventually(lambda: db.xpending(keys.streams[1], "workers")["pending"])
    with db.pipeline() as both:
        both.xgroup_destroy(keys.streams[1], "workers")
        both.xadd(keys.streams[1], {"image": "ok", "job_id": "next"})
        both.execute()
    db.xadd(keys.streams[1], {"image": "ok", "job_id": "later"})
    eventually(lambda: len(db.xrange(keys.results)) >= 2)
    eventually(lambda: db.xlen(keys.streams[1]) == 0)
    found = results(db, keys)
    assert found["next"] == found["later"] == ["ok"]


def test_a_server_that_is_killed_and_comes_back_loses_nothing(own_server, keys, start_process):
    with redis.Redis.from_url(own_server.url) as db:
        worker = start_process(own_server.url)
        db.xadd(keys.streams[1], {"image": "sleep 1.5", "job_id": "running"})
        for number in range(20):
            db.xadd(keys.streams[1], {"image": "ok", "job_id": str(number)})
        eventually(lambda: len(results(db, keys)) == 20)
    time.sleep(1.1)  # appendfsync everysec
    own_server.kill()
    time.sleep(0.5)
    own_server.start()
    patient = Retry(ConstantBackoff(0.05), 100, (redis.BusyLoadingError,))  # it reads its file back
    with redis.Redis.from_url(own_server.url, retry=patient) as db:
        db.xadd(keys.streams[1], {"image": "ok", "job_id": "after"})
        found = eventually(lambda: len(results(db, keys)) == 22 and results(db, keys))
        assert set(map(tuple, found.values())) == {("ok",)}
    assert worker.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_runs_and_ends_with_zero(db, keys, start_process, number):
    worker = start_process()
    db.xadd(keys.streams[1], {"image": "sleep 0.8", "job_id": "running"})
    eventually(lambda: db.xpending(keys.streams[1], "workers")["pending"])
    worker.send_signal(number)
    assert worker.wait(10) == 0
    assert results(db, keys) == {"running": ["ok"]}


def test_what_does_not_end_within_the_grace_is_handed_back(db, keys, start_process, tmp_path):
    worker = start_process(QUEUE_DRAIN_SECONDS=0.3, QUEUE_LEASE_SECONDS=20)
    db.xadd(keys.streams[1], {"image": "sleep 2", "job_id": "long"})
    eventually(lambda: begun(tmp_path))
    worker.terminate()
    assert worker.wait(10) == 0
    (row,) = db.xpending_range(keys.streams[1], "workers", "-", "+", 10)
    assert row["time_since_delivered"] >= 20_000


def test_a_second_signal_ends_at_once(db, keys, start_process, tmp_path):
    worker = start_process()
    db.xadd(keys.streams[1], {"image": "sleep 20", "job_id": "long"})
    eventually(lambda: begun(tmp_path))
    worker.terminate()
    time.sleep(0.3)
    worker.terminate()
    assert worker.wait(2) == 130


def test_a_worker_frozen_past_its_lease_adds_no_second_answer(db, keys, start_process, tmp_path):
    frozen = start_process()
    db.xadd(keys.streams[1], {"image": "sleep 0.3", "job_id": "once"})
    eventually(lambda: begun(tmp_path))
    os.kill(frozen.pid, signal.SIGSTOP)
    start_process()
    eventually(lambda: results(db, keys))
    os.kill(frozen.pid, signal.SIGCONT)
    db.xadd(keys.streams[1], {"image": "ok", "job_id": "more"})
    eventually(lambda: len(results(db, keys)) == 2)
    time.sleep(0.5)
    assert results(db, keys) == {"once": ["ok"], "more": ["ok"]}


def readonly(db):
    db.execute_command("REPLICAOF", "127.0.0.1", "1")  # of nobody, so it keeps what it has


def writable(db):
    db.execute_command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (readonly, writable),
        (lambda db: db.config_set("maxmemory", 1), lambda db: db.config_set("maxmemory", 0)),
        (lambda db: None, lambda db: None),
    ],
    ids=["read-only", "full", "at a standstill"],
)
def test_a_server_that_refuses_or_stands_still_for_several_leases_costs_no_answer(
    own_server, keys, start_process, begin, end, request
):
    """As after a failover to a replica, without memory, or during a slow command."""
    with redis.Redis.from_url(own_server.url) as db:
        workers = [start_process(own_server.url) for _ in range(2)]
        for number in range(12):
            db.xadd(keys.streams[1], {"image": f"sleep {number / 4}", "job_id": str(number)})
        eventually(lambda: db.xpending(keys.streams[1], "workers")["pending"])
        begin(db)
        if "standstill" in request.node.name:
            os.kill(own_server.pid, signal.SIGSTOP)
        time.sleep(4 * LEASE)
        os.kill(own_server.pid, signal.SIGCONT)
        end(db)
        found = eventually(lambda: len(results(db, keys)) == 12 and results(db, keys), 40)
        assert set(map(tuple, found.values())) == {("ok",)}
        assert [worker.poll() for worker in workers] == [None, None]
        assert db.xlen(keys.dead) == 0


def test_a_server_that_may_evict_jobs_is_named_at_the_start(own_server, caplog):
    with redis.Redis.from_url(own_server.url) as db:
        db.config_set("maxmemory-policy", "allkeys-lru")

    async def main():
        async with connect(own_server.url) as client:
            await warn_of_eviction(client)

    asyncio.run(main())
    assert "may evict jobs and answers (maxmemory-policy allkeys-lru)" in caplog.text

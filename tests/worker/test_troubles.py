"""One job's, one key's and one right's trouble: the rest goes on, and the trouble is named."""

import asyncio
import contextlib
import json
import time

import pytest
import redis
from pydantic import SecretStr

from tests.worker.conftest import LEASE, answered, results
from tests.worker.work import Obedient, obedient
from utils.errors import BadSettings, FetchFailed
from utils.settings import Settings
from worker import admin, submit
from worker.connect import connect
from worker.embedded import EmbeddedServer
from worker.jobs import MOST_FIELDS
from worker.rights import check_rights, producer_needs
from worker.service import build_service
from worker.stream import Keys, Queue, aside, script

SECRET = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
LUA_LIMIT = 8000  # about what Lua's unpack() takes


class Fetching(Obedient):
    """Every URL fails."""

    def _outcome(self, job, command):
        return FetchFailed("the server answered 503") if job.url else super()._outcome(job, command)


@contextlib.asynccontextmanager
async def fetching(settings, metrics, *_):
    yield Fetching()


# ------------------------------------------------------------------------------------------- one job stops no other one


@pytest.mark.parametrize("name", ["note", None])
def test_a_message_of_thousands_of_fields_is_refused_and_the_retries_of_others_go_on(
    db, keys, server, run_worker, name
):
    """Also when it is one name, repeated: it counts once in a dict."""
    many = [part for number in range(LUA_LIMIT) for part in (name or str(number), "x")]
    db.execute_command("XADD", keys.streams[1], "*", "source", "https://host.org/a.png", "job_id", "many", *many)
    for number in range(3):
        db.xadd(keys.streams[1], {"source": "https://host.org/a.png", "job_id": f"url-{number}"})
    found, _ = run_worker(fetching, lambda service: answered(service, server.url, keys, 4), queue_attempts=3)
    assert found == {name: ["error"] for name in ("many", "url-0", "url-1", "url-2")}
    error = json.loads(db.get(keys.verdict("many")))["error"]
    assert error["code"] == "bad_message"
    assert str(MOST_FIELDS) in error["message"]
    assert json.loads(db.get(keys.verdict("url-0")))["error"]["code"] == "fetch_failed"
    assert db.xlen(keys.dead) == 3


@pytest.mark.parametrize("way", ["waiting", "taken"])
def test_repeated_fields_count_however_an_entry_is_read(server, keys, way):
    """A reader that waits and one that finds entries ask by different commands."""
    flat = [part for _ in range(MOST_FIELDS + 1) for part in ("note", "x")]

    async def main():
        async with connect(server.url) as client:
            queue = Queue(client, keys, "A", lease_seconds=LEASE, attempts=3)
            await queue.ensure()
            await client.execute_command("XADD", keys.streams[1], "*", *flat)
            (entry,) = await (queue.wait(100) if way == "waiting" else queue.take(5, 1 << 20))
            return entry

    entry = asyncio.run(main())
    assert (entry.pairs, entry.fields) == (MOST_FIELDS + 1, {b"note": b"x"})


@pytest.mark.parametrize("payload", [b"\xc1 no message pack", b"\x92\xa1a\x90", None, "long"])
def test_a_delayed_job_that_cannot_be_read_back_is_buried_alone(db, keys, server, run_worker, payload):
    """Damaged, of the wrong types, gone; and one that an older version wrote, longer than Lua can unpack."""
    low = keys.streams[2]
    if payload == "long":
        pack = "return cmsgpack.pack(ARGV)"
        payload = db.eval(pack, 0, "job_id", "old", *(str(number) for number in range(2 * LUA_LIMIT)))
    for number, content in enumerate((payload, db.eval("return cmsgpack.pack(ARGV)", 0, "image", "ok"))):
        db.zadd(f"{low}:delayed", {f"2:{number + 1}-1": 1 + number})
        if content is not None:
            db.hset(f"{low}:delayed:payloads", f"2:{number + 1}-1", content)
    found, _ = run_worker(obedient(), lambda service: answered(service, server.url, keys, 2))
    assert sorted(status for [status] in found.values()) == ["error", "ok"]
    (letter,) = [fields for _, fields in db.xrange(keys.dead)]
    assert letter[b"dead.reason"] == b"unreadable"
    assert db.zcard(f"{low}:delayed") == db.hlen(f"{low}:delayed:payloads") == 0


def test_a_retry_that_was_delayed_before_the_servers_clock_was_set_back_comes_back_soon(db, keys, server, run_worker):
    low, hour_ms = keys.streams[2], 3_600_000
    db.zadd(f"{low}:delayed", {"2:1-1": db.time()[0] * 1000 + hour_ms})
    db.hset(f"{low}:delayed:payloads", "2:1-1", db.eval("return cmsgpack.pack(ARGV)", 0, "image", "ok", "job_id", "a"))
    found, _ = run_worker(obedient(), lambda service: answered(service, server.url, keys, 1))
    assert found == {"a": ["ok"]}


def test_a_dead_letter_of_thousands_of_fields_can_be_replayed(db, keys, server, run_worker, monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("IMGV_QUEUE_PREFIX", keys.prefix)
    many = [str(number) for number in range(2 * LUA_LIMIT)]
    facts = ("dead.job_id", "x", "dead.stream", keys.streams[1])
    letter = db.execute_command("XADD", keys.dead, "*", *facts, "image", "ok", *many)
    assert admin.main(["dead", "replay", letter.decode()]) == 0
    assert db.xlen(keys.dead) == 0
    found, _ = run_worker(obedient(), lambda service: answered(service, server.url, keys, 1))
    assert found == {"x": ["error"]}


def test_a_producer_cannot_add_more_than_lua_can_pass_on(server, keys):
    async def main():
        async with connect(server.url) as client:
            fields = {str(number): "x" for number in range(LUA_LIMIT)}
            await submit.enqueue(client, Settings.of(queue_prefix=keys.prefix).queue, "a", fields)

    with pytest.raises(redis.exceptions.ResponseError, match="too many fields"):
        asyncio.run(main())


def test_every_unpack_is_bounded():
    """Of fields that `merged` cut, of a slice, or of a table whose length stands beside it."""
    bounded = ("unpack(fields)", "unpack((merged(", "unpack(read(", "unpack(ended, from,", "unpack(command)",
               "unpack(written)", "cmsgpack.unpack")  # fmt: skip
    for name in ("enqueue", "promote", "renew", "replay", "retry", "settle", "flush", "take", "reclaim", "hand_back"):
        for line in script(name).text.splitlines():
            code = line.partition("--")[0]
            assert "unpack" not in code or any(each in code for each in bounded), f"{name}: {line}"


# ------------------------------------------------------------------------------------- one key stops none of the rest


def misuse(db, key):
    """Somebody else's value under a key of ours."""
    db.delete(key)
    db.set(key, "foreign")


@pytest.mark.parametrize("broken", [0, 2])
def test_a_foreign_value_under_one_stream_leaves_the_others_working(db, keys, server, run_worker, broken, capsys):
    """At the start and while it works; the stream is served again when it is repaired."""
    misuse(db, keys.streams[broken])

    async def during(service):
        for number in range(8):
            db.xadd(keys.streams[1], {"image": "ok", "job_id": f"first-{number}"})
        assert len(await answered(service, server.url, keys, 8, 5)) == 8
        db.delete(keys.streams[broken])
        db.xadd(keys.streams[broken], {"image": "ok", "job_id": "repaired"})
        assert len(await answered(service, server.url, keys, 9, 10)) == 9
        misuse(db, keys.streams[broken])
        db.xadd(keys.streams[1], {"image": "transient", "job_id": "retried"})
        return await answered(service, server.url, keys, 10, 10), service.loop.queue.unusable

    (found, unusable), failure = run_worker(obedient(), during, queue_attempts=2)
    assert failure is None
    assert set(found) == {*(f"first-{number}" for number in range(8)), "repaired", "retried"}
    assert set(unusable) <= {keys.streams[broken]}


def test_the_metric_the_log_and_the_status_name_the_key(db, keys, server, run_worker, caplog):
    async def during(service):
        misuse(db, keys.results)
        await until(lambda: service.loop.queue.unusable)
        async with connect(server.url) as client:
            return service.metrics.render([], 0, service.loop.queue.unusable), await admin.status(client, keys)

    (page, status), _ = run_worker(obedient(), during)
    assert f'imgv_unusable_keys{{key="{keys.results}"}} 1.0' in page
    assert status["unusable"] == {keys.results: "holds a string, not a stream; rename or delete it"}
    assert (status["results"], status["dead"]) == (None, 0)
    assert any(keys.results in record.getMessage() for record in caplog.records if record.levelname == "ERROR")


@pytest.mark.parametrize("part", ["results", "dead", "callbacks"])
def test_what_cannot_be_written_is_kept_and_written_later(db, keys, server, run_worker, part):
    """Jobs are answered by key meanwhile, and every answer, dead letter and callback is there in the end, once."""
    key = getattr(keys, part)

    async def during(service):
        misuse(db, key)
        for number in range(11):
            fields = {"image": "transient", "job_id": str(number), "callback_url": "http://127.0.0.1/cb"}
            db.xadd(keys.streams[1], fields)
        await until(lambda: all(db.exists(keys.verdict(str(number))) for number in range(11)))
        db.delete(key)
        await until(lambda: len(results(db, keys)) == 11)
        # The address is not public, so each callback becomes a dead letter, too.
        await until(lambda: db.xlen(keys.dead) == 22)

    run_worker(obedient(), during, queue_attempts=2, callback_secret=SECRET)
    assert results(db, keys) == {str(number): ["error"] for number in range(11)}
    assert db.xlen(aside(key)) == 0


def test_a_retry_that_cannot_be_put_aside_comes_with_the_lease(db, keys, server, run_worker):
    misuse(db, f"{keys.streams[2]}:delayed")
    db.xadd(keys.streams[1], {"image": "transient", "job_id": "down"})
    db.xadd(keys.streams[1], {"image": "ok", "job_id": "up"})
    found, _ = run_worker(obedient(), lambda service: answered(service, server.url, keys, 2), queue_attempts=3)
    assert found == {"up": ["ok"], "down": ["error"]}
    assert db.xrange(keys.dead)[0][1][b"dead.attempts"] == b"3"


def test_a_foreign_value_under_an_answers_key_does_not_hide_the_answer(db, keys, server, run_worker):
    db.rpush(keys.verdict("mine"), "foreign")
    db.xadd(keys.streams[1], {"image": "ok", "job_id": "mine"})
    found, _ = run_worker(obedient(), lambda service: answered(service, server.url, keys, 1))
    assert found == {"mine": ["ok"]}
    assert json.loads(db.get(keys.verdict("mine"))) == {"job_id": "mine"}


def test_submit_gets_its_answers_by_key_while_the_results_stream_is_not_ours(
    db, keys, start_process, monkeypatch, server, capsys, tmp_path
):
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("IMGV_QUEUE_PREFIX", keys.prefix)
    misuse(db, keys.results)
    start_process()
    (tmp_path / "a.png").write_bytes(b"ok")
    assert submit.main(["--json", str(tmp_path / "a.png")]) == 0
    assert "job_id" in capsys.readouterr().out


# -------------------------------------------------------------------------------- rights are tried before the first job

ALL = ("+@all", "~*", "&*")


@pytest.fixture
def user(db, server):
    """A login with some rules; the URL to use it."""

    def make(*rules):
        db.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", *rules)
        return f"unix://limited:secret@{server.folder}/server.sock"

    yield make
    db.execute_command("ACL", "DELUSER", "limited")


def start(settings, url, **changed):
    changed = {"callback_secret": SECRET, "queue_cache_seconds": 60} | changed
    return asyncio.run(build_service(Settings.of(**settings | changed), url, _never).run())


@contextlib.asynccontextmanager
async def _never(*_):
    pytest.fail("models were loaded before the rights were known")
    yield


# fmt: off
COMMANDS = ["publish", "eval", "evalsha", "set", "get", "xadd", "xdel", "xack", "xclaim", "xpending", "xreadgroup",
            "xtrim", "xrange", "xlen", "zadd", "zrem", "hset", "hget", "hdel", "zrangebyscore", "type", "time"]
# fmt: on


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_forbidden_is_named_before_the_start(settings, user, command):
    with pytest.raises(BadSettings, match=rf"lacks \+{command};"):
        start(settings, user(*ALL, f"-{command}"))


@pytest.mark.parametrize("name", ["results", "dead", "callbacks", "jobs:high", "jobs:low:delayed", "verdict:*"])
def test_a_key_that_is_forbidden_is_named_before_the_start(settings, user, keys, name):
    every = ("jobs", "jobs:high", "jobs:low", "jobs:low:delayed", "jobs:low:delayed:payloads", "results", "dead",
             "results:aside", "dead:aside", "callbacks:aside", "callbacks", "callbacks:delayed",
             "callbacks:delayed:payloads", "verdict:*", "cached:*")  # fmt: skip
    patterns = [f"~{keys.prefix}:{each}" for each in every if each != name]
    with pytest.raises(BadSettings) as refusal:
        start(settings, user("+@all", "&*", *patterns))
    assert f"lacks ~{keys.prefix}:{name};" in str(refusal.value)


def test_a_channel_that_is_forbidden_is_named_before_the_start(settings, user, keys):
    with pytest.raises(BadSettings) as refusal:
        start(settings, user("+@all", "~*", "resetchannels"))
    assert f"lacks &{keys.prefix}:*;" in str(refusal.value)


def test_trying_the_rights_leaves_nothing_behind_and_takes_no_job(db, keys, server, run_worker, user):
    db.xadd(keys.streams[1], {"image": "ok", "job_id": "a"})
    before = set(db.scan_iter(f"{keys.prefix}*"))

    async def main():
        async with connect(user(*ALL)) as client:
            await check_rights(client, producer_needs(keys))
            queue = Queue(client, keys, "A", lease_seconds=LEASE, attempts=3)
            assert queue.unusable == {}

    asyncio.run(main())
    assert set(db.scan_iter(f"{keys.prefix}*")) == before
    found, _ = run_worker(obedient(), lambda service: answered(service, server.url, keys, 1), user(*ALL))
    assert found == {"a": ["ok"]}


def test_rights_are_tried_when_a_server_that_was_down_comes_back(own_server, settings):
    """Without this a worker that starts together with its server would learn nothing."""
    own_server.stop()
    later = EmbeddedServer(own_server.folder, "--user", "limited", "on", ">secret", *ALL, "-publish")
    url = f"unix://limited:secret@{later.folder}/server.sock"

    async def main():
        task = asyncio.create_task(build_service(Settings.of(**settings), url, obedient()).run())
        await asyncio.sleep(0.5)
        assert not task.done()
        later.start()
        return await asyncio.wait_for(task, 20)

    try:
        failure = asyncio.run(main())
    finally:
        later.stop()
    assert isinstance(failure, BadSettings)
    assert "+publish" in str(failure)


def test_a_producer_that_may_not_add_is_told_at_the_start_of_the_api(server, user, keys):
    async def main():
        async with connect(user(*ALL, "-xadd")) as client:
            await check_rights(client, producer_needs(Keys(keys.prefix)))

    with pytest.raises(BadSettings, match=r"\+xadd"):
        asyncio.run(main())


async def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.05)

"""What each outcome of a job means, on a real server."""

import asyncio
import json

import pytest

from tests.worker.conftest import answered
from tests.worker.work import Obedient, obedient


def test_a_plain_xadd_is_answered_on_the_stream_and_by_key(db, keys, server, run_worker):
    entry = db.xadd(
        keys.streams[1], {"image": "ok", "job_id": "mine", "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    )
    found, failure = run_worker(obedient(), lambda service: answered(service, server.url, keys, 1))
    assert (found, failure) == ({"mine": ["ok"]}, None)
    assert json.loads(db.get(keys.verdict("mine"))) == {"job_id": "mine"}
    assert 0 < db.ttl(keys.verdict("mine")) <= 86_400
    fields = db.xrange(keys.results)[0][1]
    assert json.loads(fields[b"verdict"]) == {"job_id": "mine"}
    assert fields[b"traceparent"].startswith(b"00-aaaa")
    assert db.xlen(keys.streams[1]) == 0
    assert not db.xpending(keys.streams[1], "workers")["pending"], entry


def test_a_traced_job_gets_a_span_below_its_producers_and_logs_its_trace(
    db, keys, server, run_worker, monkeypatch, caplog
):
    trace = pytest.importorskip("opentelemetry.trace", reason="pip install opentelemetry-api")
    spans = []

    class Recorder(trace.NoOpTracer):
        def start_span(self, name, context, kind, attributes):
            spans.append((name, trace.get_current_span(context).get_span_context(), attributes))
            return super().start_span(name, context)

    monkeypatch.setattr(trace, "get_tracer", lambda _: Recorder())
    traceparent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    db.xadd(keys.streams[1], {"image": "bug", "job_id": "mine", "traceparent": traceparent})
    db.xadd(keys.streams[1], {"image": "ok", "job_id": "untraced"})
    run_worker(obedient(), lambda service: answered(service, server.url, keys, 2), queue_attempts=2)
    assert {(name, f"{parent.trace_id:x}", f"{parent.span_id:x}") for name, parent, _ in spans} == {
        (f"process {keys.streams[1]}", "a" * 32, "b" * 16)
    }
    assert [attributes["imgv.attempt"] for _, _, attributes in spans] == [1, 2]
    assert {record.trace_id for record in caplog.records if getattr(record, "job_id", "") == "mine"} == {"a" * 32}


def test_a_job_without_an_id_is_answered_under_its_entry_id(db, keys, server, run_worker):
    normal = db.xadd(keys.streams[1], {"image": "ok"}).decode()
    high = db.xadd(keys.streams[0], {"image": "ok"}).decode()
    found, _ = run_worker(obedient(), lambda service: answered(service, server.url, keys, 2))
    assert set(found) == {normal, f"{high}-high"}


def test_a_bad_image_is_answered_and_never_retried(db, keys, server, run_worker):
    db.xadd(keys.streams[1], {"image": "input", "job_id": "bad"})
    found, _ = run_worker(obedient(), lambda service: answered(service, server.url, keys, 1))
    assert found == {"bad": ["error"]}
    assert json.loads(db.get(keys.verdict("bad")))["error"]["code"] == "not_an_image"
    assert db.xlen(keys.dead) == 0


def test_a_bad_message_is_answered_and_never_retried(db, keys, server, run_worker):
    db.xadd(keys.streams[1], {"nonsense": "1", "job_id": "a"})
    db.xadd(keys.streams[1], {"path": "/etc/passwd", "job_id": "b"})
    db.xadd(keys.streams[1], {"image": "ok", "deadline_ms": "1", "job_id": "c"})

    async def later(service):
        return await answered(service, server.url, keys, 3)

    run_worker(obedient(), later)
    codes = {name: json.loads(db.get(keys.verdict(name)))["error"]["code"] for name in "abc"}
    assert codes == {"a": "bad_message", "b": "path_refused", "c": "deadline_passed"}


def test_a_transient_failure_is_retried_then_buried_and_answered(db, keys, server, run_worker):
    db.xadd(keys.streams[1], {"image": "transient", "job_id": "down"})
    handler = Obedient()
    found, _ = run_worker(_same(handler), lambda service: answered(service, server.url, keys, 1))
    assert found == {"down": ["error"]}
    assert handler.begun == ["down"] * 4
    (letter,) = [fields for _, fields in db.xrange(keys.dead)]
    assert letter[b"dead.reason"] == b"retries_exhausted"
    assert letter[b"dead.attempts"] == b"4"
    assert letter[b"image"] == b"transient"
    assert json.loads(db.get(keys.verdict("down")))["error"]["code"] == "fetch_failed"
    assert db.zcard(f"{keys.streams[2]}:delayed") == db.hlen(f"{keys.streams[2]}:delayed:payloads") == 0


def test_a_bug_is_retried_then_buried_and_the_caller_learns_nothing_internal(db, keys, server, run_worker):
    db.xadd(keys.streams[1], {"image": "bug", "job_id": "bug"})
    run_worker(obedient(), lambda service: answered(service, server.url, keys, 1))
    assert json.loads(db.get(keys.verdict("bug")))["error"]["code"] == "internal"
    assert b"division" not in db.get(keys.verdict("bug"))
    assert db.xrange(keys.dead)[0][1][b"dead.reason"] == b"bug: ZeroDivisionError"


def test_a_broken_installation_stops_the_worker_and_hands_the_jobs_back(db, keys, server, run_worker):
    db.xadd(keys.streams[1], {"image": "setup", "job_id": "a"})

    async def until_it_stops(service):
        while service.loop.failure is None:
            await asyncio.sleep(0.01)

    _, failure = run_worker(obedient(), until_it_stops)
    assert failure.code == "weights_corrupt"
    assert db.xpending(keys.streams[1], "workers")["pending"] == 1
    run_worker(obedient(), until_it_stops)
    assert db.xlen(keys.results) == 0  # nobody is told that their image is at fault


def test_the_same_job_id_is_answered_once(db, keys, server, run_worker):
    for _ in range(3):
        db.xadd(keys.streams[1], {"image": "ok", "job_id": "again"})
    db.xadd(keys.streams[2], {"image": "ok", "job_id": "last"})
    found, _ = run_worker(obedient(), lambda service: answered(service, server.url, keys, 2))
    assert found == {"again": ["ok"], "last": ["ok"]}


def test_urgent_jobs_go_first(db, keys, server, run_worker):
    for stream in (2, 1, 0):
        for number in range(3):
            db.xadd(keys.streams[stream], {"image": "ok", "job_id": f"{stream}-{number}"})
    handler = Obedient()
    run_worker(_same(handler), lambda service: answered(service, server.url, keys, 9), pipeline_max_jobs=2)
    assert handler.begun == [f"{stream}-{number}" for stream in range(3) for number in range(3)]


def test_large_jobs_are_taken_one_by_one(db, keys, server, run_worker):
    for number in range(6):
        db.xadd(keys.streams[1], {"image": b"sleep 0.1" + b" " * (600 << 10), "job_id": str(number)})
    most = 0

    async def watch(service):
        nonlocal most
        async with asyncio.timeout(20):
            while db.xlen(keys.results) < 6:
                most = max(most, service.loop.held)
                await asyncio.sleep(0.005)

    run_worker(obedient(), watch, pipeline_max_mb=1)
    assert most == 2  # the second was taken while less than 1 MiB was held


def test_an_entry_with_thousands_of_fields_stops_nobody(db, keys, server, run_worker):
    db.execute_command("XADD", keys.streams[1], "*", *(str(number) for number in range(20_000)))
    db.xadd(keys.streams[1], {"image": "ok", "job_id": "next"})
    found, _ = run_worker(obedient(), lambda service: answered(service, server.url, keys, 2))
    assert sorted(status for [status] in found.values()) == ["error", "ok"]


def _same(handler):
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def make(settings, metrics, *_):
        yield handler

    return make

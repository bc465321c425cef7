"""A job's progress over a WebSocket: what the event stream says, to whom it is said, and when it ends."""

import json
import time
from contextlib import contextmanager

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from api.limits import SUBPROTOCOL, WEBSOCKET_BYTES, new_key
from tests.api.conftest import LiveServer, Watched, local_app, settings_of
from tests.fakes import flat_png
from worker import http

KEY, DIGEST = new_key()
WITH_KEY = {"X-API-Key": KEY}


@contextmanager
def serving(judge=None, **changed):
    with LiveServer(local_app(settings_of(**changed), judge or Watched())) as server:
        yield server


def sent(server, headers=None):
    """The addresses of a job that has begun."""
    answer = httpx.post(
        f"{server.url}/v1/verify", params={"async": True}, files={"file": ("a.png", flat_png())}, headers=headers
    )
    events = server.url + answer.json()["links"]["events"]
    return events, events.replace("http", "ws", 1)


def told(socket):
    return [json.loads(message) for message in socket]


def test_it_says_what_the_event_stream_says_and_then_closes():
    judge = Watched()
    with serving(judge) as server:
        judge.free.clear()
        events, address = sent(server)
        with connect(address) as socket:
            first = json.loads(socket.recv(timeout=10))
            judge.free.set()
            messages = [first, *told(socket)]
        assert socket.protocol.close_code == 1000
        stream = httpx.get(events).text
    lines = [line.partition(": ")[2] for line in stream.splitlines() if line]
    assert messages == [
        {"event": name, "data": json.loads(data)} for name, data in zip(lines[::2], lines[1::2], strict=True)
    ]
    assert first == {"event": "stage", "data": {"stage": "queued", "seconds": 0.0}}
    assert messages[-1]["event"] == "verdict"
    assert messages[-1]["data"]["tier"]


def test_a_failed_job_ends_with_its_problem():
    with serving(Watched(ValueError("secret"))) as server, connect(sent(server)[1]) as socket:
        last = told(socket)[-1]
    assert (last["event"], last["data"]["code"]) == ("error", "internal")
    assert "secret" not in json.dumps(last)


def test_an_unknown_job_is_refused_with_a_problem():
    with serving() as server:
        address = sent(server)[1].replace("/v1/jobs/", "/v1/jobs/0")
        with pytest.raises(InvalidStatus) as refused, connect(address):
            pass
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body)["code"] == "not_found"
    assert refused.value.response.headers["X-Request-ID"]


def test_the_key_is_a_header_or_in_a_browser_the_second_subprotocol_and_never_comes_back():
    with serving(api_keys={"alice": DIGEST}) as server:
        address = sent(server, WITH_KEY)[1]
        with connect(address, additional_headers=WITH_KEY) as socket:
            assert told(socket)[-1]["event"] == "verdict"
        with connect(address, subprotocols=[SUBPROTOCOL, KEY]) as socket:
            assert told(socket)[-1]["event"] == "verdict"
            assert socket.subprotocol == SUBPROTOCOL
            assert KEY not in str(socket.response.headers)
        for protocols in (None, [SUBPROTOCOL], [SUBPROTOCOL, "imgv_other"], [KEY, SUBPROTOCOL]):
            with pytest.raises(InvalidStatus) as refused, connect(address, subprotocols=protocols):
                pass
            assert refused.value.response.status_code == 401


def test_pages_of_other_sites_may_watch_only_where_they_are_listed():
    with serving(api_origins="https://friend.example") as server:
        address = sent(server)[1]
        for origin in (server.url, "https://friend.example", None):
            with connect(address, origin=origin) as socket:
                assert told(socket)
        with pytest.raises(InvalidStatus) as refused, connect(address, origin="https://evil.example"):
            pass
    assert refused.value.response.status_code == 400


def test_it_outlives_the_time_that_a_requests_head_may_take(monkeypatch):
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.3)
    judge = Watched()
    with serving(judge) as server:
        judge.free.clear()
        with connect(sent(server)[1]) as socket:
            time.sleep(1.0)
            judge.free.set()
            assert told(socket)[-1]["event"] == "verdict"


def test_a_client_that_goes_away_is_forgotten_though_the_job_goes_on():
    judge = Watched()
    with serving(judge) as server:
        judge.free.clear()
        address = sent(server)[1]
        with connect(address) as socket:
            socket.recv(timeout=10)
            assert _ended(server) == 0
        deadline = time.monotonic() + 10
        while not _ended(server):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        judge.free.set()
        with connect(address) as socket:
            assert told(socket)[-1]["event"] == "verdict"


def _ended(server) -> int:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum('route="/v1/jobs/{job_id}/events",status="101"' in line and line.endswith(" 1.0") for line in lines)


def test_who_talks_too_much_is_cut_off():
    judge = Watched()
    with serving(judge) as server:
        judge.free.clear()
        with connect(sent(server)[1]) as socket:
            socket.send("hello")  # not heard
            socket.send("x" * (WEBSOCKET_BYTES + 1))
            with pytest.raises(ConnectionClosed):
                for _ in range(100):
                    socket.recv(timeout=10)
        assert socket.protocol.close_code == 1009
        judge.free.set()

"""Callbacks: signed, guarded, retried, and dead-lettered when nobody takes them."""

import asyncio
import base64
import hashlib
import hmac
import http.server
import json
import threading

import pytest
from ssrfguard import AddressTable, Policy
from standardwebhooks import Webhook

from ingress import fetch
from tests.worker.conftest import answered
from tests.worker.work import obedient
from utils.errors import BadSettings
from worker import service
from worker.callbacks import signature_headers, signing_key

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver(http.server.HTTPServer):
    def __init__(self):
        self.received, self.statuses = [], []
        super().__init__(("127.0.0.1", 0), self.Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.received.append((dict(self.headers), body))
            self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
            self.end_headers()

        def log_message(self, *_):
            pass


@pytest.fixture
def receiver():
    with Receiver() as server:
        yield server
        server.shutdown()


@pytest.fixture
def loopback_allowed(monkeypatch, receiver):
    """Only the network rule is lifted; everything else of the real transport stays."""
    monkeypatch.setattr(
        fetch,
        "policy_for",
        lambda ports: Policy(allowed_ports={receiver.server_port}, denied_networks=AddressTable(())),
    )
    monkeypatch.setattr(service, "CALLBACK_RETRY_SECONDS", 0.05)


def test_the_signature_is_the_specifications():
    # The example of github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md, computed by hand.
    key = signing_key(SECRET)
    assert key == base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signature_headers(key, "msg_1", '{"a": 1}', now=1614265330.9)
    expected = hmac.new(key, b'msg_1.1614265330.{"a": 1}', hashlib.sha256).digest()
    assert headers == {
        "webhook-id": "msg_1",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1," + base64.b64encode(expected).decode(),
    }


@pytest.mark.parametrize(
    "secret", ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_short", "whsec_!!!", "whsec_" + "QUJD" * 40]
)
def test_a_weak_secret_is_refused(secret):
    with pytest.raises(BadSettings):
        signing_key(secret)


def test_an_answer_is_posted_signed_with_the_trace_and_again_until_taken(
    db, keys, server, run_worker, receiver, loopback_allowed
):
    receiver.statuses = [500, 404]
    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    url = f"http://127.0.0.1:{receiver.server_port}/hook"
    db.xadd(keys.streams[1], {"image": "ok", "job_id": "mine", "callback_url": url, "traceparent": trace})
    run_worker(obedient(), lambda _: _until(lambda: len(receiver.received) == 3), callback_secret=_secret())
    headers, body = receiver.received[-1]
    assert json.loads(body) == {"job_id": "mine"}
    Webhook(SECRET).verify(body, headers)  # as a receiver with the specification's own library does
    signed = signature_headers(signing_key(SECRET), "mine", body.decode(), now=float(headers["webhook-timestamp"]))
    assert signed.items() <= headers.items()
    assert headers["traceparent"] == trace
    assert len({each["webhook-id"] for each, _ in receiver.received}) == 1
    assert db.xlen(keys.callbacks) == db.xlen(keys.dead) == 0


def test_a_callback_to_a_private_address_is_refused_and_dead_lettered(db, keys, server, run_worker, receiver):
    for url in (f"http://127.0.0.1:{receiver.server_port}/", "http://169.254.169.254/latest/", "http://localhost/"):
        db.xadd(keys.streams[1], {"image": "ok", "callback_url": url})

    async def wait(service):
        await answered(service, server.url, keys, 3)
        await _until(lambda: db.xlen(keys.dead) == 3)

    run_worker(obedient(), wait, callback_secret=_secret())
    assert receiver.received == []
    assert {fields[b"dead.reason"] for _, fields in db.xrange(keys.dead)} == {b"url_refused"}
    assert {fields[b"dead.stream"] for _, fields in db.xrange(keys.dead)} == {keys.callbacks.encode()}


def test_without_a_secret_no_callback_is_promised(db, keys, server, run_worker):
    db.xadd(keys.streams[1], {"image": "ok", "job_id": "a", "callback_url": "https://host.org/hook"})
    run_worker(obedient(), lambda service: answered(service, server.url, keys, 1))
    assert json.loads(db.get(keys.verdict("a")))["error"]["code"] == "bad_message"
    assert db.xlen(keys.callbacks) == 0


def _secret():
    from pydantic import SecretStr

    return SecretStr(SECRET)


async def _until(condition):
    while not condition():
        await asyncio.sleep(0.02)

"""A real server on loopback, and a caller whose addresses never answer: the others hardly notice."""

import hashlib
import statistics
import time

import httpx

from tests.api.conftest import LiveServer, Watched, flat_png, local_app, settings_of
from tests.sites import Site, fetch_without_guard

KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("mallory", "bob")}


def judged(client: httpx.Client, **sent: object) -> float:
    """How long it took."""
    began = time.monotonic()
    answer = client.post("/v1/verify", headers={"X-API-Key": "bob"}, **sent)
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began


def test_addresses_that_never_answer_lock_no_other_caller_out(monkeypatch):
    monkeypatch.setattr("inference.pipeline.fetch_within", fetch_without_guard)
    settings = settings_of(api_keys=KEYS, fetch_seconds=60, pipeline_drain_seconds=0)
    app = local_app(settings, Watched())
    picture = {"files": {"file": ("a.png", flat_png())}}
    with Site(flat_png()) as site, LiveServer(app) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        judged(client, **picture)  # starts the decoding child
        usual = statistics.median(judged(client, **picture) for _ in range(3))
        taken = [
            client.post(
                "/v1/verify",
                headers={"X-API-Key": "mallory"},
                json={"url": f"{site.silent}/{number}.png"},
                params={"async": True},
            ).status_code
            for number in range(80)
        ]
        assert set(taken) == {202, 503}
        assert judged(client, **picture) < 3 * usual + 1  # a busy machine may hold one up
        assert judged(client, json={"url": f"{site.url}/a.png"}) < 10

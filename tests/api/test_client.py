"""The Python client against the real product, and the server's process itself."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from api.client import AsyncClient, Client, Refused
from tests.api.conftest import local_app, photo, settings_of

ROOT = Path(__file__).parents[2]


def test_a_path_and_bytes_are_judged_and_artifacts_fetched(live, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photo())
    with Client(live.url) as client:
        by_path = client.verify(str(tmp_path / "photo.jpg"), artifacts=True)
        by_bytes = client.verify(photo(), stability=True)
        assert client.artifact(by_path, "ela").startswith(b"\x89PNG")
        assert client.models()["profile"] == "embedded"
    assert by_path["fusion_prob"] == by_bytes["fusion_prob"] == by_bytes["stability"]["probabilities"]["as_is"]
    assert by_path["stability"] is None


def test_a_refusal_has_the_code(live):
    with Client(live.url) as client:
        with pytest.raises(Refused, match="url_refused") as refused:
            client.verify("http://127.0.0.1/a.jpg")
        assert refused.value.code == "url_refused"
        with pytest.raises(Refused, match="not_an_image"):
            client.verify(b"dear sir")


def test_many_files_are_answered_one_by_one(live):
    with Client(live.url) as client:
        answers = dict(client.verify_many([photo(), b"dear sir", photo("flower.jpg")], stability=True))
        with pytest.raises(Refused, match="bad_request"):
            list(client.verify_many([b"x"] * 101))
    assert answers[0]["tier"]
    assert answers[1]["error"]["code"] == "not_an_image"
    assert answers[2]["stability"]["probabilities"]


def test_the_client_waits_when_a_busy_server_says_so_and_asks_for_slow_jobs():
    answers = [
        httpx.Response(503, headers={"Retry-After": "0"}, json={"code": "queue_full", "detail": "later"}),
        httpx.Response(202, json={"status": "running", "links": {"self": "/v1/jobs/1"}}),
        httpx.Response(200, json={"status": "done", "verdict": {"tier": "real"}}),
    ]
    with Client(transport=httpx.MockTransport(lambda _: answers.pop(0))) as client:
        assert client.verify(b"image") == {"tier": "real"}
    assert not answers


@pytest.mark.parametrize("wait_seconds", [30, 0.001])  # answered at once, and by asking for the job
def test_the_asynchronous_client_does_the_same(verifier, tmp_path, wait_seconds):
    (tmp_path / "photo.jpg").write_bytes(photo())
    app = local_app(settings_of(api_wait_seconds=wait_seconds), verifier)

    async def work():
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), AsyncClient("http://127.0.0.1", transport=transport) as client:
            first = await client.verify(tmp_path / "photo.jpg", artifacts=True)
            refusals = []
            for bad in (b"dear sir", "http://127.0.0.1/a.jpg"):
                with pytest.raises(Refused) as refused:
                    await client.verify(bad)
                refusals.append(refused.value.code)
            lines = {index: answer async for index, answer in client.verify_many([photo(), b"dear sir"])}
            return first, refusals, lines, await client.artifact(first, "report"), await client.models()

    first, refusals, lines, report, models = asyncio.run(work())
    assert first["tier"]
    assert refusals == ["not_an_image", "url_refused"]
    assert lines[0]["fusion_prob"] == first["fusion_prob"]
    assert lines[1]["error"]["code"] == "not_an_image"
    assert report.startswith(b"<!doctype html>")
    assert models["runs"] == "in process"


def test_sigterm_finishes_what_was_taken():
    environment = {"PATH": os.environ["PATH"], "IMGV_API_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "api"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    lines = []
    while "ready" not in (lines[-1] if lines else ""):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    url = re.search(r"http://\S+?(?=/$|/\s)", lines[-1]).group()
    with httpx.Client(base_url=url, timeout=30) as client:
        job = client.post("/v1/verify", files={"file": photo()}, params={"wait_seconds": 0, "artifacts": True}).json()
        with client.stream("GET", job["links"]["events"]) as events:
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            told = "".join(events.iter_text())
    assert process.wait(20) == 0
    assert time.monotonic() - began < 15
    assert "event: verdict" in told
    log = process.stderr.read()
    process.stderr.close()
    assert "POST /v1/verify" in log
    assert "Traceback" not in log

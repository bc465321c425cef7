"""The Python client against a running API, and by ASGI."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from img_ml_verify_client import AsyncClient, Client, Refused
from tests.api.conftest import Watched, local_app, photo, settings_of


def test_a_path_and_bytes_are_judged_and_artifacts_fetched(server, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photo())
    with Client(server.url) as client:
        by_path = client.verify(str(tmp_path / "photo.jpg"), artifacts=True)
        by_bytes = client.verify(photo(), stability=True)
        assert client.artifact(by_path, "preview").startswith(b"\xff\xd8")
        assert client.models()["profile"] == "embedded"
        assert client.feedback(by_path, "real", "I took it")["id"]
    assert by_path["fusion_prob"] == by_bytes["fusion_prob"] == by_bytes["stability"]["probabilities"]["as_is"]
    assert by_path["stability"] is None


def test_a_refusal_has_the_code(server):
    with Client(server.url) as client:
        with pytest.raises(Refused, match="url_refused") as refused:
            client.verify("http://127.0.0.1/a.jpg")
        assert refused.value.code == "url_refused"
        with pytest.raises(Refused, match="not_an_image"):
            client.verify(b"dear sir")


def test_many_files_are_answered_one_by_one(server):
    with Client(server.url) as client:
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
def test_the_asynchronous_client_does_the_same(tmp_path, wait_seconds):
    (tmp_path / "photo.jpg").write_bytes(photo())
    app = local_app(settings_of(api_wait_seconds=wait_seconds), Watched())

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

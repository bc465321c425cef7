"""Feedback: taken where the server has a folder for it, images only where a setting says so, and not for ever."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import time

import pytest

from api import feedback
from api.limits import new_key
from tests.fakes import flat_png

REPORT = {"sha256": "a" * 64, "label": "real", "why": "I took it"}
WITH_IMAGE = {"image_base64": base64.b64encode(flat_png()).decode()}


def test_without_a_folder_none_is_taken(serve) -> None:
    answer = serve(lambda client: client.post("/v1/feedback", json=REPORT))
    assert answer.status_code == 404
    assert "IMGV_FEEDBACK_DIR" in answer.json()["detail"]


def test_a_report_is_kept_with_its_caller_and_its_image_only_where_images_are_kept(serve, tmp_path) -> None:
    key, digest = new_key()
    sent = {"job_id": "1", "label": "real", "why": "I took it"} | WITH_IMAGE
    given = {"feedback_dir": tmp_path / "box", "api_keys": {"alice": digest}}
    for images in (False, True):
        answer = serve(
            lambda client: client.post("/v1/feedback", json=sent),
            headers={"X-API-Key": key},
            feedback_images=images,
            **given,
        )
        assert answer.status_code == 201
        assert answer.json()["image_kept"] is images
    reports = [json.loads(path.read_text()) for path in (tmp_path / "box").glob("*.json")]
    assert {each["caller"] for each in reports} == {"alice"}
    assert all(each["why"] == "I took it" and "image_base64" not in each for each in reports)
    (image,) = (tmp_path / "box").glob("*.image")
    (kept,) = [each for each in reports if each["image_kept"]]
    assert kept["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    answer = serve(lambda client: client.post("/v1/feedback", json=sent), **given)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "report",
    [
        {"label": "real"},
        {"sha256": "a" * 64},
        {"sha256": "a", "label": "real"},
        REPORT | {"label": "maybe"},
        REPORT | {"more": 1},
        REPORT | {"image_base64": "?"},
        REPORT | WITH_IMAGE,  # another image's sha256
    ],
)
def test_a_report_that_says_too_little_is_refused(serve, tmp_path, report) -> None:
    answer = serve(lambda client: client.post("/v1/feedback", json=report), feedback_dir=tmp_path)
    assert answer.status_code == 400
    assert list(tmp_path.iterdir()) == []


def test_an_image_with_its_own_sha256_is_taken(serve, tmp_path) -> None:
    own = REPORT | WITH_IMAGE | {"sha256": hashlib.sha256(flat_png()).hexdigest()}
    assert serve(lambda client: client.post("/v1/feedback", json=own), feedback_dir=tmp_path).status_code == 201


@pytest.mark.parametrize("full_at", [".image", ".json"])
def test_a_full_disk_is_told_and_leaves_no_image_without_its_report(
    serve, tmp_path, monkeypatch, caplog, full_at
) -> None:
    def write(path, data):
        if path.suffix == full_at:
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(feedback, "write_atomic", write)
    report = {"job_id": "1", "label": "ai"} | WITH_IMAGE
    answer = serve(lambda client: client.post("/v1/feedback", json=report), feedback_dir=tmp_path, feedback_images=True)
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert "Retry-After" in answer.headers
    assert str(tmp_path) not in answer.text
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(serve, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    given = {"feedback_dir": tmp_path / "file" / "box"}
    answer = serve(lambda client: client.post("/v1/feedback", json=REPORT), **given)
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")


def test_what_is_too_old_goes_though_no_report_comes_any_more(serve, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(feedback, "_SWEEP_SECONDS", 0.02)
    day, now = 86_400, time.time()
    ages = {"a.json": 8, "a.image": 8, ".b.tmp": 8, "c.json": 6, "c.image": 6, "notes.txt": 8}  # the last is not ours
    for name, days in ages.items():
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (now, now - days * day))

    async def later(_) -> set[str]:
        await asyncio.sleep(0.2)
        first = {path.name for path in tmp_path.iterdir()}
        os.utime(tmp_path / "c.json", (now, now - 8 * day))
        await asyncio.sleep(0.2)
        return first, {path.name for path in tmp_path.iterdir()}

    first, second = serve(later, feedback_dir=tmp_path, feedback_days=7)
    assert first == {"c.json", "c.image", "notes.txt"}
    assert second == {"c.image", "notes.txt"}

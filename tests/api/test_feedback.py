"""Feedback: taken where the server has a folder for it, images only where a setting says so, and not for ever."""

from __future__ import annotations

import base64
import hashlib
import json
import os

import pytest

from api.limits import new_key
from tests.api.conftest import flat_png

REPORT = {"sha256": "a" * 64, "label": "real", "why": "I took it"}


def test_without_a_folder_none_is_taken(serve) -> None:
    answer = serve(lambda client: client.post("/v1/feedback", json=REPORT))
    assert answer.status_code == 404
    assert "IMGV_FEEDBACK_DIR" in answer.json()["detail"]


def test_a_report_is_kept_with_its_caller_and_its_image_only_where_images_are_kept(serve, tmp_path) -> None:
    key, digest = new_key()
    sent = REPORT | {"image_base64": base64.b64encode(flat_png()).decode()}
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
    ],
)
def test_a_report_that_says_too_little_is_refused(serve, tmp_path, report) -> None:
    answer = serve(lambda client: client.post("/v1/feedback", json=report), feedback_dir=tmp_path)
    assert answer.status_code == 400
    assert list(tmp_path.iterdir()) == []


def test_what_is_too_old_goes(serve, tmp_path) -> None:
    old = tmp_path / "20200101T000000-00000000.json"
    old.write_text("{}")
    os.utime(old, (0, 0))
    assert serve(lambda client: client.post("/v1/feedback", json=REPORT), feedback_dir=tmp_path).status_code == 201
    assert not old.exists()
    assert len(list(tmp_path.iterdir())) == 1

"""Reviewing: what is shown first, where a label puts an image, and that reports go when they were looked at."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from lifecycle.collect import Collection
from lifecycle.review import Review, hard, page_app, reported, usefulness
from tests.lifecycle.test_collect import picture
from utils.settings import Settings


def verdict(path: Path, probability: float, effnet: float, clip: float) -> dict[str, object]:
    signals = {"effnet_prob": effnet, "clip_b16_prob": clip, "noise.level": 1.0}
    return {"source": str(path), "fusion_prob": probability, "threshold": 0.5, "signals": signals}


@pytest.fixture
def box(tmp_path: Path) -> Path:
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "1.json").write_text(json.dumps({"label": "real", "why": "<b>mine</b>", "image_kept": True}))
    (folder / "1.image").write_bytes(picture(1))
    (folder / "2.json").write_text(json.dumps({"label": "ai", "image_kept": False}))
    return folder


def test_uncertain_and_disputed_images_come_first(tmp_path) -> None:
    for name in ("sure", "unsure", "disputed"):
        (tmp_path / name).write_bytes(b"x")
    verdicts = [
        verdict(tmp_path / "sure", 0.02, 0.05, 0.02),
        verdict(tmp_path / "unsure", 0.49, 0.5, 0.5),
        verdict(tmp_path / "disputed", 0.45, 0.95, 0.1),
        verdict(tmp_path / "absent", 0.5, 0.5, 0.5),
    ]
    assert [case.path.name for case in hard(verdicts, None)] == ["disputed", "unsure", "sure"]
    found = usefulness(verdicts[2], None)
    assert found == {"uncertainty": pytest.approx(0.9), "disagreement": pytest.approx(0.85)}


def test_an_image_that_is_left_out_is_told(box, tmp_path, capsys) -> None:
    settings = Settings.of(decode_in_child=False)
    (box / "1.image").write_bytes(b"no image")
    Review(list(reported(box)), Collection.at(tmp_path / "data"), "ann", settings).label(1, "ai")
    assert "1.image is left out: not_an_image" in capsys.readouterr().err


def test_labels_move_images_into_the_data_set_and_reports_go(box, tmp_path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(picture(2, "PNG"))
    cases = [*reported(box), *hard([verdict(other, 0.5, 0.1, 0.9)], None)]
    settings = Settings.of(decode_in_child=False)
    review = Review(cases, Collection.at(tmp_path / "data"), "ann", settings)

    async def main() -> None:
        transport = httpx.ASGITransport(page_app(review))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            page = await client.get("/")
            assert "&lt;b&gt;mine&lt;/b&gt;" in page.text
            assert (await client.get("/image/2")).content == picture(1)
            assert (await client.get("/image/1")).status_code == 404
            elsewhere = {"origin": "http://evil.example"}
            assert (await client.post("/label/2", data={"label": "ai"}, headers=elsewhere)).status_code == 403
            rebound = {"host": "evil.example", "origin": "http://evil.example"}
            assert (await client.get("/image/2", headers=rebound)).status_code == 400
            assert (await client.post("/label/2", data={"label": "ai"}, headers=rebound)).status_code == 400
            assert (await client.post("/label/2", data={"label": "real"})).status_code == 303
            await client.post("/label/2", data={"label": "ai"})  # sent twice
            assert len(review.cases) == 1
            await client.post("/label/1", data={"label": "ai"})
            assert "Nothing is left" in (await client.get("/")).text

    asyncio.run(main())
    records = Collection.at(tmp_path / "data").records
    assert [(each.label, each.claim) for each in records] == [
        ("real", "ann says so; the caller said real"),
        ("ai", "ann says so"),
    ]
    assert (tmp_path / "data" / records[0].filepath).read_bytes() == picture(1)
    assert sorted(path.name for path in box.iterdir()) == ["2.json"]
    assert other.exists()

"""The same bytes, judged by the same models, are answered again; anything else is judged."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import img_ml_verify
from fusion.meta_model import FusionModel
from inference import verdict_cache
from inference.detector import Verifier
from inference.ensemble import Ensemble
from inference.verdict_cache import FROM_CACHE, Judges, VerdictFile
from models.loaders import SHIPPED
from tests.fakes import FakeDetector, flat_png, fusion_model
from utils.contracts import PUBLIC_FEATURES, Verdict
from utils.profiles import DEFAULT_PROFILE, PROFILES
from utils.settings import Settings

MEANINGS = dict.fromkeys([*PUBLIC_FEATURES, "effnet_prob"], "a number")


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, level in zip(paths, (10, 250), strict=True):
        path.write_bytes(flat_png(level))
    return [str(path) for path in paths]


def verifier(**changed: Any) -> Verifier:
    return Verifier(Ensemble([FakeDetector()], [], {}), fusion_model("effnet_prob"), MEANINGS, **changed)


def settings(tmp_path: Path, **more: Any) -> Settings:
    return Settings.of(pipeline_cache=tmp_path / "made" / "verdicts", **more)


def judged(sources: list[str], given: Settings, by: Verifier, artifacts: Path | None = None) -> list[Verdict]:
    async def run() -> list[Any]:
        return [answer async for _, answer in img_ml_verify.judge(sources, given, by, artifacts)]

    return asyncio.run(run())


def earlier(answers: list[Verdict]) -> list[bool]:
    return [FROM_CACHE in answer.warnings for answer in answers]


def test_the_same_bytes_are_answered_again_under_their_new_name(images: list[str], tmp_path: Path) -> None:
    given = settings(tmp_path)
    first = judged(images, given, verifier())
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(images[1]).read_bytes())
    again = judged([*images, str(copy)], given, verifier())
    assert (earlier(first), earlier(again)) == ([False, False], [True, True, True])
    assert [each.fusion_prob for each in again] == [*(each.fusion_prob for each in first), first[1].fusion_prob]
    assert [each.source for each in again] == [*images, str(copy)]
    file = tmp_path / "made" / "verdicts"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_the_setting_nothing_is_kept(images: list[str]) -> None:
    for _ in range(2):
        assert earlier(judged(images, Settings.of(), verifier())) == [False, False]


@pytest.mark.parametrize("changed", [{"threshold": 0.9}, {"release": "2026-12-01"}, {"embedding": True}])
def test_another_release_or_setting_is_never_answered_from_this_one(
    images: list[str], tmp_path: Path, changed: dict[str, Any]
) -> None:
    given = settings(tmp_path)
    judged(images, given, verifier())
    assert earlier(judged(images, given, verifier(**changed))) == [False, False]
    assert earlier(judged(images, given, verifier(**changed))) == [True, True]


def test_whatever_else_a_verdict_depends_on_is_another_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anchors = tmp_path / "anchors.pem"
    anchors.write_text("of some authority")
    one = verifier()
    changed: list[dict[str, Any]] = [
        *({}, {"max_frames": 2}, {"c2pa_trust_anchors": anchors}, {"precision": "bfloat16"}, {"device": "mps"}),
    ]
    found = [Judges(Settings.of(**each))(one) for each in changed]
    other = verifier()
    other.fusion = replace(one.fusion, digest="of other files")
    found.append(Judges(Settings.of())(other))
    for name in ("_code", "_version"):
        monkeypatch.setattr(verdict_cache, name, lambda *_: "another")
        found.append(Judges(Settings.of())(one))
    assert len(set(found)) == len(changed) + 3
    assert Judges(Settings.of())(verifier()) == found[-1]


def test_the_digest_of_an_artifact_is_that_of_its_files(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / PROFILES[DEFAULT_PROFILE].fusion, tmp_path / "copy")
    loaded = FusionModel.load(tmp_path / "copy")
    assert loaded.digest == FusionModel.load(SHIPPED / PROFILES[DEFAULT_PROFILE].fusion).digest != ""
    (tmp_path / "other").mkdir()
    replace(loaded, quantiles={**loaded.quantiles, "ai": loaded.quantiles["real"]}).save(tmp_path / "other", "")
    assert FusionModel.load(tmp_path / "other").digest != loaded.digest


def test_a_verdict_that_lacks_a_part_which_failed_is_not_kept(images: list[str], tmp_path: Path) -> None:
    given = settings(tmp_path)
    failing = FakeDetector(error=MemoryError("for a moment"))
    judged(images, given, Verifier(Ensemble([failing], [], {}), fusion_model("effnet_prob"), MEANINGS))
    assert earlier(judged(images, given, verifier())) == [False, False]
    assert earlier(judged(images, given, verifier())) == [True, True]


def test_a_file_names_no_caller(images: list[str], tmp_path: Path) -> None:
    judged(images, settings(tmp_path), verifier())
    assert b".png" not in b"".join(path.read_bytes() for path in (tmp_path / "made").iterdir())


def test_an_image_whose_report_is_wanted_is_judged(images: list[str], tmp_path: Path) -> None:
    given = settings(tmp_path)
    judged(images, given, verifier())
    found = judged(images, given, verifier(), tmp_path / "out")
    assert earlier(found) == [False, False]
    assert all(each.artifacts for each in found)


def test_a_file_that_is_no_cache_costs_no_verdict(
    images: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = settings(tmp_path)
    assert given.pipeline.cache is not None
    given.pipeline.cache.parent.mkdir()
    given.pipeline.cache.write_bytes(b"not a database, and longer than the header of one " * 9)
    assert earlier(judged(images, given, verifier())) == [False, False]
    assert caplog.text.count("the verdict cache") == 1


def test_a_foreign_value_is_no_verdict(images: list[str], tmp_path: Path) -> None:
    given = settings(tmp_path)
    judged(images, given, verifier())
    with closing(sqlite3.connect(tmp_path / "made" / "verdicts")) as file, file:
        file.execute("UPDATE verdicts SET verdict = '{}'")
    assert earlier(judged(images, given, verifier())) == [False, False]


def test_the_oldest_go(images: list[str], tmp_path: Path) -> None:
    known = VerdictFile(tmp_path / "verdicts", Settings.of(), most=1)
    (verdict, *_) = judged(images, Settings.of(), verifier())
    for digest in ("one", "other"):
        known.put(digest, verdict)
    assert (known.get("one", "x"), known.get("other", "x", "7")) != (None, None)
    assert known.get("one", "x") is None
    found = known.get("other", "x", "7")
    assert found is not None
    assert (found.source, found.job_id) == ("x", "7")

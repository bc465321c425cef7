"""The real handler with a real conductor of fake detectors: fetch, decode, batches, cache, artifacts."""

import asyncio
import base64
import hashlib
import json
import time
from contextlib import asynccontextmanager
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from inference import verdict_cache
from inference.detector import Verifier
from inference.ensemble import Ensemble
from tests.fakes import FakeDetector, fusion_model
from tests.sites import Site, fetch_without_guard
from tests.worker.conftest import answered
from utils.contracts import PUBLIC_FEATURES
from worker import jobs
from worker.cache import RedisCache
from worker.judge import Judge
from worker.stream import Keys


def png(level: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def verifier(detector=None):
    detector = detector or FakeDetector("dino")
    meanings = dict.fromkeys((*PUBLIC_FEATURES, *detector.features), "")
    return Verifier(Ensemble([detector], [], {}), fusion_model(*detector.features), meanings)


class Recording(Verifier):
    """Remembers the size of each batch."""

    def __init__(self, inner):
        vars(self).update(vars(inner))
        self.batches = []

    def verify(self, samples, job_ids=None):
        self.batches.append(len(samples))
        return super().verify(samples, job_ids)


class Slow(Recording):
    def verify(self, samples, job_ids=None):
        time.sleep(0.2)
        return super().verify(samples, job_ids)


class Fragile(Recording):
    def verify(self, samples, job_ids=None):
        judgements = super().verify(samples, job_ids)
        if any(sample.rgb.mean() == 13 for sample in samples):
            raise ZeroDivisionError
        return judgements


def judging(verifier, cached=False):
    @asynccontextmanager
    async def make(settings, metrics, client, _):
        cache = RedisCache(client, Keys(settings.queue.prefix), 60) if cached else None
        verifiers, parts = {"embedded": verifier}, (settings.queue, settings.pipeline, settings.decode, settings.fetch)
        judges = verdict_cache.Judges(settings)
        async with Judge(*parts, verifiers, metrics, cache, lambda _: judges(verifier)) as judge:
            yield judge

    return make


def verdict(db, keys, job_id):
    return json.loads(db.get(keys.verdict(job_id)))


def test_images_become_verdicts_in_batches(db, keys, server, run_worker):
    for number in range(20):
        db.xadd(keys.streams[1], {"image": png(number * 10), "filename": f"{number}.png", "job_id": str(number)})
    recording = Recording(verifier())
    found, _ = run_worker(judging(recording), lambda service: answered(service, server.url, keys, 20))
    assert set(map(tuple, found.values())) == {("ok",)}
    assert sum(recording.batches) == 20
    assert max(recording.batches) > 1
    answer = verdict(db, keys, "7")
    assert (answer["job_id"], answer["source"], answer["format"], answer["label"]) == ("7", "7.png", "PNG", "NON-AI")
    assert answer["dino_prob"] == pytest.approx(70 / 255, abs=1e-4)


def test_pixels_in_memory_stay_within_the_limit(db, keys, server, run_worker):
    buffer = BytesIO()
    Image.new("RGB", (700, 700)).save(buffer, "PNG")  # 1.5 MB of pixels in a few bytes of file: one fills the limit
    for number in range(8):
        db.xadd(keys.streams[1], {"image": buffer.getvalue(), "job_id": str(number)})
    recording = Slow(verifier())  # so that decoding could run ahead of it
    run_worker(
        judging(recording),
        lambda s: answered(s, server.url, keys, 8),
        pipeline_max_mb=1,
        pipeline_decoders=1,
        pipeline_batch=8,
    )
    assert recording.batches == [1] * 8


def test_every_frame_of_an_animation_counts_towards_the_limit(db, keys, server, run_worker):
    frames = [Image.new("L", (400, 400), level) for level in range(0, 240, 30)]  # 0.5 MB of pixels each, decoded
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    for number in range(4):
        db.xadd(keys.streams[1], {"image": buffer.getvalue(), "job_id": str(number)})
    recording = Slow(verifier())
    run_worker(
        judging(recording),
        lambda s: answered(s, server.url, keys, 4),
        pipeline_max_mb=1,
        pipeline_decoders=1,
        pipeline_batch=8,
    )
    assert recording.batches == [1] * 4


def test_a_file_that_is_no_image_is_answered_once_from_the_decoding_child(db, keys, server, run_worker):
    db.xadd(keys.streams[1], {"image": b"<html>", "job_id": "a"})
    db.xadd(keys.streams[1], {"image": b"", "job_id": "b"})
    run_worker(
        judging(verifier()), lambda s: answered(s, server.url, keys, 2), decode_in_child=True, pipeline_decoders=1
    )
    assert [verdict(db, keys, name)["error"]["code"] for name in "ab"] == ["not_an_image", "empty_input"]


def test_an_image_that_breaks_its_batch_does_not_cost_the_others_theirs(db, keys, server, run_worker):
    for level in (10, 11, 12, 13, 14, 15):
        db.xadd(keys.streams[1], {"image": png(level), "job_id": str(level)})
    found, _ = run_worker(judging(Fragile(verifier())), lambda service: answered(service, server.url, keys, 6))
    assert {name for name, status in found.items() if status == ["error"]} == {"13"}
    assert verdict(db, keys, "13")["error"]["code"] == "internal"


def test_base64_in_a_data_uri_and_a_file_name_of_any_encoding_are_judged(db, keys, server, run_worker):
    uri = b"data:image/png;base64," + base64.b64encode(png(200))
    db.xadd(keys.streams[1], {"image_base64": uri, "filename": b"caf\xe9.png", "job_id": "uri"})
    db.xadd(keys.streams[1], {"image": b"text", "filename": b"caf\xe9.png", "job_id": "refused"})
    found, _ = run_worker(judging(verifier()), lambda s: answered(s, server.url, keys, 2))
    assert found == {"uri": ["ok"], "refused": ["error"]}
    assert verdict(db, keys, "uri")["source"] == "caf\ufffd.png"
    assert verdict(db, keys, "uri")["sha256"] == hashlib.sha256(png(200)).hexdigest()
    assert verdict(db, keys, "refused")["source"] == "caf\ufffd.png"
    assert verdict(db, keys, "refused")["error"]["code"] == "not_an_image"
    assert db.xlen(keys.dead) == 0


def test_a_path_below_an_opened_folder_is_read(db, keys, server, run_worker, tmp_path):
    (tmp_path / "a.png").write_bytes(png(200))
    db.xadd(keys.streams[1], {"path": str(tmp_path / "a.png"), "job_id": "inside"})
    db.xadd(keys.streams[1], {"path": str(tmp_path / "missing.png"), "job_id": "missing"})
    run_worker(judging(verifier()), lambda s: answered(s, server.url, keys, 2), queue_paths=str(tmp_path))
    assert verdict(db, keys, "inside")["label"] == "AI"
    assert verdict(db, keys, "missing")["error"]["code"] == "file_not_found"


@pytest.mark.parametrize("swapped", ["folder", "file"])
def test_a_link_that_is_swapped_in_after_the_look_at_the_path_leads_nowhere(
    db, keys, server, run_worker, tmp_path, monkeypatch, swapped
):
    root, outside = tmp_path / "open", tmp_path / "outside"
    for folder in (root / "in", outside):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(png(200))
    look = jobs._below_roots

    def look_and_swap(source, roots):
        found = look(source, roots)
        (root / "in" / "a.png").unlink()
        if swapped == "folder":
            (root / "in").rmdir()
            (root / "in").symlink_to(outside)
        else:
            (root / "in" / "a.png").symlink_to(outside / "a.png")
        return found

    monkeypatch.setattr(jobs, "_below_roots", look_and_swap)
    db.xadd(keys.streams[1], {"path": str(root / "in" / "a.png"), "job_id": "a"})
    run_worker(judging(verifier()), lambda s: answered(s, server.url, keys, 1), queue_paths=str(root))
    assert verdict(db, keys, "a")["error"]["code"] == "file_not_found"


def test_a_private_url_is_refused(db, keys, server, run_worker):
    db.xadd(keys.streams[1], {"url": "http://169.254.169.254/latest/meta-data", "job_id": "a"})
    run_worker(judging(verifier()), lambda service: answered(service, server.url, keys, 1))
    assert verdict(db, keys, "a")["error"]["code"] == "url_refused"


def test_addresses_that_never_answer_hold_up_neither_files_nor_other_addresses(
    db, keys, server, run_worker, monkeypatch
):
    monkeypatch.setattr("inference.pipeline.fetch_within", fetch_without_guard)
    with Site(png(9)) as site:
        for number in range(80):
            db.xadd(keys.streams[1], {"url": f"{site.silent}/{number}.png", "caller": "mallory"})
        db.xadd(keys.streams[1], {"image": png(9), "job_id": "file"})
        db.xadd(keys.streams[1], {"url": f"{site.url}/a.png", "job_id": "url", "caller": "bob"})
        found, _ = run_worker(
            judging(verifier()), lambda s: answered(s, server.url, keys, 2, seconds=10), fetch_seconds=60
        )
    assert found == {"file": ["ok"], "url": ["ok"]}


def test_the_same_bytes_may_be_answered_from_the_cache_and_the_verdict_says_so(db, keys, server, run_worker):
    recording = Recording(verifier())

    async def one_after_another(service):
        for number in (1, 2):
            db.xadd(keys.streams[1], {"image": png(9), "job_id": str(number), "filename": f"{number}.png"})
            await answered(service, server.url, keys, number)
            await asyncio.sleep(0.1)

    run_worker(judging(recording, cached=True), one_after_another)
    first, second = verdict(db, keys, "1"), verdict(db, keys, "2")
    assert recording.batches == [1]
    assert (second["job_id"], second["source"]) == ("2", "2.png")
    assert second["fusion_prob"] == first["fusion_prob"]
    assert not any("cache" in line for line in first["warnings"])
    assert any("cache" in line for line in second["warnings"])


def test_what_judges_is_digested_once_and_not_once_a_job(db, keys, server, run_worker, monkeypatch):
    digested = []
    monkeypatch.setattr(verdict_cache.Judges, "_digest", lambda _, verifier: digested.append(verifier) or "digest")
    for number in range(4):
        db.xadd(keys.streams[1], {"image": png(number * 10), "job_id": str(number)})
    judge = verifier()
    run_worker(judging(judge, cached=True), lambda service: answered(service, server.url, keys, 4))
    assert digested == [judge]


def test_no_caller_replaces_the_report_of_another(db, keys, server, run_worker, tmp_path):
    for job_id, caller in (("a", "alice"), ("b", "bob"), ("c", "")):
        named = {"caller": caller} if caller else {}
        db.xadd(keys.streams[1], {"image": png(9), "job_id": job_id, "filename": "x.png", "artifacts": "1", **named})
    run_worker(judging(verifier()), lambda s: answered(s, server.url, keys, 3), queue_artifacts_dir=str(tmp_path))
    reports = [verdict(db, keys, name)["artifacts"]["report"] for name in "abc"]
    digest = hashlib.sha256(png(9)).hexdigest()
    homes = [f"{tmp_path}/{owner}/x.png-{digest}" for owner in ("alice", "bob", "c")]
    assert [report.rpartition("/")[0] for report in reports] == homes


def test_artifacts_are_written_where_the_operator_wants_them(db, keys, server, run_worker, tmp_path):
    db.xadd(keys.streams[1], {"image": png(9), "job_id": "a", "filename": "../../a.png", "artifacts": "1"})
    run_worker(judging(verifier()), lambda s: answered(s, server.url, keys, 1), queue_artifacts_dir=str(tmp_path))
    report = verdict(db, keys, "a")["artifacts"]["report"]
    assert report.startswith(f"{tmp_path}/")
    assert ".." not in report


def test_a_disk_without_room_for_artifacts_costs_no_verdict(db, keys, server, run_worker, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("inference.report.write_atomic", full)
    db.xadd(keys.streams[1], {"image": png(9), "job_id": "a", "artifacts": "1"})
    found, _ = run_worker(
        judging(verifier()), lambda s: answered(s, server.url, keys, 1), queue_artifacts_dir=str(tmp_path)
    )
    assert found == {"a": ["ok"]}
    assert verdict(db, keys, "a")["artifacts"] == {}
    assert any("No space left" in warning for warning in verdict(db, keys, "a")["warnings"])


@pytest.mark.parametrize("value", [b"\xff", b"[]", b"{}", b'{"warnings": 7}', b"[" * 100_000])
def test_somebody_elses_value_in_the_cache_is_no_verdict(db, keys, server, run_worker, monkeypatch, value):
    async def get(self, digest):
        return value

    monkeypatch.setattr(RedisCache, "get", get)
    db.xadd(keys.streams[1], {"image": png(9), "job_id": "a"})
    found, _ = run_worker(judging(verifier(), cached=True), lambda s: answered(s, server.url, keys, 1))
    assert found == {"a": ["ok"]}
    assert verdict(db, keys, "a")["label"] == "NON-AI"

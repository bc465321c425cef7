"""The conductor: order, missing parts, failing parts, animations, and the verdict it builds."""

import json
import math
import os
import threading
import time
from dataclasses import asdict

import cv2
import jsonschema
import numpy as np
import pytest

from inference.detector import Verifier, build_verifier
from inference.ensemble import Ensemble
from inference.graphs import GraphDetector
from inference.limits import LEAST_LONG_SIDE
from tests.fakes import FakeDetector, flat_sample, forensic, fusion_model
from utils import threads
from utils.contracts import PUBLIC_FEATURES, Claim, Measurement, Note
from utils.errors import BadSettings, DeviceBusy, FusionMismatch
from utils.profiles import DEFAULT_PROFILE, PROFILES
from utils.settings import load_settings
from utils.threads import limit_library_threads
from utils.verdict_json import json_schema, verdict_dict

MEANINGS = dict.fromkeys([*PUBLIC_FEATURES, "effnet_prob", "toy.value"], "a number")


def verifier(*detectors, forensics=(), unavailable=None, inputs=("effnet_prob",), threshold=None):
    ensemble = Ensemble(detectors, forensics, unavailable or {})
    return Verifier(ensemble, fusion_model(*inputs), MEANINGS, threshold)


def verdicts(built, *samples):
    return [judgement.verdict for judgement in built.verify(samples)]


def test_images_are_judged_in_order():
    samples = [flat_sample(level) for level in (5, 250, 30)]
    answers = verdicts(verifier(FakeDetector()), *samples)
    assert [answer.label for answer in answers] == ["NON-AI", "AI", "NON-AI"]
    assert [answer.tier for answer in answers] == ["real", "ai", "real"]


def test_a_batch_answers_as_single_images_do():
    built = verifier(FakeDetector())
    samples = [flat_sample(level) for level in (0, 90, 180, 255)]
    together = [answer.fusion_prob for answer in verdicts(built, *samples)]
    assert together == [verdicts(built, sample)[0].fusion_prob for sample in samples]


def test_no_image_gives_no_verdict():
    assert verifier(FakeDetector()).verify([]) == []


def test_a_failing_detector_is_unavailable_and_the_verdict_stands():
    (answer,) = verdicts(verifier(FakeDetector(error=ValueError("secret path"))), flat_sample(9))
    assert answer.signals["effnet_prob"] is None
    assert answer.unavailable["effnet_prob"] == "effnet failed: internal error; see the log"
    assert "secret" not in json.dumps(verdict_dict(answer))
    told, failed = answer.warnings
    assert told.startswith("Nothing that the fusion model reads was measured")
    assert failed == "effnet failed: internal error; see the log"
    assert answer.fusion_prob == 0.5  # nothing measured: the prior
    assert (answer.tier, answer.reference) == ("inconclusive", None), "a prior promises nothing of an image"


def test_a_coded_failure_is_named():
    (answer,) = verdicts(verifier(FakeDetector(error=DeviceBusy("no memory"))), flat_sample(9))
    assert answer.unavailable["effnet_prob"] == "effnet failed: device_busy: no memory"


def test_one_bad_image_costs_only_itself_a_signal():
    detector = FakeDetector(error=ValueError("bad"), fails_on="bad")
    good, bad, other = verdicts(verifier(detector), flat_sample(9), flat_sample(9, "bad"), flat_sample(200))
    assert bad.signals["effnet_prob"] is None
    assert None not in (good.signals["effnet_prob"], other.signals["effnet_prob"])


def test_a_failing_forensic_module_is_unavailable_too():
    def explode(sample):
        raise ZeroDivisionError

    (answer,) = verdicts(verifier(FakeDetector(), forensics=[forensic("toy", "pixels", explode)]), flat_sample(9))
    assert "toy failed" in answer.unavailable["toy.value"]
    assert answer.label == "NON-AI"


def test_a_number_that_does_not_apply_says_why():
    skip = forensic("toy", "file", lambda sample: Measurement({"toy.value": math.nan}, skipped="not a JPEG"))
    (answer,) = verdicts(verifier(FakeDetector(), forensics=[skip]), flat_sample(9))
    assert (answer.signals["toy.value"], answer.unavailable["toy.value"]) == (None, "not a JPEG")


# --- threads


class Part(GraphDetector):
    """Brightness, as a detector that takes one image at a time."""

    name, features = "effnet", {"effnet_prob": "brightness"}

    def __init__(self, measured=None):
        super().__init__(None, "part@1")
        self.measured = measured or (lambda sample: sample.rgb.mean() / 255)

    def measure(self, sample):
        return Measurement({"effnet_prob": float(self.measured(sample))})


def test_images_and_parts_share_the_threads_and_the_answers_keep_their_order():
    barrier = threading.Barrier(4, timeout=10)  # passes only when four tasks run at a time

    def wait(sample):
        barrier.wait()
        return sample.rgb.mean() / 255

    def toy(name):
        return forensic(
            name, "pixels", lambda sample: Measurement({f"{name}.value": wait(sample)}, notes=(Note(name, "x"),))
        )

    noted = [toy("toy0"), toy("toy1"), toy("toy2")]
    samples = [flat_sample(level) for level in (0, 250, 40, 90)]
    found = Ensemble([Part(wait)], noted, {}, threads=4).measure(samples)
    assert [each.features["effnet_prob"] for each in found] == [0, 250 / 255, 40 / 255, 90 / 255]
    assert [[note.code for note in each.notes] for each in found] == [["toy0", "toy1", "toy2"]] * 4
    assert all(list(each.timings) == ["effnet", "toy0", "toy1", "toy2"] for each in found)


def test_no_more_than_the_threads_asked_for_work_at_a_time():
    running, most, lock = 0, 0, threading.Lock()

    def count(sample):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return 0.5

    Ensemble([Part(count)], [], {}, threads=2).measure([flat_sample(1)] * 8)
    assert most == 2


def test_both_kinds_of_detectors_answer_for_one_image():
    (answer,) = verdicts(verifier(FakeDetector("dino"), Part()), flat_sample(255))
    assert (answer.dino_prob, answer.signals["effnet_prob"]) == (1.0, 1.0)
    assert list(answer.models) == ["fusion", "dino", "effnet"]


def test_a_failing_image_of_a_part_costs_only_itself_and_is_logged(caplog):
    def fail(sample):
        if sample.source == "bad":
            raise DeviceBusy("no memory")
        return 0.5

    good, bad = verdicts(verifier(Part(fail)), flat_sample(9), flat_sample(9, "bad"))
    assert (good.signals["effnet_prob"], bad.signals["effnet_prob"]) == (0.5, None)
    assert bad.unavailable["effnet_prob"] == "effnet failed: device_busy: no memory"
    assert "Traceback" in caplog.text


def test_who_interrupts_does_not_wait_for_what_has_not_begun():
    begun = []

    def measure(sample):
        begun.append(sample)
        time.sleep(0.02)
        return 0.5

    class Interrupted(FakeDetector):
        def score(self, samples):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ensemble([Interrupted(), Part(measure)], [], {}, threads=1).measure([flat_sample(1)] * 50)
    time.sleep(0.1)
    assert len(begun) < 10


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 2), ("1000 100000", 1), ("max 100000", 99), ("", 99)]
)
def test_a_containers_share_of_cpu_time_counts_as_cores(tmp_path, monkeypatch, quota, expected):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(threads, "CGROUP_CPU", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(99), raising=False)
    assert threads.cores() == expected


def test_building_an_ensemble_leaves_the_process_as_it_was_and_closing_it_ends_its_threads():
    cv2.setNumThreads(3)
    before = set(threading.enumerate())
    with Ensemble([Part()], [], {}, threads=2) as ensemble:
        ensemble.measure([flat_sample(1)] * 4)
        assert any(thread.name.startswith("measure") for thread in set(threading.enumerate()) - before)
    assert cv2.getNumThreads() == 3
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    limit_library_threads()
    assert cv2.getNumThreads() == 1


# --- animations


def test_an_animation_of_a_part_is_its_median_too():
    frames = tuple(np.full((16, 16, 3), level, np.uint8) for level in (250, 250))
    (answer,) = verdicts(verifier(Part()), flat_sample(0, frames=frames, frame_count=3))
    assert answer.signals["effnet_prob"] == pytest.approx(250 / 255, abs=1e-6)


def test_an_animation_is_judged_by_the_median_of_its_frames():
    frames = tuple(np.full((16, 16, 3), level, np.uint8) for level in (250, 250))
    seen = []

    def measure(sample):
        seen.append(sample.source)
        return Measurement({"toy.value": float(sample.rgb[0, 0, 0])})

    forensics = [forensic("toy", "pixels", measure)]
    (answer,) = verdicts(verifier(FakeDetector(), forensics=forensics), flat_sample(0, frames=frames, frame_count=3))
    assert answer.signals["effnet_prob"] == pytest.approx(250 / 255, abs=1e-6)
    assert answer.signals["toy.value"] == 250
    assert len(seen) == 3


def test_a_module_that_reads_the_file_looks_once():
    seen = []

    def measure(sample):
        seen.append(sample.source)
        return Measurement({"toy.value": 1.0})

    frames = (np.zeros((16, 16, 3), np.uint8),)
    verdicts(verifier(FakeDetector(), forensics=[forensic("toy", "file", measure)]), flat_sample(0, frames=frames))
    assert len(seen) == 1


def test_a_generator_mark_decides_and_the_pixels_keep_their_number():
    claim = Claim("png_text", "generated", "forgeable_metadata", "X", "says X")
    mark = forensic("toy", "file", lambda sample: Measurement({"toy.value": 1.0}, claims=(claim,)))
    (answer,) = verdicts(verifier(FakeDetector(), forensics=[mark]), flat_sample(5))
    assert (answer.label, answer.tier, answer.decided_by) == ("AI", "likely_ai", "provenance")
    assert answer.fusion_prob < 0.1
    assert answer.provenance["claims"] == [asdict(claim)]
    assert "says X" in [reason.text for reason in answer.reasoning]


def test_notes_and_contributions_are_reasons():
    noted = forensic(
        "toy", "file", lambda sample: Measurement({"toy.value": 1.0}, notes=(Note("odd", "An odd thing."),))
    )
    (answer,) = verdicts(verifier(FakeDetector(), forensics=[noted]), flat_sample(5))
    by_code = {reason.code: reason for reason in answer.reasoning}
    assert by_code["odd"].contribution is None
    contributions = [reason for reason in answer.reasoning if reason.feature == "effnet_prob"]
    assert [reason.contribution < 0 for reason in contributions] == [True]


def test_too_small_an_image_keeps_its_label_and_gets_no_tier():
    (answer,) = verdicts(verifier(FakeDetector()), flat_sample(250, side=LEAST_LONG_SIDE - 1))
    assert (answer.label, answer.tier, answer.decided_by) == ("AI", "inconclusive", "fusion")
    assert answer.reasoning[0].code == "limit.too_small"
    assert answer.warnings == (answer.reasoning[0].text,)
    assert answer.reference is None, "known images are ordinary ones"


def test_a_generator_mark_decides_however_small_the_image():
    claim = Claim("png_text", "generated", "forgeable_metadata", "X", "says X")
    mark = forensic("toy", "file", lambda sample: Measurement({"toy.value": 1.0}, claims=(claim,)))
    (answer,) = verdicts(verifier(FakeDetector(), forensics=[mark]), flat_sample(250, side=2))
    assert (answer.label, answer.tier, answer.decided_by) == ("AI", "likely_ai", "provenance")


def test_what_is_not_installed_is_listed():
    (answer,) = verdicts(verifier(unavailable={"dino_prob": "weights not installed: run this"}), flat_sample(5))
    assert answer.dino_prob is None
    assert answer.unavailable["dino_prob"] == "weights not installed: run this"


def test_every_missing_number_has_its_reason(tmp_path):
    (answer,) = verdicts(build_verifier(load_settings(profile="full", weights_dir=tmp_path).models), flat_sample(5))
    assert {name for name, value in answer.numbers.items() if value is None} <= answer.unavailable.keys()
    assert "download_weights" in answer.unavailable["clip_h14_prob"]
    (answer,) = verdicts(build_verifier(load_settings(weights_dir=tmp_path).models), flat_sample(5))
    assert {name for name, value in answer.numbers.items() if value is None} <= answer.unavailable.keys()
    assert answer.unavailable["ghostnet_score"].startswith("not in the embedded profile")


def test_a_detector_that_fusion_does_not_know_is_shown_and_told():
    built = verifier(FakeDetector(), FakeDetector("dino"))
    (answer,) = verdicts(built, flat_sample(255))
    assert answer.dino_prob == 1.0
    (warning,) = answer.warnings
    assert warning.startswith("fusion fake-fusion was trained without dino_prob: shown, not used; to use: python -m ")


def test_full_answers_with_the_default_artifact_and_lists_what_does_not_count_yet(tmp_path):
    settings = load_settings(profile="full", weights_dir=tmp_path).models
    with build_verifier(settings) as built:
        (answer,) = verdicts(built, flat_sample(5))
    assert answer.models["fusion"] == PROFILES[DEFAULT_PROFILE].fusion
    beside = {each.detector: each for each in answer.beside}
    assert {"dino", "fatformer", "clip_h14", "clip_bigg", "dinov3", "metaclip2", "siglip2", "pe_core"} <= set(beside)
    assert "clip_b16" not in beside, "fusion was trained with it"
    assert not any(each.used for each in answer.beside)
    assert all(each.command.startswith("python -m scripts.build_profile full") for each in answer.beside)
    assert "50 to 63 %" in beside["fatformer"].figures
    assert beside["ghostnet"].value == answer.ghostnet_score is not None
    with build_verifier(load_settings(profile="light", weights_dir=tmp_path).models) as built:
        assert built.beside == ()


def test_a_threshold_of_the_caller_moves_the_label():
    assert verdicts(verifier(FakeDetector(), threshold=0.0), flat_sample(5))[0].label == "AI"


def test_fusion_refuses_to_start_without_its_inputs():
    with pytest.raises(FusionMismatch, match="nobody_makes_this"):
        verifier(FakeDetector(), inputs=("nobody_makes_this",))


def test_a_verdict_follows_its_published_schema():
    (answer,) = verdicts(verifier(FakeDetector(), unavailable={"dino_prob": "no"}), flat_sample(5))
    document = json.loads(json.dumps(verdict_dict(answer), allow_nan=False))
    jsonschema.validate(document, json_schema())
    assert list(document) == list(json_schema()["properties"])


def test_the_schema_refuses_another_label():
    (answer,) = verdicts(verifier(FakeDetector()), flat_sample(5))
    document = json.loads(json.dumps(verdict_dict(answer))) | {"label": "FAKE"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())


def test_a_mistyped_detector_is_named_with_the_nearest():
    with pytest.raises(BadSettings, match="did you mean 'fatformer'"):
        build_verifier(load_settings(detectors="fatfromer").models)


def test_two_detectors_for_one_feature_are_refused():
    with pytest.raises(BadSettings, match="mantra_anomaly"):
        build_verifier(load_settings(detectors="mantranet").models)

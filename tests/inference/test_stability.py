"""The same image in other shapes, and what a verdict says when it does not hold."""

import json

import jsonschema
import numpy as np
import pytest

from inference.detector import Verifier
from inference.ensemble import Ensemble
from inference.stability import compare, unstable, variants
from tests.fakes import fusion_model
from utils.contracts import PUBLIC_FEATURES, Measurement, Sample
from utils.deliveries import FIXED
from utils.verdict_json import json_schema, verdict_dict


class Eye:
    """A part that measures whatever it is told to."""

    name, features, reads, version = "effnet", {"effnet_prob": "a number"}, "pixels", "eye@1"

    def __init__(self, see):
        self.see = see

    def measure(self, sample):
        return Measurement({"effnet_prob": float(self.see(sample))})


def photo(width: int = 1200, height: int = 800) -> Sample:
    """Smooth noise, which JPEG keeps as it is."""
    rng = np.random.default_rng(0)
    rgb = np.kron(rng.integers(60, 200, (height // 40, width // 40, 3)), np.ones((40, 40, 1))).astype(np.uint8)
    return Sample("photo.png", b"raw", rgb, "PNG")


def verdict(see, sample, asked, threshold=None):
    verifier = Verifier(
        Ensemble([Eye(see)], (), {}),
        fusion_model("effnet_prob"),
        dict.fromkeys([*PUBLIC_FEATURES, "effnet_prob"], "a number"),
        threshold,
    )
    (judged,) = verifier.verify([sample], stability=[asked])
    return judged.verdict


def test_the_other_shapes_are_those_it_could_have_come_in():
    shapes = {name: (each.width, each.height, each.format) for name, each in variants(photo()).items()}
    assert shapes["web"] == (FIXED["web"][0], 512, "JPEG")
    assert shapes["hard"] == (FIXED["hard"][0], 341, "JPEG")
    assert shapes["crop"] == (1080, 720, "JPEG")
    assert shapes["enlarged"] == (1500, 1000, "JPEG")


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 400)])
def test_the_smallest_images_have_other_shapes_too(size):
    assert len(variants(Sample("x", b"x", np.zeros((*size, 3), np.uint8), "PNG"))) == 4


def test_a_large_image_costs_no_more_than_a_bounded_one():
    assert max(max(each.width, each.height) for each in variants(photo(6000, 4000)).values()) <= 2048


def test_a_verdict_that_holds_keeps_its_tier_and_gives_the_range():
    answer = verdict(lambda sample: 0.2, photo(), True)
    assert answer.tier == "real"
    assert answer.stability is not None
    assert not answer.stability.flips
    assert list(answer.stability.probabilities) == ["as_is", "web", "hard", "crop", "enlarged"]
    assert answer.stability.low == answer.stability.high == pytest.approx(answer.fusion_prob)
    assert "stability" in answer.timings_ms


def test_a_label_that_flips_is_inconclusive_and_names_when():
    answer = verdict(lambda sample: 0.2 if sample.width > FIXED["hard"][0] else 0.9, photo(), True)
    assert (answer.label, answer.tier) == ("NON-AI", "inconclusive")
    assert answer.stability is not None
    assert answer.stability.flips
    assert answer.reasoning[0].code == "limit.unstable"
    assert "as a small, strongly compressed copy it is the other one" in answer.reasoning[0].text
    assert answer.reasoning[0].text in answer.warnings
    jsonschema.validate(json.loads(json.dumps(verdict_dict(answer))), json_schema())


def test_nobody_pays_who_did_not_ask():
    seen = []
    answer = verdict(lambda sample: seen.append(sample) or 0.2, photo(), False)
    assert answer.stability is None
    assert len(seen) == 1


def test_the_threshold_that_was_set_is_the_one_that_may_be_crossed():
    def see(sample):
        return 0.2 if sample.width == 1200 else 0.21

    assert not verdict(see, photo(), True).stability.flips
    between = fusion_model("effnet_prob").probability({"effnet_prob": 0.205})
    assert verdict(see, photo(), True, between).stability.flips


def test_every_crossing_is_named():
    found = compare(0.7, {"web": 0.4, "hard": 0.3, "crop": 0.8, "enlarged": 0.7}, 0.5)
    assert (found.low, found.high, found.flips) == (0.3, 0.8, True)
    assert "as a web copy and as a small, strongly compressed copy" in unstable(found, 0.5).text

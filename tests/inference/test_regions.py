"""Pictures inside pictures: found where they lie, judged by themselves, and followed by the verdict."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from inference.batch import line_of
from inference.detector import Verifier
from inference.ensemble import Ensemble
from inference.limits import CONTENT, FLAT, LEAST_LONG_SIDE
from inference.parts import Forensic
from inference.regions import find
from inference.words import decided_by
from tests.fakes import FakeDetector, fusion_model
from training.screenshots import draw
from utils.contracts import PUBLIC_FEATURES, Measurement, Sample


def close(found, box, pixels: int) -> bool:
    return all(abs(one - other) <= pixels for one, other in zip(found, box, strict=True))


def framed(photograph, colour: int, size=(800, 900), at=(120, 150)) -> np.ndarray:
    canvas = np.full((*size, 3), colour, np.uint8)
    canvas[at[0] : at[0] + photograph.shape[0], at[1] : at[1] + photograph.shape[1]] = photograph
    return canvas


@pytest.mark.parametrize("dark", [True, False])
@pytest.mark.parametrize("phone", [True, False])
def test_the_picture_of_a_drawn_screen_is_found(photograph, phone, dark):
    screen = draw(photograph, np.random.default_rng(3), phone=phone, dark=dark)
    found = find(screen.rgb)
    assert any(close(box, screen.box, screen.rgb.shape[0] // 50) for box in found.boxes), (
        screen.sort,
        screen.box,
        found,
    )


@pytest.mark.parametrize("colour", [0, 30, 128])
def test_a_framed_picture_is_found_to_the_pixel_or_two(photograph, colour):
    (box,) = find(framed(photograph, colour)).boxes
    assert close(box, (150, 120, 640, 427), 2)


def test_a_collage_gives_its_pictures_the_largest_first_and_at_most_three(photograph):
    canvas = np.full((1000, 1000, 3), 30, np.uint8)
    for top in (20, 520):
        for left in (20, 520):
            side = 460 if (top, left) == (520, 520) else 400
            canvas[top : top + side, left : left + side] = (
                photograph[:side, :side]
                if side <= 427
                else np.kron(photograph[:230, :230], np.ones((2, 2, 1), np.uint8))
            )
    boxes = find(canvas).boxes
    assert len(boxes) == 3
    assert close(boxes[0], (520, 520, 460, 460), 3)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_a_photograph_holds_no_picture_and_is_no_screen(name):
    found = find(np.asarray(load_sample_image(name)))
    assert found.boxes == ()
    assert not found.is_screen


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 20_000), (70, 70), (600, 600)])
@pytest.mark.parametrize("level", [0, 255])
def test_blank_pictures_and_strips_hold_none(shape, level):
    assert find(np.full((*shape, 3), level, np.uint8)).boxes == ()


def test_a_round_thing_on_white_is_no_picture(photograph):
    rows, columns = np.ogrid[:427, :640]
    disc = ((rows - 213) / 210) ** 2 + ((columns - 320) / 315) ** 2 <= 1
    canvas = framed(np.where(disc[..., None], photograph, 255).astype(np.uint8), 255)
    assert find(canvas).boxes == ()


def judge(rgb, *forensics, detector=None):
    verifier = Verifier(
        Ensemble([detector or FakeDetector()], forensics, {}),
        fusion_model("effnet_prob"),
        dict.fromkeys([*PUBLIC_FEATURES, "effnet_prob", *CONTENT], "a number"),
    )
    (judged,) = verifier.verify([Sample("screen.png", b"raw", rgb, "PNG")])
    return judged.verdict


def test_label_and_tier_follow_the_picture_and_the_whole_keeps_its_number(photograph):
    bright = np.clip(photograph.astype(int) // 4 + 190, 0, 255).astype(
        np.uint8
    )  # the fake detector calls bright things AI
    answer = judge(framed(bright, 8))
    assert answer.fusion_prob < 0.5
    assert (answer.label, answer.tier, answer.decided_by) == ("AI", "ai", "fusion")
    (region,) = answer.regions
    assert region.decides
    assert region.fusion_prob > 0.9
    assert answer.reasoning[0].code == "region.decides"
    assert decided_by(answer) == f"a picture inside, {region.fusion_prob:.2f}"
    assert line_of("screen.png", answer).inside_prob == region.fusion_prob
    assert decided_by(replace(answer, decided_by="provenance")) == "provenance"


def test_a_picture_too_small_to_tell_gives_no_tier(photograph):
    small = photograph[:200, : LEAST_LONG_SIDE - 60]
    answer = judge(framed(small, 0, (420, 500), (100, 100)))
    assert len(answer.regions) == 1
    assert answer.tier == "inconclusive"
    assert [reason.code for reason in answer.reasoning[:2]] == ["region.decides", "limit.too_small"]


def test_a_picture_that_is_mostly_flat_gives_no_tier(photograph):
    measure = lambda sample: Measurement({FLAT: float(sample.height < 500)})  # noqa: E731 - the picture is flat
    flat = Forensic("flat", "pixels", {FLAT: "a number"}, {}, measure)
    answer = judge(framed(photograph, 0), flat)
    assert len(answer.regions) == 1
    assert answer.tier == "inconclusive"
    assert [reason.code for reason in answer.reasoning[:2]] == ["region.decides", "limit.flat"]


class BlindBelow(FakeDetector):
    """Sees nothing of what is less than so many pixels high."""

    def __init__(self, height):
        super().__init__()
        self.height = height

    def score(self, samples):
        if any(sample.height < self.height for sample in samples):
            raise ValueError("cannot see that")
        return super().score(samples)


def test_a_picture_that_could_not_be_measured_decides_nothing(photograph):
    answer = judge(framed(photograph, 8), detector=BlindBelow(500))
    assert answer.regions == ()
    assert answer.reasoning[0].code != "region.decides"
    assert answer.tier == "real", "of the whole, which was measured"


def test_a_screen_without_a_picture_is_inconclusive():
    canvas = np.full((900, 1200, 3), 255, np.uint8)
    rng = np.random.default_rng(0)
    for top in range(60, 840, 30):  # lines of something like text
        for left in range(60, 1000, 100):
            canvas[top : top + 8, left : left + int(rng.integers(30, 80))] = 30
    answer = judge(canvas)
    assert answer.regions == ()
    assert answer.tier == "inconclusive"
    assert answer.reasoning[0].code == "limit.screen"

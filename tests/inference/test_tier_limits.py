"""Which images are too small or too empty to tell."""

import math

import numpy as np
import pytest

from inference.limits import LEAST_ENTROPY, LEAST_LONG_SIDE, LEAST_SHORT_SIDE, MOST_FLAT, limits
from tests.fakes import flat_sample
from utils.contracts import Sample

TEXTURED = {"statistics.flat_area": 0.1, "image_entropy": 7.0}


READ = {"clip_b16_prob": 0.4}  # by the fusion


def codes(sample, features=TEXTURED, read=READ):
    return [note.code for note in limits(sample, {**features, **read}, READ)]


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1, 1, ["limit.too_small"]),
        (2, 2, ["limit.too_small"]),
        (20_000, 1, ["limit.too_small"]),
        (8, 8000, ["limit.too_small"]),
        (LEAST_LONG_SIDE - 1, LEAST_LONG_SIDE - 1, ["limit.too_small"]),
        (LEAST_LONG_SIDE, LEAST_SHORT_SIDE - 1, ["limit.too_small"]),
        (LEAST_LONG_SIDE, LEAST_SHORT_SIDE, []),
    ],
)
def test_small_pictures_and_strips_are_limited(width, height, expected):
    sample = Sample("x", b"x", np.zeros((height, width, 3), np.uint8), "PNG")
    assert codes(sample) == expected
    assert all(f"{width} x {height}" in note.text for note in limits(sample, TEXTURED | READ, READ))


@pytest.mark.parametrize(
    ("flat", "entropy", "expected"),
    [
        (1.0, 0.0, ["limit.flat"]),
        (MOST_FLAT + 0.01, 7.0, ["limit.flat"]),
        (0.0, LEAST_ENTROPY - 0.1, ["limit.flat"]),
        (MOST_FLAT, LEAST_ENTROPY, []),
        (math.nan, math.nan, []),
    ],
)
def test_pictures_without_content_are_limited(flat, entropy, expected):
    features = {"statistics.flat_area": flat, "image_entropy": entropy}
    assert codes(flat_sample(0, side=LEAST_LONG_SIDE), features) == expected


@pytest.mark.parametrize(("rows", "expected"), [(160, []), (170, ["limit.transparent"])])
def test_a_picture_that_is_mostly_transparent_is_limited(rows, expected):
    alpha = np.full((320, 320), 255, np.uint8)
    alpha[:rows] = 0
    assert codes(flat_sample(0, side=320, alpha=alpha)) == expected


def test_an_image_without_these_measurements_is_not_limited():
    assert codes(flat_sample(0, side=LEAST_LONG_SIDE), {}) == []


@pytest.mark.parametrize("read", [{}, {"clip_b16_prob": math.nan}])
def test_an_image_of_which_fusion_knows_nothing_is_limited(read):
    assert codes(flat_sample(0, side=LEAST_LONG_SIDE), TEXTURED, read) == ["limit.unmeasured"]


@pytest.mark.parametrize(("missing", "expected"), [(0.49, []), (0.5, ["limit.damaged"]), (1.0, ["limit.damaged"])])
def test_less_than_half_a_picture_carries_no_tier(missing, expected):
    pixels = np.zeros((400, 400, 3), np.uint8)
    assert codes(Sample("x", b"x", pixels, "PNG", missing=missing, whole_height=800, truncated=True)) == expected

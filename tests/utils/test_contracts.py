"""The types keep their promises."""

import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from utils.contracts import WINDOW_PIXELS, Claim, Measurement, Sample, orient, strongest


def sample(height=16, width=16, **fields):
    rgb = np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    return Sample("test", b"raw", rgb, "PNG", **fields)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(orientation):
    image = Image.fromarray(sample(4, 6).rgb)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(orient(sample(4, 6).rgb, orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize(
    "rgb",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_pixels_of_another_shape_or_type_are_refused(rgb):
    with pytest.raises(ValueError, match="uint8 H x W x 3"):
        Sample("test", b"", rgb, "PNG")


def test_the_bytes_of_a_sample_are_its_file_and_every_pixel():
    held = sample(4, 6, alpha=np.zeros((4, 6), np.uint8), frames=(np.zeros((4, 6, 3), np.uint8),) * 2)
    assert held.nbytes == len(b"raw") + 4 * 6 * (3 + 1 + 2 * 3)


def test_a_missing_number_needs_a_reason():
    with pytest.raises(ValueError, match=r"a\.b"):
        Measurement({"a.b": math.nan})
    assert Measurement({"a.b": math.nan}, skipped="not a JPEG").skipped


def test_an_infinite_number_is_refused():
    with pytest.raises(ValueError, match="infinite"):
        Measurement({"a.b": math.inf})


def test_a_small_image_is_its_own_window():
    small = sample()
    assert small.window.shape == small.rgb.shape
    assert np.shares_memory(small.window, small.rgb)
    assert small.window_origin == (0, 0)


@pytest.mark.parametrize("shape", [(3024, 4032), (20_000, 300), (2050, 2050)])
def test_a_large_image_has_a_bounded_window_on_the_jpeg_grid(shape):
    large = sample(*shape)
    height, width = large.window.shape[:2]
    top, left = large.window_origin
    assert height * width <= WINDOW_PIXELS * 1.01
    assert top % 8 == left % 8 == 0
    assert top + height <= large.height
    assert left + width <= large.width
    assert np.array_equal(large.window, large.rgb[top : top + height, left : left + width])


def test_a_heatmap_of_the_window_lands_where_the_window_is():
    large = sample(3024, 4032)
    heatmap = np.ones((large.window.shape[0] // 8, large.window.shape[1] // 8), np.float32)
    placed = large.window_to_image(heatmap)
    assert placed.shape[1] / placed.shape[0] == pytest.approx(4032 / 3024, rel=0.01)
    rows, columns = np.nonzero(np.isfinite(placed))
    assert rows[0] * 8 == pytest.approx(large.window_origin[0], abs=8)
    assert columns[0] * 8 == pytest.approx(large.window_origin[1], abs=8)


def test_grey_is_the_luma_of_the_window():
    white = Sample("test", b"", np.full((3, 5, 3), 255, np.uint8), "PNG")
    assert white.grey == pytest.approx(255, abs=1e-3)


def claim(kind, grade, generator=""):
    return Claim("xmp", kind, grade, generator, "a claim")


@pytest.mark.parametrize(
    ("weaker", "stronger"),
    [
        (claim("generated", "forgeable_metadata", "X"), claim("generated", "pixel_watermark")),
        (claim("generated", "pixel_watermark", "X"), claim("edited_with_ai", "signed_untrusted")),
        (claim("generated", "signed_untrusted", "X"), claim("edited_with_ai", "cryptographic")),
        (claim("edited_with_ai", "cryptographic", "X"), claim("generated", "cryptographic")),
        (claim("generated", "cryptographic"), claim("generated", "cryptographic", "X")),
    ],
)
def test_the_strongest_claim_is_the_hardest_to_forge_then_of_the_whole_image_then_named(weaker, stronger):
    assert strongest([weaker, stronger]) is strongest([stronger, weaker]) is stronger


def test_of_equal_claims_the_first_is_the_strongest_and_of_none_none_is():
    first, second = (Claim(source, "generated", "cryptographic", "", "a claim") for source in ("c2pa", "xmp"))
    assert strongest([first, second]) is first
    assert strongest([]) is None


@pytest.mark.parametrize(("kind", "grade"), [("painted", "cryptographic"), ("generated", "certain")])
def test_a_claim_of_an_unknown_kind_or_grade_is_refused(kind, grade):
    with pytest.raises(ValueError, match="not a claim we know"):
        claim(kind, grade)

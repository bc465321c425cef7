"""Traces of resizing: present after scaling a photograph, at the right frequency, absent before; finite on odd ones."""

from __future__ import annotations

import io
import math
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from forensics import resampling
from utils.contracts import RgbArray, Sample


def _features(rgb: NDArray[Any]) -> dict[str, float]:
    return dict(resampling.measure(Sample("test", b"", np.ascontiguousarray(rgb, dtype=np.uint8), "PNG")).features)


def _scaled(rgb: RgbArray, factor: float, method: int) -> RgbArray:
    return np.asarray(cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=method), dtype=np.uint8)


def _jpeg(rgb: RgbArray, quality: int) -> RgbArray:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.fixture(scope="module", params=["china.jpg", "flower.jpg"])
def photograph(request: pytest.FixtureRequest) -> RgbArray:
    return np.asarray(load_sample_image(request.param))


def test_a_photograph_as_it_is_shows_no_resampling(photograph: RgbArray) -> None:
    features = _features(photograph)
    assert features["resampling.trace"] < 0.3
    assert features["resampling.peak"] < 13


def test_enlarging_twice_raises_the_score_and_empties_half_of_the_resolution(photograph: RgbArray) -> None:
    before, after = _features(photograph), _features(_scaled(photograph, 2, cv2.INTER_CUBIC))
    assert after["resampling.trace"] > before["resampling.trace"] + 0.2
    assert after["resampling.deficit"] > before["resampling.deficit"] + 0.2


@pytest.mark.parametrize(
    ("factor", "method"), [(1.3, cv2.INTER_CUBIC), (1.1, cv2.INTER_LINEAR), (1.7, cv2.INTER_CUBIC)]
)
def test_enlarging_leaves_a_line_at_the_frequency_of_the_old_pixels(
    photograph: RgbArray, factor: float, method: int
) -> None:
    features = _features(_scaled(photograph, factor, method))
    assert features["resampling.trace"] > 0.9
    old = 1 / factor  # cycles per new pixel, folded at the Nyquist frequency
    lines = [min(k * old % 1, -k * old % 1) for k in (1, 2)]
    assert min(abs(features["resampling.frequency"] - line) for line in lines) < 0.01


def test_zero_insertion_aligned_to_pixels_leaves_a_line_at_one_half(photograph: RgbArray) -> None:
    height, width = photograph.shape[:2]
    rows, columns = np.indices((2 * height - 1, 2 * width - 1), dtype=np.float32) / 2
    features = _features(cv2.remap(photograph, columns, rows, cv2.INTER_LINEAR))
    assert features["resampling.frequency"] == pytest.approx(0.5, abs=0.01)
    assert features["resampling.peak"] > 20


@pytest.mark.parametrize("quality", [90, 60])
def test_the_block_grid_of_jpeg_is_not_taken_for_resampling(photograph: RgbArray, quality: int) -> None:
    assert _features(_jpeg(photograph, quality))["resampling.peak"] < 13


def test_blur_counts_as_missing_resolution_but_not_as_a_line(photograph: RgbArray) -> None:
    before, after = _features(photograph), _features(cv2.GaussianBlur(photograph, (0, 0), 2))
    assert after["resampling.deficit"] > before["resampling.deficit"] + 0.2
    assert after["resampling.peak"] < 13


def test_a_native_noise_picture_fills_its_resolution() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert _features(noise)["resampling.deficit"] == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (31, 4000), (64, 64), (64, 4000), (130, 200)])
def test_odd_shapes_are_finite_or_missing_with_a_reason(shape: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 1), dtype=np.uint8).repeat(3, axis=2)
    measured = resampling.measure(Sample("test", b"", rgb, "PNG"))
    assert list(measured.features) == list(resampling.FEATURES)
    assert (measured.skipped is None) == (min(shape) >= 64)


def test_drawn_pictures_are_finite_and_a_flat_one_says_why_not() -> None:
    stripes = np.zeros((128, 128, 3), dtype=np.uint8)
    stripes[:, ::3] = 255
    block = np.zeros((128, 128, 3), dtype=np.uint8)
    block[:, 64:] = 255
    for rgb in (stripes, block):
        assert 0 <= _features(rgb)["resampling.trace"] <= 1
    flat = resampling.measure(Sample("test", b"", block[:, :64].repeat(2, axis=1), "PNG"))
    assert flat.skipped
    assert all(math.isnan(value) for value in flat.features.values())


def test_measuring_twice_gives_the_same(photograph: RgbArray) -> None:
    assert _features(photograph) == _features(photograph.copy())

"""Error level analysis, on photographs that scikit-learn carries and on images made here."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from forensics import ela
from tests.pictures import noise
from utils.contracts import Sample

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def sample(rgb, format="PNG"):
    return Sample("test", b"", np.ascontiguousarray(rgb), format)


def compressed(rgb, quality, subsampling=2):
    buffer = BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return np.array(Image.open(buffer))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_gives_every_feature_and_a_map(name):
    found = ela.measure(sample(load_sample_image(name)))
    assert found.features.keys() == ela.FEATURES.keys()
    assert all(np.isfinite(value) for value in found.features.values())
    assert found.features["ela.mean"] < found.features["ela.max"]
    assert found.features["ela.edge_ratio"] > 1  # error follows texture
    heatmap = found.heatmaps["ela"]
    assert heatmap.shape == (27, 40)
    assert heatmap.dtype == np.float32
    assert 0 <= heatmap.min() <= heatmap.max() <= 1
    assert not found.notes


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_what_was_already_saved_at_this_quality_hardly_changes(name):
    fresh = cv2.resize(load_sample_image(name), None, fx=0.83, fy=0.83, interpolation=cv2.INTER_AREA)
    before = ela.measure(sample(fresh)).features["ela.mean"]
    after = ela.measure(sample(compressed(fresh, ela.QUALITY, subsampling=0))).features["ela.mean"]
    assert after < 0.25 * before


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_region_that_was_never_compressed_is_brighter_in_the_map(name):
    fresh = cv2.resize(load_sample_image(name), None, fx=0.83, fy=0.83, interpolation=cv2.INTER_AREA)
    plain = compressed(fresh, 75)
    pasted = plain.copy()
    pasted[96:256, 160:384] = fresh[96:256, 160:384]
    before, after = (ela.block_means(ela.recompression_change(image))[6:16, 10:24] for image in (plain, pasted))
    assert np.median(after / before) > 1.3
    assert ela.measure(sample(pasted)).features["ela.mean"] > ela.measure(sample(plain)).features["ela.mean"]


def test_a_flat_image_changes_nowhere():
    found = ela.measure(sample(np.full((200, 300, 3), 128, np.uint8)))
    assert found.features["ela.mean"] < 0.5
    assert found.features["ela.block_contrast"] == pytest.approx(1)
    assert found.features["ela.edge_ratio"] == pytest.approx(1)


def test_noise_changes_evenly():
    found = ela.measure(sample(noise(320, 320))).features
    assert found["ela.block_contrast"] < 1.3


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (40, 40), (4000, 3)])
def test_few_blocks_are_not_compared(shape):
    found = ela.measure(sample(noise(*shape)))
    assert np.isfinite(found.features["ela.mean"])
    has_enough = -(-shape[0] // 16) * -(-shape[1] // 16) >= ela.MIN_BLOCKS
    assert np.isnan(found.features["ela.edge_ratio"]) == (not has_enough)
    assert (found.skipped is None) == has_enough


def test_an_image_longer_than_a_jpeg_can_be_is_skipped():
    found = ela.measure(sample(np.zeros((2, 70_000, 3), np.uint8)))
    assert all(np.isnan(value) for value in found.features.values())
    assert "65500" in found.skipped


def test_the_container_changes_nothing():
    rgb = load_sample_image("china.jpg")
    assert ela.measure(sample(rgb, "PNG")).features == ela.measure(sample(rgb, "JPEG")).features


def test_a_large_image_is_looked_at_in_its_middle_and_says_so():
    heatmap = ela.measure(sample(np.zeros((160, 60_000, 3), np.uint8))).heatmaps["ela"]
    assert np.isnan(heatmap[0, 0])
    assert np.isfinite(heatmap[5, heatmap.shape[1] // 2])


@pytest.mark.parametrize("shape", [(1, 1), (37, 53), (1, 4000)])
def test_the_change_is_that_of_a_save_at_full_chroma_resolution(shape):
    rgb = noise(*shape)
    again = compressed(rgb, ela.QUALITY, subsampling=0)
    assert np.array_equal(ela.recompression_change(rgb), np.abs(rgb.astype(int) - again).sum(axis=2))


@pytest.mark.parametrize("size", [1, 2, 999, 1000, 5001])
def test_the_quantile_of_a_histogram_is_that_of_its_values(size):
    values = np.random.default_rng(size).integers(0, 766, size)
    counts = np.bincount(values, minlength=766).astype(np.float64)
    assert ela.quantile_of(counts, 0.999) == pytest.approx(np.quantile(values, 0.999))

"""The JPEG grid, on photographs that scikit-learn carries and on images made here."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.fft import dctn
from scipy.stats import binom
from sklearn.datasets import load_sample_image

from forensics import grid
from tests.pictures import never_compressed, noise
from utils.contracts import Sample

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def sample(rgb, format="PNG"):
    return Sample("test", b"", np.ascontiguousarray(rgb), format)


def through(rgb, format, **options):
    buffer = BytesIO()
    Image.fromarray(rgb).save(buffer, format, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


def codes(measurement):
    return [note.code for note in measurement.notes]


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_that_was_a_jpeg_shows_its_grid_at_the_corner(name):
    found = grid.measure(sample(load_sample_image(name)))
    assert found.facts == {"block_grid": {"present": True, "origin": [0, 0]}}
    assert found.features["grid.log_nfa"] == grid.LOG_NFA_FLOOR
    assert found.features["grid.vote_share"] > 0.5
    assert not found.notes


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (0, 1), (7, 4)])
def test_a_crop_shifts_the_origin_by_what_was_cut_off(name, rows, columns):
    found = grid.measure(sample(load_sample_image(name)[rows:, columns:]))
    assert found.facts["block_grid"]["origin"] == [-rows % 8, -columns % 8]
    assert found.features["grid.origin_shift"] == 1
    assert codes(found) == ["grid_shifted"]


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("last_save", [None, 100])
def test_a_region_pasted_off_the_grid_is_found_where_it_is(name, last_save):
    image = through(load_sample_image(name), "JPEG", quality=75)
    donor = through(never_compressed(name), "JPEG", quality=75)
    image = image.copy()
    image[160:288, 243:371] = donor[100:228, 100:228]
    if last_save:
        image = through(image, "JPEG", quality=last_save)
    found = grid.measure(sample(image))
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[160:288, 243:371] = True
    heatmap = found.heatmaps["jpeg_grid"]
    marked = np.kron(heatmap > 0, np.ones((8, 8), dtype=bool))[: mask.shape[0], : mask.shape[1]]
    assert (marked & mask).sum() / (marked | mask).sum() > 0.5
    assert codes(found) == ["grid_foreign_region"]
    assert found.features["grid.foreign_area"] == pytest.approx(mask.mean(), rel=0.4)
    assert heatmap.dtype == np.float32
    assert 0 <= heatmap.min() <= heatmap.max() <= 1


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("quality", [50, 75, 90, 98])
def test_one_compression_of_fresh_pixels_has_a_grid_and_no_foreign_region(name, quality):
    found = grid.measure(sample(through(never_compressed(name), "JPEG", quality=quality)))
    assert found.facts["block_grid"]["origin"] == [0, 0]
    assert found.features["grid.foreign_area"] == 0


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_resampled_pixels_have_no_grid(name):
    found = grid.measure(sample(never_compressed(name)))
    assert found.features["grid.present"] == 0
    assert found.facts["block_grid"]["origin"] is None


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_four_pixel_grid_of_lossy_webp_is_not_a_jpeg_grid(name):
    found = grid.measure(sample(through(never_compressed(name), "WEBP", quality=80)))
    assert found.features["grid.present"] == 0
    assert found.features["grid.foreign_area"] == 0


def test_noise_and_flat_images_have_no_grid():
    for rgb in (noise(300, 400), np.full((300, 400, 3), 200, np.uint8), np.zeros((16, 4000, 3), np.uint8)):
        found = grid.measure(sample(rgb))
        assert found.features["grid.present"] == found.features["grid.foreign_area"] == 0
        assert found.features["grid.log_nfa"] > 0
        assert not found.notes


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (15, 15), (4000, 3)])
def test_an_image_too_small_for_a_grid_is_skipped_with_a_reason(shape):
    found = grid.measure(sample(noise(*shape)))
    assert all(np.isnan(value) for value in found.features.values())
    assert "too small" in found.skipped
    assert found.features.keys() == grid.FEATURES.keys()


def test_the_container_changes_nothing():
    rgb = load_sample_image("china.jpg")[3:, 5:]
    assert grid.measure(sample(rgb, "PNG")).features == grid.measure(sample(rgb, "JPEG")).features


def test_zeros_are_those_of_the_block_transform():
    grey = sample(load_sample_image("flower.jpg")[:90, :70]).grey
    zeros = grid.count_zeros(grey)
    assert zeros.shape == (83, 63)
    for row, column in [(0, 0), (8, 16), (63, 5), (82, 62)]:
        small = np.abs(dctn(grey[row : row + 8, column : column + 8], norm="ortho")) < 0.5
        assert zeros[row, column] == small.ravel()[1:].sum()


def test_blocks_that_tie_do_not_vote():
    zeros = np.zeros((16, 16), dtype=np.uint8)
    zeros[8, 11] = 5
    votes = grid.cast_votes(zeros)
    assert votes.shape == (9, 9)
    assert votes[1, 4] == 0 * 8 + 3  # origin row 8 % 8, column 11 % 8
    assert votes[0, 0] == grid.ORIGINS
    zeros[9, 11] = 5
    assert grid.cast_votes(zeros)[2, 4] == grid.ORIGINS


def test_the_tail_is_never_below_the_binomial_one():
    trials = np.repeat([4.0, 25.0, 300.0], 5)
    hits = trials * np.tile([0.0, 0.1, 0.4, 0.8, 1.0], 3)
    bound = grid.log_tail(trials, hits, 1 / 64)
    exact = binom.logsf(np.ceil(hits) - 1, trials, 1 / 64) / np.log(10)
    assert np.all(bound >= exact - 1e-9)
    assert np.all(bound <= 0)


def test_a_large_image_is_looked_at_in_its_middle_and_says_so():
    found = grid.measure(sample(np.full((64, 80_000, 3), 90, np.uint8)))
    heatmap = found.heatmaps["jpeg_grid"]
    assert np.isnan(heatmap).any()
    assert not np.isnan(heatmap).all()


@pytest.mark.parametrize("size", [3, *grid.WINDOWS])
def test_box_sums_see_neither_the_border_nor_another_origin(size):
    cells = np.random.default_rng(0).integers(0, 65, (3, 12, 20), dtype=np.uint8)
    padded = np.pad(cells.astype(int), ((0, 0), *[(size // 2, size // 2)] * 2))
    expected = sliding_window_view(padded, (size, size), axis=(1, 2)).sum(axis=(3, 4))
    assert np.array_equal(grid.box_sums(cells, size), expected)

"""Manipulations of real photographs: the mask marks what changed, and only that."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from training.forgeries import KINDS, UNTOUCHED, forge, region

CHINA = np.asarray(load_sample_image("china.jpg"))[:256, :320]
FLOWER = np.asarray(load_sample_image("flower.jpg"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_the_region_and_keeps_the_shape(kind: str) -> None:
    rng = np.random.default_rng(0)
    mask = region(256, 320, rng)
    changed, marked = KINDS[kind](CHINA, FLOWER, mask, rng)
    assert changed.shape == CHINA.shape
    assert changed.dtype == marked.dtype == np.uint8
    assert marked.any()
    assert not (marked & ~mask).any()
    inside = marked > 0
    assert (changed[inside] != CHINA[inside]).mean() > 0.2


def test_a_region_leaves_most_of_the_image_alone() -> None:
    rng = np.random.default_rng(1)
    for height, width in ((256, 256), (40, 600), (33, 33)):
        for _ in range(20):
            mask = region(height, width, rng)
            assert mask.shape == (height, width)
            assert set(np.unique(mask)) == {0, 255}
            assert 0 < (mask > 0).mean() < 0.5


def test_outside_the_mask_only_what_is_done_to_the_whole_changes_pixels() -> None:
    quiet = 0
    for seed in range(30):
        rgb, mask = forge(CHINA, FLOWER, np.random.default_rng(seed))
        assert rgb.shape == CHINA.shape
        before, after = CHINA[mask == 0].ravel(), rgb[mask == 0].ravel()
        assert np.corrcoef(before, after)[0, 1] > 0.97  # brighter or of more contrast, but the same scene
        quiet += np.abs(after.astype(int) - before).mean() < 0.5
    assert quiet > 0  # some are not compressed at all


def test_some_images_stay_untouched_and_the_seed_decides() -> None:
    empty = [not forge(CHINA[:64, :64], FLOWER, np.random.default_rng(seed))[1].any() for seed in range(60)]
    assert 0 < np.mean(empty) < 3 * UNTOUCHED
    one, two = (forge(CHINA, FLOWER, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])

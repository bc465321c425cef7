"""Manipulations of real photographs: the mask marks what changed, and only that."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from scripts.forgeries import KINDS, UNTOUCHED, forge, region

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


def test_a_region_is_one_to_thirty_percent_and_inside() -> None:
    rng = np.random.default_rng(1)
    for height, width in ((256, 256), (40, 600), (33, 33)):
        for _ in range(20):
            mask = region(height, width, rng)
            assert mask.shape == (height, width)
            assert set(np.unique(mask)) == {0, 255}
            assert (mask > 0).mean() < 0.5


def test_outside_the_mask_only_compression_changes_pixels() -> None:
    quiet = 0
    for seed in range(30):
        rgb, mask = forge(CHINA, FLOWER, np.random.default_rng(seed))
        difference = np.abs(rgb.astype(int) - CHINA).mean(axis=2)
        outside = difference[mask == 0].mean()
        assert outside < 12
        quiet += outside < 0.5
        if mask.any():
            assert rgb.shape == CHINA.shape
    assert quiet > 0  # some are not compressed at all


def test_some_images_stay_untouched_and_the_seed_decides() -> None:
    empty = [not forge(CHINA[:64, :64], FLOWER, np.random.default_rng(seed))[1].any() for seed in range(60)]
    assert 0 < np.mean(empty) < 3 * UNTOUCHED
    one, two = (forge(CHINA, FLOWER, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])

"""Edits of real photographs: the mask marks what was changed, and of a copy its original too."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_sample_image

from training.edits import COPIED, SHARES, UNTOUCHED, copied, edit, region

CHINA = np.asarray(load_sample_image("china.jpg"))[:256, :320]
FLOWER = np.asarray(load_sample_image("flower.jpg"))[:256, :320]
REDRAWS = {"inpainted": lambda rgb, mask: 255 - rgb, "regenerated": lambda rgb, mask: 255 - rgb}


def test_a_region_is_small_as_often_as_large() -> None:
    rng = np.random.default_rng(0)
    areas = [(region(300, 400, rng) > 0).mean() for _ in range(200)]
    assert min(areas) > 0.002
    assert max(areas) < 0.3
    assert 0.3 < np.mean(np.array(areas) < 0.03) < 0.7


def test_a_copy_shows_the_region_elsewhere() -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        original = region(256, 320, rng)
        moved, copy = copied(CHINA, original, rng)
        assert copy.any()
        colours = [CHINA[original > 0].mean(axis=0), moved[copy > 0].mean(axis=0)]
        np.testing.assert_allclose(*colours, atol=25)  # up to a tenth may lie outside


def test_all_kinds_are_made_and_outside_the_mask_the_scene_stays() -> None:
    kinds = []
    for seed in range(80):
        image, mask, kind = edit(CHINA, FLOWER, REDRAWS, np.random.default_rng(seed))
        kinds.append(kind)
        assert image.shape == CHINA.shape
        assert mask.any() == bool(kind)
        assert np.corrcoef(CHINA[mask == 0].ravel(), image[mask == 0].ravel())[0, 1] > 0.95
    assert set(kinds) == {"", *SHARES}
    assert kinds.count("") < 2 * UNTOUCHED * 80
    assert kinds.count(COPIED) > 10


def test_without_a_network_its_kinds_are_not_made() -> None:
    kinds = {edit(CHINA[:64, :64], FLOWER[:64, :64], {}, np.random.default_rng(seed))[2] for seed in range(60)}
    assert not kinds & REDRAWS.keys()

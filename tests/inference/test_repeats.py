"""What is repeated inside an image: copies are found where they are, and what merely looks alike is not one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from inference.repeats import PLANES, repeats
from utils.contracts import RgbArray

BOX = np.s_[150:230, 60:150]  # of the photograph: trees before a wall


def pasted(photograph: RgbArray, turn: float, scale: float) -> tuple[RgbArray, np.ndarray]:
    """The box copied to the right, and where box and copy are."""
    height, width = photograph.shape[:2]
    matrix = cv2.getRotationMatrix2D((105, 190), turn, scale)
    matrix[:, 2] += (301, 33)
    here = np.zeros((height, width), np.uint8)
    here[BOX] = 255
    there = cv2.warpAffine(here, matrix, (width, height), flags=cv2.INTER_NEAREST)
    moved = cv2.warpAffine(photograph, matrix, (width, height), flags=cv2.INTER_CUBIC)
    return np.where(there[..., None] > 0, moved, photograph).astype(np.uint8), np.maximum(here, there) > 0


@pytest.mark.parametrize(("turn", "scale"), [(0, 1), (12, 1.1)])
def test_a_copy_and_its_original_are_found(photograph: RgbArray, turn: float, scale: float) -> None:
    image, truth = pasted(photograph, turn, scale)
    unique = repeats(image)[2] > 0.3
    assert (unique & truth).sum() > 0.5 * truth.sum()
    assert (unique & ~truth).mean() < 0.02


def test_a_photograph_does_not_repeat_itself(photograph: RgbArray) -> None:
    assert (repeats(photograph)[2] > 0.3).mean() < 0.02


@pytest.mark.parametrize("shape", [(64, 64), (64, 900), (300, 70)])
def test_flat_and_narrow_images_have_planes_too(shape: tuple[int, int]) -> None:
    for image in (np.full((*shape, 3), 90, np.uint8), np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)):
        found = repeats(image)
        assert found.shape == (PLANES, *shape)
        assert np.isfinite(found).all()
        assert (found[2] > 0.3).mean() < 0.05

"""Square views against torchvision's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision import transforms

from inference.views import IMAGENET, centre_square, normalised


@pytest.mark.parametrize(("resize", "side"), [(224, 224), (256, 224)])
@pytest.mark.parametrize("size", [(427, 640), (640, 427), (427, 427), (100, 37), (31, 640), (1, 1), (2, 300)])
def test_the_centre_is_what_torchvision_cuts(resize: int, side: int, size: tuple[int, int]) -> None:
    pixels = np.resize(load_sample_image("china.jpg"), (640, 640, 3))[: size[0], : size[1]]
    upstream = transforms.Compose([transforms.Resize(resize, Image.Resampling.BICUBIC), transforms.CenterCrop(side)])
    expected = np.asarray(upstream(Image.fromarray(pixels)), int)
    difference = np.abs(centre_square(pixels, resize, side) - expected)
    assert difference.max() <= 8
    assert (difference > 1).mean() < 0.001


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (31, 4000)])
def test_a_strip_costs_no_more_than_its_centre(shape: tuple[int, int]) -> None:
    assert (centre_square(np.full((*shape, 3), 7, np.uint8), 224, 224) == 7).all()


def test_pixels_come_in_units_of_the_training_set() -> None:
    pixels = np.array([[[0, 128, 255]]], np.uint8)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    found = normalised(pixels, IMAGENET)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-6)

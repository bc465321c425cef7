"""Square views of an image as vision transformers are trained on. Knows no network, no file and no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from utils.contracts import RgbArray


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and standard deviation of each colour of a training set, for pixels in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI_CLIP = Statistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # SigLIP 2 and Perception Encoder


def centre_square(rgb: RgbArray, resize: int, side: int) -> RgbArray:
    """Scale the shorter side to ``resize``, bicubic and antialiased, and cut the central ``side`` x ``side`` pixels.

    The result of torchvision's ``Resize(resize)`` and ``CenterCrop(side)`` on a Pillow image, to a grey level in 99.9 %
    of the values (Pillow rounds between its two passes; in float32 both agree). Only the part that is kept is scaled:
    the whole of a 1 x 4000 image would be 224 x 896000.

    Args:
        side: at most ``resize``.
    """
    height, width = rgb.shape[:2]
    shorter = min(height, width)
    box = []  # where the square lies in the source: left, top, then right, bottom
    for length in (width, height):
        scaled = resize * length // shorter
        offset = round((scaled - side) / 2)
        box.append((offset * length / scaled, min((offset + side) * length / scaled, float(length))))
    (left, right), (top, bottom) = box
    square = Image.fromarray(rgb).resize((side, side), Image.Resampling.BICUBIC, (left, top, right, bottom))
    return np.asarray(square)


def normalised(pixels: RgbArray, statistics: Statistics) -> NDArray[np.float32]:
    """H x W x 3 uint8 -> (3, H, W) float32 in units of the training set's deviation."""
    mean, std = (np.array(values, np.float32) for values in (statistics.mean, statistics.std))
    return np.ascontiguousarray(((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1))

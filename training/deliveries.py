"""How images travel in training: by which ways, and the random ones, drawn in the same way whatever their label.

The fixed ways, by which everything is measured, are ``utils.deliveries``. Knows no label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image

from utils.contracts import RgbArray
from utils.deliveries import encode_jpeg

Deliveries: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]]  # a mapping has those of each split

# Not as published: a model would learn containers. That it is measured on them too shows that it did not.
TAUGHT = ("web", "hard", "random1")
LOSSY = ("JPEG", "MPO")  # Pillow's names of formats that surely were compressed before; a WebP may be lossless

_INTERPOLATIONS = (cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_LANCZOS4)


def deliver_at_random(rgb: RgbArray, rng: np.random.Generator, *, compressed_before: bool) -> bytes:
    """One of the many ways an image travels: crop, scale, a filter or noise, then JPEG, WebP or PNG.

    The draws do not depend on the label, so format, size, quality and history say nothing about it. Files that were
    never lossy get a first JPEG generation too (``compressed_before`` false): else "compressed twice" would mean real.

    Args:
        rgb: H x W x 3, uint8.
        compressed_before: the file was already lossy when we got it.
    """
    if not compressed_before and rng.random() < 0.9:
        rgb = through_jpeg(rgb, int(rng.integers(75, 99)), int(rng.integers(0, 3)))
    if rng.random() < 0.5:
        rgb = _crop(rgb, rng)
    if rng.random() < 0.6:
        rgb = _resize(rgb, rng.uniform(0.25, 1.0), int(rng.choice(_INTERPOLATIONS)))
    if rng.random() < 0.15:
        rgb = _retouch(rgb, rng)
    if rng.random() < 0.25:
        rgb = through_jpeg(rgb, int(rng.integers(50, 99)), int(rng.integers(0, 3)))
    kind = rng.choice(["jpeg", "webp", "png"], p=[0.7, 0.15, 0.15])
    if kind == "jpeg":
        return encode_jpeg(rgb, int(rng.integers(35, 99)), int(rng.choice([0, 2])))
    out = BytesIO()
    Image.fromarray(rgb).save(out, "WEBP" if kind == "webp" else "PNG", quality=int(rng.integers(40, 96)))
    return out.getvalue()


def through_jpeg(rgb: RgbArray, quality: int, subsampling: int) -> RgbArray:
    """The pixels after one JPEG generation; arguments as of ``encode_jpeg``."""
    with Image.open(BytesIO(encode_jpeg(rgb, quality, subsampling))) as image:
        return np.asarray(image.convert("RGB"))


def _resize(rgb: RgbArray, scale: float, interpolation: int) -> RgbArray:
    if scale >= 1:
        return rgb
    width, height = (max(1, round(side * scale)) for side in (rgb.shape[1], rgb.shape[0]))
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=interpolation), dtype=np.uint8)


def _crop(rgb: RgbArray, rng: np.random.Generator) -> RgbArray:
    """Keep 70-100 % of each side, at any offset: the JPEG grid's phase changes, as it does in real crops."""
    height, width = (max(1, int(side * rng.uniform(0.7, 1.0))) for side in rgb.shape[:2])
    top, left = (int(rng.integers(0, side - kept + 1)) for side, kept in zip(rgb.shape, (height, width), strict=False))
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def _retouch(rgb: RgbArray, rng: np.random.Generator) -> RgbArray:
    """Mild blur, sharpening or noise, as of an editor or a phone."""
    choice = rng.integers(3)
    if choice == 2:
        change = rng.normal(0, rng.uniform(1, 4), rgb.shape)
    else:
        blurred = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.4, 1.2))
        change = rgb.astype(np.float64) - blurred  # unsharp mask
        change *= -1 if choice == 0 else rng.uniform(0.3, 1.0)
    return np.asarray((rgb + change).clip(0, 255), dtype=np.uint8)

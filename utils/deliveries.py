"""The fixed ways in which images reach people, and how to make and recognise them: the protocol of docs/evaluation.md.

Knows no label; the random ways of training are ``training.deliveries``.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from io import BytesIO
from typing import Final

import cv2
import numpy as np
from PIL import Image

from utils.contracts import RgbArray

# Name -> (longest side in px, JPEG quality); "clean" is the file as it is.
FIXED: Final = {"web": (768, 60), "hard": (512, 40)}
DELIVERIES: Final = ("clean", *FIXED)
ANY: Final = "all"  # of every delivery together

# Where "clean" lies among them for ``nearest``: files as they leave a camera or an editor, from here on all alike.
_CLEAN = (1536, 92)


def deliver(rgb: RgbArray, delivery: str) -> bytes:
    """Scale to the delivery's longest side (never up) and save as JPEG 4:2:0.

    Raises:
        KeyError: no such delivery; "clean" has no pixels of its own.
    """
    side, quality = FIXED[delivery]
    return encode_jpeg(shrink(rgb, side), quality, subsampling=2)


def shrink(rgb: RgbArray, side: int) -> RgbArray:
    """To at most ``side`` px on the longer side; never enlarged."""
    scale = side / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    width, height = (max(1, round(each * scale)) for each in (rgb.shape[1], rgb.shape[0]))
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def encode_jpeg(rgb: RgbArray, quality: int, subsampling: int) -> bytes:
    """JPEG bytes; ``subsampling`` as in Pillow: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0."""
    out = BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=quality, subsampling=subsampling)
    return out.getvalue()


def nearest(longest: int, quality: float, known: Collection[str]) -> str:
    """The delivery that an image looks most like: an octave of size counts as 20 steps of JPEG quality.

    Args:
        longest: side in px.
        quality: of its JPEG tables, 1..100; NaN: not a JPEG.
        known: names to choose from; ANY where the nearest is not among them.
    """
    points = {"clean": _CLEAN, **FIXED}
    side = min(max(longest, FIXED["hard"][0]), _CLEAN[0])
    quality = _CLEAN[1] if math.isnan(quality) else quality

    def distance(name: str) -> float:
        return math.hypot(math.log2(side / points[name][0]), (quality - points[name][1]) / 20)

    found = min(points, key=distance)
    return found if found in known else ANY

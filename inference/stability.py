"""Does the verdict hold? The same image in the other shapes in which it could have arrived. Measures nothing itself."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from inference.words import SHAPE_WORDS
from ingress.decode import Limits, decode
from utils.contracts import Note, RgbArray, Sample, Stability
from utils.deliveries import FIXED, deliver, encode_jpeg, shrink

KEPT = 0.9  # of each side, about the centre: what a careless crop leaves
ENLARGED = 1.25  # a mild up-scale, as of a messenger or a slide
LARGEST = 2048  # px, longer side of a crop or an up-scale: more would only take time
QUALITY = 92  # near what editors save with by default

_OWN = Limits(  # files of our own making, smaller by construction
    max_bytes=2**26, max_pixels=2 * LARGEST**2, max_frames=1, max_animation_pixels=2 * LARGEST**2
)


def variants(sample: Sample) -> dict[str, Sample]:
    """The image by the name of what was done to it; each is a JPEG file of its own."""
    rgb = sample.upright
    made = {name: deliver(rgb, name) for name in FIXED}
    made["crop"] = encode_jpeg(_crop(shrink(rgb, LARGEST)), QUALITY, subsampling=2)
    made["enlarged"] = encode_jpeg(_enlarge(shrink(rgb, int(LARGEST / ENLARGED))), QUALITY, subsampling=2)
    return {name: decode(raw, sample.source, _OWN) for name, raw in made.items()}


def compare(probability: float, others: Mapping[str, float], threshold: float) -> Stability:
    """
    Args:
        probability: of the image as it came.
        others: by what was done to it.
        threshold: from which on the label is AI.
    """
    found = {"as_is": probability, **others}
    low, high = min(found.values()), max(found.values())
    rounded = {name: round(value, 6) for name, value in found.items()}
    return Stability(low=round(low, 6), high=round(high, 6), flips=low < threshold <= high, probabilities=rounded)


def unstable(found: Stability, threshold: float) -> Note:
    """Why a label that flips carries no tier."""
    as_is = found.probabilities["as_is"] >= threshold
    turned = [SHAPE_WORDS[name] for name, value in found.probabilities.items() if (value >= threshold) != as_is]
    text = f"The label does not hold: {' and '.join(turned)} it is the other one ({found.low:.2f} to {found.high:.2f})."
    return Note("limit.unstable", text)


def _crop(rgb: RgbArray) -> RgbArray:
    height, width = (max(1, round(side * KEPT)) for side in rgb.shape[:2])
    top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def _enlarge(rgb: RgbArray) -> RgbArray:
    return np.asarray(cv2.resize(rgb, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)

"""EfficientNet-Lite fine-tuned on real and generated images: the whole image at several sizes, averaged.

Paper:      Tan and Le, ICML 2019; the network is timm's efficientnet_lite0
Sources:    trained by us
Differs:    several sizes, because what betrays a generator sits at a scale of its own, and nobody says how often an
            image was resized before it reached us
Limits:     it looks at content as well as at texture, so it can take unusual real images for generated ones
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import cv2
import numpy as np

from inference.graphs import Graph, GraphDetector, Network, sigmoid
from inference.registry import DETECTORS
from utils.contracts import Measurement, RgbArray, Sample
from utils.errors import WeightsMismatch

LONG_SIDES = (400, 512, 768)  # px; the last one is the largest that the network ever sees
MIN_SIDE = 64  # px; two steps of the network's stride


class EffNetDetector(GraphDetector):
    """``effnet_prob``: sigmoid of the mean logit over all sizes, divided by the calibration's temperature.

    Args:
        network: images to one logit each, (b, 1).
        temperature: above 0; what dividing by it makes of the validation set's probabilities is calibrated.
    """

    name: ClassVar[str] = "effnet"
    features: ClassVar[Mapping[str, str]] = DETECTORS["effnet"].features

    def __init__(self, network: Network, version: str, temperature: float = 1.0) -> None:
        super().__init__(network, version)
        self.temperature = temperature

    @classmethod
    def _of(cls, graph: Graph, version: str, metadata: Mapping[str, str]) -> Self:
        try:
            temperature = float(metadata.get("temperature", ""))
        except ValueError:
            temperature = math.nan
        if not 0 < temperature < math.inf:
            raise WeightsMismatch("effnet: the weights' metadata 'temperature' must be a number above 0")
        return cls(graph, version, temperature)

    def measure(self, sample: Sample) -> Measurement:
        return Measurement({"effnet_prob": float(sigmoid(self.logit(sample.upright) / self.temperature))})

    def logit(self, upright: RgbArray) -> float:
        """Mean over the sizes, before calibration."""
        return float(np.mean([self.run(view[np.newaxis])[0, 0] for view in views(upright)], dtype=np.float64))


def views(rgb: RgbArray) -> list[RgbArray]:
    """The image at each of LONG_SIDES that is smaller than it, and at its own size up to the last of them.

    The smaller ones are made from the largest, as in training: a photograph of 12 megapixels is read once.
    """
    largest = reduced(rgb)
    smaller = [side for side in LONG_SIDES if side < max(largest.shape[:2])]
    return [_mirrored(each) for each in (*(reduced(largest, side) for side in smaller), largest)]


def reduced(rgb: RgbArray, long_side: int = LONG_SIDES[-1]) -> RgbArray:
    """By area averaging to at most ``long_side``, never enlarged."""
    height, width = rgb.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return rgb
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _mirrored(rgb: RgbArray) -> RgbArray:
    """At least MIN_SIDE on each side."""
    short = [max(0, MIN_SIDE - side) for side in rgb.shape[:2]]
    return np.pad(rgb, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric") if any(short) else rgb

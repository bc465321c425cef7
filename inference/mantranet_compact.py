"""ManTraNet's design at a quarter of the width, one pixel of the map per 4 x 4 of the image: for CPUs.

Paper:      Wu, AbdAlmageed and Natarajan, CVPR 2019
Sources:    see models/mantranet_net.py; these weights are trained by us
Limits:     it looks for local departures: an image generated as a whole may show none. An image above MAX_PIXELS is
            reduced to it first, which blurs the traces.

What both widths make of an image and of a map is here, because this module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import cv2
import numpy as np

from inference.graphs import GraphDetector
from inference.registry import DETECTORS
from utils.contracts import Heatmap, Measurement, RgbArray, Sample

MARKED = 0.2  # the map's threshold in upstream's demonstration
LONGEST = 2**14  # px; a line of pixels costs far more tiles than its area says
ROBUST_MAXIMUM = 99.9  # percentile: one hot pixel in a thousand is no finding

# A quarter of what the full width and the map of edits get, and of the time: pixel AUROC .633 against .654, F1 .110
# against .119 on 56 images with masks (docs/LOG.md).
MAX_PIXELS = 2**17
BORDER = 2  # px; half of the first layer's kernel


class CompactManTraNetDetector(GraphDetector):
    """``mantra_anomaly``, its companions, and the heatmap "mantranet", from the stored pixels."""

    name: ClassVar[str] = "mantranet_compact"
    features: ClassVar[Mapping[str, str]] = DETECTORS["mantranet_compact"].features
    keeps_memory: ClassVar[bool] = False

    def measure(self, sample: Sample) -> Measurement:
        pixels = within_budget(sample.rgb, MAX_PIXELS)
        padded = np.pad(pixels, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), mode="symmetric")
        return described(self.run(padded[np.newaxis])[0, 0])


def described(heatmap: Heatmap) -> Measurement:
    """What a manipulation map says about its image."""
    features = {
        "mantra_anomaly": float(heatmap.mean()),
        "mantra.max": float(np.percentile(heatmap, ROBUST_MAXIMUM)),
        "mantra.area": float((heatmap > MARKED).mean()),
        "mantra.concentration": concentration(heatmap),
    }
    return Measurement(features, heatmaps={"mantranet": heatmap})


def within_budget(rgb: RgbArray, pixels: int) -> RgbArray:
    """Reduce by area averaging to at most ``pixels`` and LONGEST; smaller images are returned as they are."""
    height, width = rgb.shape[:2]
    scale = min(math.sqrt(pixels / (height * width)), LONGEST / max(height, width))
    if scale >= 1:
        return rgb
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def concentration(heatmap: Heatmap) -> float:
    """1 - spread of the map's mass / spread of an even map, 0 where that is negative; 0 for a map without contrast.

    Mass is what exceeds the map's median; spread is the mean squared distance from the centre of mass, with both
    sides of the image taken as 1 so that its aspect does not matter. 1: all in one point. 0: everywhere, or apart.
    """
    mass = np.maximum(heatmap.astype(np.float64) - np.median(heatmap), 0)
    total = mass.sum()
    if total <= 0:
        return 0.0
    spread = even = 0.0
    for axis in (0, 1):
        size = mass.shape[axis]
        place = (np.arange(size) + 0.5) / size
        share = mass.sum(axis=1 - axis) / total
        spread += float(share @ (place - share @ place) ** 2)
        even += float(np.var(place))
    return float(np.clip(1 - spread / even, 0, 1)) if even else 0.0

"""ManTraNet (CVPR 2019): where an image carries traces of manipulation; in full width, and in ours for CPUs.

Paper:      Wu, AbdAlmageed and Natarajan, CVPR 2019
Upstream:   github.com/RonyAbecidan/ManTraNet-pytorch@1af95cd; its weights, and the authors' Keras ones, are USC's:
            academic and non-commercial use only. The compact network's weights are ours.
Differs:    see models/mantranet_net.py. An image above MAX_PIXELS is reduced to it first, which blurs the traces.
Limits:     it looks for local departures: an image generated as a whole may show none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import cv2
import numpy as np
import torch
from torch import Tensor

from inference.base import TorchDetector
from inference.registry import DETECTORS
from models.loaders import Weights, load_into, load_state
from models.mantranet_net import COMPACT, Config, ManTraNet, from_keras_h5
from utils.contracts import Heatmap, Measurement, RgbArray, Sample

MARKED = 0.2  # the map's threshold in upstream's demonstration
LONGEST = 2**14  # px; a line of pixels costs far more tiles than its area says
ROBUST_MAXIMUM = 99.9  # percentile: one hot pixel in a thousand is no finding


class ManTraNetDetector(TorchDetector):
    """``mantra_anomaly``, its companions, and the heatmap "mantranet", from the stored pixels."""

    network: ManTraNet
    name: ClassVar[str] = "mantranet"
    features: ClassVar[Mapping[str, str]] = DETECTORS["mantranet"].features
    batch_size: ClassVar[int] = 1  # sizes differ from image to image
    CONFIG: ClassVar[Config] = Config()
    # On 2 CPU cores this many take 31 s of CPU time and 1 GiB; memory follows the tile, in 256 channels, twice.
    MAX_PIXELS: ClassVar[int] = 2**19
    TILE: ClassVar[int] = 384  # pixels a side; the overlap costs 15 % more work on the traces

    @classmethod
    def load(cls, weights: Weights, device: str, dtype: torch.dtype = torch.float32) -> Self:
        path = weights.path(cls.name)
        state = from_keras_h5(path) if path.suffix == ".h5" else load_state(path)
        with torch.device("meta"):
            network = ManTraNet(cls.CONFIG)
        load_into(network, state, dtype=dtype, channels_last=True)
        return cls(network, weights.card(cls.name).version, device, dtype, channels_last=True)

    @classmethod
    def tiny(cls) -> Self:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cls(ManTraNet(Config(1 / 16, cls.CONFIG.stride)).eval().requires_grad_(False), "tiny")

    def preprocess(self, sample: Sample) -> Tensor:
        pixels = within_budget(sample.rgb, self.MAX_PIXELS)
        return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).unsqueeze(0)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        return (self.network.tiled(views, self.TILE).sigmoid(),)

    def describe(self, outputs: tuple[Tensor, ...], sample: Sample) -> Measurement:
        heatmap: Heatmap = outputs[0][0, 0].numpy()
        features = {
            "mantra_anomaly": float(heatmap.mean()),
            "mantra.max": float(np.percentile(heatmap, ROBUST_MAXIMUM)),
            "mantra.area": float((heatmap > MARKED).mean()),
            "mantra.concentration": concentration(heatmap),
        }
        return Measurement(features, heatmaps={"mantranet": heatmap})


class CompactManTraNetDetector(ManTraNetDetector):
    """The same design at a quarter of the width, one pixel of the map per 4 x 4 of the image; trained by us."""

    name: ClassVar[str] = "mantranet_compact"
    features: ClassVar[Mapping[str, str]] = DETECTORS["mantranet_compact"].features
    CONFIG: ClassVar[Config] = COMPACT
    MAX_PIXELS: ClassVar[int] = 2**21  # 0.3 s per megapixel on 2 CPU cores
    TILE: ClassVar[int] = 1024


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

"""ManTraNet (CVPR 2019) at its published width: where an image carries traces of manipulation.

Paper:      Wu, AbdAlmageed and Natarajan, CVPR 2019
Upstream:   github.com/RonyAbecidan/ManTraNet-pytorch@1af95cd; its weights, and the authors' Keras ones, are USC's:
            academic and non-commercial use only
Differs:    see models/mantranet_net.py. An image above MAX_PIXELS is reduced to it first, which blurs the traces.
Limits:     it looks for local departures: an image generated as a whole may show none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from inference.base import TorchDetector
from inference.mantranet_compact import described, within_budget
from inference.registry import DETECTORS
from models.loaders import Weights, load_into, load_state
from models.mantranet_net import Config, ManTraNet, from_keras_h5
from utils.contracts import Measurement, Sample


class ManTraNetDetector(TorchDetector):
    """``mantra_anomaly``, its companions, and the heatmap "mantranet", from the stored pixels."""

    network: ManTraNet
    name: ClassVar[str] = "mantranet"
    features: ClassVar[Mapping[str, str]] = DETECTORS["mantranet"].features
    batch_size: ClassVar[int] = 1  # sizes differ from image to image
    # On 2 CPU cores this many take 31 s of CPU time and 1 GiB; memory follows the tile, in 256 channels, twice.
    MAX_PIXELS: ClassVar[int] = 2**19
    TILE: ClassVar[int] = 384  # pixels a side; the overlap costs 15 % more work on the traces

    @classmethod
    def load(cls, weights: Weights, device: str, dtype: torch.dtype = torch.float32) -> Self:
        path = weights.path(cls.name)
        state = from_keras_h5(path) if path.suffix == ".h5" else load_state(path)
        with torch.device("meta"):
            network = ManTraNet()
        load_into(network, state, dtype=dtype, channels_last=True)
        return cls(network, weights.card(cls.name).version, device, dtype, channels_last=True)

    @classmethod
    def tiny(cls) -> Self:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cls(ManTraNet(Config(width=1 / 16)).eval().requires_grad_(False), "tiny")

    def preprocess(self, sample: Sample) -> Tensor:
        pixels = within_budget(sample.rgb, self.MAX_PIXELS)
        return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).unsqueeze(0)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        return (self.network.tiled(views, self.TILE).sigmoid(),)

    def describe(self, outputs: tuple[Tensor, ...], sample: Sample) -> Measurement:
        return described(outputs[0][0, 0].numpy())

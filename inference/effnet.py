"""EfficientNet-Lite fine-tuned on real and generated images: the whole image at several sizes, averaged.

Paper:      Tan and Le, ICML 2019; the network is timm's, its name is stored with the weights
Sources:    trained by us
Differs:    several sizes, because what betrays a generator sits at a scale of its own, and nobody says how often an
            image was resized before it reached us
Limits:     it looks at content as well as at texture, so it can take unusual real images for generated ones
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import cv2
import numpy as np
import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from inference.base import TorchDetector
from inference.registry import DETECTORS
from inference.views import IMAGENET, to_tensor
from models.loaders import Weights, load_into
from utils.contracts import Measurement, RgbArray, Sample
from utils.errors import WeightsCorrupt, WeightsMismatch

LONG_SIDES = (400, 512, 768)  # px; the last one is the largest that the network ever sees
MIN_SIDE = 64  # px; two steps of the network's stride


class EffNetDetector(TorchDetector):
    """``effnet_prob``: sigmoid of the mean logit over all sizes, divided by the calibration's temperature.

    Args:
        network: images to one logit each, (b, 1).
        temperature: above 0; what dividing by it makes of the validation set's probabilities is calibrated.
    """

    name: ClassVar[str] = "effnet"
    features: ClassVar[Mapping[str, str]] = DETECTORS["effnet"].features
    batch_size: ClassVar[int] = 1  # sizes differ from image to image

    def __init__(
        self,
        network: nn.Module,
        version: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(network, version, device, dtype, channels_last=True)  # 180 instead of 300 ms on 2 CPU cores
        self.temperature = temperature

    @classmethod
    def load(cls, weights: Weights, device: str, dtype: torch.dtype = torch.float32) -> Self:
        card = weights.card("effnet")
        architecture, temperature = _metadata(weights.path("effnet"))
        with torch.device("meta"):
            network = timm.create_model(architecture, pretrained=False, num_classes=1)
        load_into(network, weights.state("effnet"), dtype=dtype, channels_last=True)
        return cls(network, card.version, device, dtype, temperature)

    @classmethod
    def tiny(cls) -> Self:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = timm.create_model("test_efficientnet", pretrained=False, num_classes=1)
            return cls(network.eval().requires_grad_(False), "tiny")

    def preprocess(self, sample: Sample) -> Tensor:
        return to_tensor(reduced(sample.upright), IMAGENET).unsqueeze(0)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        logits = [self.network(rescaled(views, side)) for side in long_sides(views)]
        return (torch.stack(logits).mean(dim=0),)

    def describe(self, outputs: tuple[Tensor, ...], sample: Sample) -> Measurement:
        return Measurement({"effnet_prob": float((outputs[0] / self.temperature).sigmoid())})


def _metadata(path: Path) -> tuple[str, float]:
    """The trainer's ``architecture`` and ``temperature``, from the header of a safetensors file.

    Raises:
        WeightsCorrupt: not a safetensors file.
        WeightsMismatch: one of the two is missing or not understood.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise WeightsCorrupt(f"{path} is not a safetensors file: {error}") from error
    architecture = metadata.get("architecture", "")
    if not timm.is_model(architecture):
        raise WeightsMismatch(f"{path}: metadata 'architecture' is {architecture!r}, not a network of timm's")
    try:
        temperature = float(metadata.get("temperature", ""))
    except ValueError:
        temperature = math.nan
    if not 0 < temperature < math.inf:
        raise WeightsMismatch(f"{path}: metadata 'temperature' must be a number above 0")
    return architecture, temperature


# --- pixels, shared by training and inference: reduced, views.to_tensor, then rescaled to each size


def reduced(rgb: RgbArray) -> RgbArray:
    """By area averaging to at most LONG_SIDES[-1] on the longer side, never enlarged; mirrored up to MIN_SIDE."""
    height, width = rgb.shape[:2]
    scale = LONG_SIDES[-1] / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    short = [max(0, MIN_SIDE - side) for side in rgb.shape[:2]]
    return np.pad(rgb, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric") if any(short) else rgb


def long_sides(views: Tensor) -> tuple[int, ...]:
    """The sizes at which views are looked at: each of LONG_SIDES below theirs, then their own."""
    own = max(views.shape[-2:])
    return (*(side for side in LONG_SIDES if side < own), own)


def rescaled(views: Tensor, long_side: int) -> Tensor:
    """(b, 3, h, w) reduced to a longer side, with a triangle filter as wide as the reduction (antialiased)."""
    height, width = views.shape[-2:]
    if long_side == max(height, width):
        return views
    scale = long_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return functional.interpolate(views.float(), size, mode="bilinear", antialias=True).to(views.dtype)

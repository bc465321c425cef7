"""FatFormer (CVPR 2024): CLIP ViT-L/14 adapted to generated images; strong on GANs, near chance on many newer sources.

Paper:      Liu et al., CVPR 2024, arXiv 2312.16649
Upstream:   github.com/Michel-liu/FatFormer@febc24c   Licence: code and weights Apache-2.0
Differs:    see models/fatformer_net.py; preprocessing is upstream's (utils/dataset.py)
Limits:     trained on ProGAN (car, cat, chair, horse). The DDA authors' JPEG-matched protocol gives 50 to 63 % on
            in-the-wild sets, so fusion, not this number, decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inference.base import TorchDetector
from inference.registry import DETECTORS
from inference.views import IMAGENET, normalised
from models.fatformer_net import TINY, FatFormer, official_name
from models.loaders import Weights, load_into
from utils.contracts import Measurement, Sample

RESIZE = 256
CROP = 224
OFFICIAL = "fatformer_official"  # layout of the published file, as its card says


class FatFormerDetector(TorchDetector):
    """``fatformer_prob``: softmax probability of the class "fake"."""

    name: ClassVar[str] = "fatformer"
    features: ClassVar[Mapping[str, str]] = DETECTORS["fatformer"].features

    @classmethod
    def load(cls, weights: Weights, device: str, dtype: torch.dtype = torch.float32) -> Self:
        state = weights.state("fatformer")
        with torch.device("meta"):
            network = FatFormer()
        card = weights.card("fatformer")
        rename = official_name if card.layout == OFFICIAL else None  # else scripts.train_fatformer's, our own names
        load_into(network, state, rename=rename, dtype=dtype)
        return cls(network, card.version, device, dtype)

    @classmethod
    def tiny(cls) -> Self:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cls(FatFormer(TINY).eval().requires_grad_(False), "tiny")

    def preprocess(self, sample: Sample) -> Tensor:
        # Aspect ratio is not kept. Pillow's resize is what torchvision calls for a PIL image; it antialiases.
        resized = Image.fromarray(sample.upright).resize((RESIZE, RESIZE), Image.Resampling.BILINEAR)
        border = (RESIZE - CROP) // 2
        pixels = np.asarray(resized)[border : border + CROP, border : border + CROP]
        # ImageNet's statistics, not CLIP's: upstream trained with them.
        return torch.from_numpy(normalised(pixels, IMAGENET)).unsqueeze(0)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        return (self.network(views).softmax(dim=-1)[:, 1],)

    def describe(self, outputs: tuple[Tensor, ...], sample: Sample) -> Measurement:
        return Measurement({"fatformer_prob": float(outputs[0])})

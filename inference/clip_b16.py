"""CLIP ViT-B/16 as it was published, and a linear head on the class tokens of its blocks.

Papers:     see models/clip_tower.py
Sources:    the tower is OpenAI's, unchanged; the head is trained by us
Differs:    the head is a logistic regression on the tokens themselves; RINE projects and weighs them first
Limits:     it sees the whole image at 224 px: what is shown and how it is drawn or lit, not the finest detail
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from inference.graphs import Floats, Graph, GraphDetector, Network, sigmoid
from inference.registry import DETECTORS
from inference.views import centre_square
from models.loaders import Weights, compare
from models.quantised import load_quantised
from utils.contracts import Measurement, RgbArray, Sample
from utils.errors import WeightsMismatch

SIDE = 224  # px of the square that the tower looks at
BLOCKS, WIDTH = 12, 768  # of the tower: class tokens of one image are (BLOCKS, WIDTH)


class ClipB16Detector(GraphDetector):
    """``clip_b16_prob``: sigmoid of a weighted sum of all class tokens.

    Args:
        network: the tower; squares to class tokens, (b, BLOCKS, WIDTH).
        weight: (BLOCKS, WIDTH); 0 where the head does not look. Standardisation and calibration are in it.
        bias: likewise.
    """

    name: ClassVar[str] = "clip_b16"
    features: ClassVar[Mapping[str, str]] = DETECTORS["clip_b16"].features

    def __init__(self, network: Network, version: str, weight: Floats, bias: float) -> None:
        super().__init__(network, version)
        self.weight = weight
        self.bias = bias

    @classmethod
    def load(cls, weights: Weights, device: str = "cpu") -> Self:
        """Build it from installed weights: the tower's, its graph and the head.

        Raises:
            WeightsMissing, WeightsCorrupt, WeightsMismatch: see models.loaders and ``Graph``.
        """
        head, metadata = weights.arrays("clip_b16_head")
        compare("clip_b16_head", {"weight": (BLOCKS, WIDTH), "bias": (1,)}, {k: v.shape for k, v in head.items()})
        card = weights.card("clip_b16")
        if metadata.get("tower") != card.sha256:
            raise WeightsMismatch(f"clip_b16_head was trained on the tower {metadata.get('tower')}, not {card.sha256}")
        tower = load_tower(weights, device)
        return cls(tower, weights.card("clip_b16_head").version, head["weight"], float(head["bias"][0]))

    @classmethod
    def tiny(cls) -> Self:
        """The shipped graph with random weights, and a random head: for tests."""
        weight = np.random.default_rng(1).standard_normal((BLOCKS, WIDTH)) / np.sqrt(BLOCKS * WIDTH)
        return cls(cls._tiny_graph(), "tiny", weight.astype(np.float32), 0.0)

    def measure(self, sample: Sample) -> Measurement:
        logit = np.sum(self.tokens(sample.upright) * self.weight, dtype=np.float64) + self.bias
        return Measurement({"clip_b16_prob": float(sigmoid(logit))})

    def tokens(self, upright: RgbArray) -> Floats:
        """What the head looks at: (BLOCKS, WIDTH)."""
        return self.run(view(upright)[np.newaxis])[0]


def load_tower(weights: Weights, device: str = "cpu") -> Graph:
    """The tower alone, ready to run; errors as in ``ClipB16Detector.load``."""
    arrays, _ = load_quantised(weights.path("clip_b16"))
    return Graph(weights.path("clip_b16_graph"), arrays, device)


def view(upright: RgbArray) -> NDArray[np.uint8]:
    """The shorter side scaled to SIDE, and the central square of it."""
    return centre_square(upright, SIDE, SIDE)

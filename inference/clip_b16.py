"""CLIP ViT-B/16 as it was published, and heads on the class tokens of its blocks.

Papers:     see models/clip_tower.py
Sources:    the tower is OpenAI's, unchanged; the heads are trained by us
Differs:    a head weighs the tokens themselves and what known images say that lie near; RINE trains a projection
Limits:     it sees the whole image at 224 px: what is shown and how it is drawn or lit, not the finest detail
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fusion.reference import KINDS, kind_feature
from inference.class_head import ClassHead
from inference.graphs import Floats, Graph, GraphDetector, Network, prefers_integers, sigmoid
from inference.registry import DETECTORS
from inference.similarity_head import SimilarityHead
from inference.views import centre_square
from models.loaders import Weights, compare
from models.quantised import load_integers, load_quantised
from utils.contracts import Measurement, Resemblance, RgbArray, Sample
from utils.errors import WeightsMismatch

SIDE = 224  # px of the square that the tower looks at
EMBEDDING = 64  # numbers of the projection that a verdict may carry
BLOCKS, WIDTH = 12, 768  # of the tower: class tokens of one image are (BLOCKS, WIDTH)


class ClipB16Detector(GraphDetector):
    """``clip_b16_prob``: sigmoid of what the head says of all class tokens. Beside it: which kind of image this seems
    to be and, if it is generated, which family of generators it resembles.

    Args:
        network: the tower; squares to class tokens, (b, BLOCKS, WIDTH).
        head: of tokens (BLOCKS, WIDTH). Standardisation and calibration are in it.
        kinds, families: heads of their own; None where the data they were trained on did not tell them apart.
        named: from which probability on a family is named, and how often that was right on sources that were new.
    """

    name: ClassVar[str] = "clip_b16"
    features: ClassVar[Mapping[str, str]] = DETECTORS["clip_b16"].features

    def __init__(
        self,
        network: Network,
        version: str,
        head: SimilarityHead,
        kinds: ClassHead | None = None,
        families: ClassHead | None = None,
        named: tuple[float, float] = (1.0, 0.0),
    ) -> None:
        super().__init__(network, version)
        self.head = head
        self.kinds = kinds
        self.families = families
        self.named = named

    @classmethod
    def load(cls, weights: Weights, device: str = "cpu") -> Self:
        """Build it from installed weights: the tower's, its graph and the head.

        Raises:
            WeightsMissing, WeightsCorrupt, WeightsMismatch: see models.loaders and ``Graph``.
        """
        # The tower first: after an array of the head's size was freed, glibc would keep what the tower is made of.
        tower = load_tower(weights, device)
        head, metadata = load_quantised(weights.path("clip_b16_head"))
        compare("clip_b16_head", _shapes(metadata), {name: values.shape for name, values in head.items()})
        card = weights.card("clip_b16")
        if metadata.get("tower") != card.sha256:
            raise WeightsMismatch(f"clip_b16_head was trained on the tower {metadata.get('tower')}, not {card.sha256}")
        kinds, families = (
            ClassHead.from_arrays(head, prefix, metadata[prefix]) if metadata.get(prefix) else None
            for prefix in ("kinds", "families")
        )
        named = float(metadata.get("named_from", 1)), float(metadata.get("named_right", 0))
        version = weights.card("clip_b16_head").version
        return cls(tower, version, SimilarityHead.from_arrays(head), kinds, families, named)

    @classmethod
    def tiny(cls) -> Self:
        """The shipped graph with random weights, and random heads: for tests."""
        weights = np.random.default_rng(1).standard_normal((1 + len(KINDS), BLOCKS, WIDTH)) / np.sqrt(BLOCKS * WIDTH)
        weight, *kinds = weights.astype(np.float32)
        of_kinds = ClassHead(tuple(KINDS), np.stack(kinds), np.zeros(len(KINDS), np.float32))
        return cls(cls._tiny_graph(), "tiny", SimilarityHead(weight, 0.0), of_kinds)

    def measure(self, sample: Sample) -> Measurement:
        tokens = self.tokens(sample.upright)
        score = float(sigmoid(self.head.log_odds(tokens[np.newaxis])[0]))
        features = dict.fromkeys(self.features, math.nan) | {"clip_b16_prob": score}
        skipped = None if self.kinds else "the installed head tells no kinds of images apart"
        if self.kinds:
            shares = self.kinds.probabilities(tokens)
            features |= {kind_feature(kind): float(share) for kind, share in zip(self.kinds.names, shares, strict=True)}
        resembles, shown = self._resembles(tokens), embedding(tokens)
        return Measurement(features, resembles=resembles, skipped=skipped, embedding=shown)

    def _resembles(self, tokens: Floats) -> Resemblance | None:
        """The likeliest family of generators, if this image is generated at all."""
        if self.families is None:
            return None
        shares = self.families.probabilities(tokens)
        best, (cut, right) = int(shares.argmax()), self.named
        family = self.families.names[best] if shares[best] >= cut else Resemblance.UNKNOWN
        return Resemblance(family=family, probability=round(float(shares[best]), 3), right=right)

    def tokens(self, upright: RgbArray) -> Floats:
        """What the head looks at: (BLOCKS, WIDTH)."""
        return self.run(view(upright)[np.newaxis])[0]


def embedding(tokens: Floats) -> tuple[float, ...]:
    """The last block's token, of unit length, seen from EMBEDDING directions that never change."""
    last = np.asarray(tokens[-1], np.float64)
    seen = _directions() @ (last / max(float(np.linalg.norm(last)), 1e-12))
    return tuple(round(float(value), 4) for value in seen)


@cache
def _directions() -> NDArray[np.float64]:
    """Johnson and Lindenstrauss: distances survive. RandomState, whose numbers NumPy promises to keep."""
    return np.random.RandomState(0).standard_normal((EMBEDDING, WIDTH)) / math.sqrt(EMBEDDING)


def _shapes(metadata: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """What a head's file holds, by what its metadata says."""
    shapes: dict[str, tuple[int, ...]] = {"weight": (BLOCKS, WIDTH), "bias": (1,)}
    shapes |= SimilarityHead.shapes(metadata.get("known_size", ""), WIDTH)
    for prefix in ("kinds", "families"):
        if classes := len(metadata.get(prefix, "").split()):
            shapes |= {f"{prefix}_weight": (classes, BLOCKS, WIDTH), f"{prefix}_bias": (classes,)}
    return shapes


def load_tower(weights: Weights, device: str = "cpu") -> Graph:
    """The tower alone, ready to run; errors as in ``ClipB16Detector.load``.

    In whole numbers where those are exact: half of the time and 240 MB less, and the same scores to about 0.001.
    """
    if not prefers_integers(device):
        return load_float_tower(weights, device)
    return Graph(weights.path("clip_b16_graph_int8"), load_integers(weights.path("clip_b16")), device)


def load_float_tower(weights: Weights, device: str = "cpu") -> Graph:
    """The tower as OpenAI's weights have it, in float32."""
    arrays, _ = load_quantised(weights.path("clip_b16"))
    return Graph(weights.path("clip_b16_graph"), arrays, device)


def view(upright: RgbArray) -> NDArray[np.uint8]:
    """The shorter side scaled to SIDE, and the central square of it."""
    return centre_square(upright, SIDE, SIDE)

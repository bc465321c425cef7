"""How rare a score is: of real images the share that scores at least as high, of AI images the share at most as low.

Measured on images of sources that neither the detectors nor the fusion model saw in fitting (``training.reference``),
kept in the fusion artifact. Replaces nobody's threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from fusion.estimators import FloatArray
from utils.contracts import Json, Reference
from utils.deliveries import ANY

# Kinds of images that scores are compared within.
KINDS = {"photo": "photographs", "art": "drawings and paintings", "screen": "screenshots, documents and posters"}
SURE = 0.6  # of its kind; an image of which nobody can be so sure is compared with all kinds
# Probabilities at which the shares are kept: log-odds of -5 to 5 in quarters, finer than their intervals.
LOG_ODDS = np.arange(-5.0, 5.01, 0.25)
CUTS: FloatArray = 1 / (1 + np.exp(-LOG_ODDS))
EDGES = tuple(LOG_ODDS[::2].tolist())  # of a histogram: every other cut, for bars that can be seen
DIGITS = 5  # of a share: a hundredth of the smallest that a thousand images can show


def kind_feature(kind: str) -> str:
    """The number that says how much an image looks like this kind, 0..1; those of all kinds sum to 1."""
    return f"clip_b16.{kind}"


def most_like(features: Mapping[str, float]) -> tuple[str, float]:
    """The kind that an image seems to be, and how surely; ANY where nobody measured it or nobody can be sure."""
    shares = {kind: features.get(kind_feature(kind), math.nan) for kind in KINDS}
    known = {kind: share for kind, share in shares.items() if share >= SURE}
    return max(known.items(), key=itemgetter(1), default=(ANY, math.nan))


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Of one kind of image under one delivery: shares at CUTS with 95 % intervals over sources; c x 3 each."""

    real_as_high: FloatArray  # falls
    ai_as_low: FloatArray  # rises
    real_sources: int
    ai_sources: int

    def __post_init__(self) -> None:
        for shares in (self.real_as_high, self.ai_as_low):
            if shares.shape != (len(CUTS), 3) or not ((shares >= 0) & (shares <= 1)).all():
                raise ValueError(f"shares must be {len(CUTS)} x 3 in 0..1, got {shares.shape}")


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of real and of AI images by their log-odds: below the first edge, between edges, above the last."""

    edges: tuple[float, ...]
    real: tuple[float, ...]
    ai: tuple[float, ...]

    def position(self, probability: float) -> float:
        """Where a score stands among the bars, counted in bars from the left."""
        within = min(max(probability, CUTS[0]), CUTS[-1])
        log_odds = math.log(within / (1 - within))
        return 1 + (log_odds - self.edges[0]) / (self.edges[1] - self.edges[0])


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceTable:
    """Curves by kind (ANY: of all kinds) and delivery."""

    measured_on: str  # which images, in words
    curves: Mapping[str, Mapping[str, Curves]]

    def __post_init__(self) -> None:
        if ANY not in self.curves.get(ANY, {}):
            raise ValueError(f"a reference table needs {ANY} kinds of images under {ANY} deliveries")

    @classmethod
    def from_json(cls, stored: Mapping[str, Json]) -> ReferenceTable:
        curves = {
            kind: {
                delivery: Curves(
                    np.array(each["real_as_high"], float),
                    np.array(each["ai_as_low"], float),
                    each["real_sources"],
                    each["ai_sources"],
                )
                for delivery, each in deliveries.items()
            }
            for kind, deliveries in stored["curves"].items()
        }
        return cls(stored["measured_on"], curves)

    def to_json(self) -> dict[str, Json]:
        def plain(curves: Curves) -> dict[str, Json]:
            return {
                "real_sources": curves.real_sources,
                "ai_sources": curves.ai_sources,
                "real_as_high": curves.real_as_high.tolist(),
                "ai_as_low": curves.ai_as_low.tolist(),
            }

        curves = {
            kind: {delivery: plain(each) for delivery, each in found.items()} for kind, found in self.curves.items()
        }
        return {"measured_on": self.measured_on, "curves": curves}

    def of(self, kind: str) -> Mapping[str, Curves]:
        """The curves of a kind by delivery; of all kinds where it has none."""
        return self.curves.get(kind, self.curves[ANY])

    def histogram(self, kind: str, delivery: str) -> Histogram:
        """How the scores of real and of AI images are spread; ``kind`` and ``delivery`` as of ``Reference``."""
        found = self.curves[kind][delivery]
        below = 1 - found.real_as_high[::2, 0], found.ai_as_low[::2, 0]
        real, ai = (np.diff(shares, prepend=0, append=1).clip(0).round(DIGITS).tolist() for shares in below)
        return Histogram(EDGES, tuple(real), tuple(ai))

    def histograms(self) -> dict[str, dict[str, Histogram]]:
        """Of every kind and delivery that the table has."""
        return {kind: {each: self.histogram(kind, each) for each in found} for kind, found in self.curves.items()}

    def look_up(self, probability: float, delivery: str, kind: str = ANY, share: float = 1.0) -> Reference:
        """Between two cuts the shares are interpolated; beyond the last, its own are an upper bound.

        Args:
            delivery, kind: ANY is used for one that the table does not have.
            share: how surely the image is of its kind.
        """
        kind = kind if kind in self.curves else ANY
        delivery = delivery if delivery in self.of(kind) else ANY
        found = self.of(kind)[delivery]
        real, ai = (
            [round(float(np.interp(probability, CUTS, column)), DIGITS) for column in shares.T]
            for shares in (found.real_as_high, found.ai_as_low)
        )
        return Reference(
            kind=kind,
            kind_probability=None if kind == ANY else round(share, 3),
            delivery=delivery,
            real_as_high=real[0],
            interval=(real[1], real[2]),
            ai_as_low=ai[0],
            ai_interval=(ai[1], ai[2]),
        )

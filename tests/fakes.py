"""Doubles: a detector that measures brightness, and a fusion model small enough to reason about."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fusion.calibration import Platt
from fusion.decision import Thresholds
from fusion.estimators import Logistic, Scaling
from fusion.meta_model import FusionModel
from inference.parts import Forensic
from utils.contracts import Measurement, Sample

THRESHOLDS = Thresholds(label=0.5, real=0.1, likely_real=0.4, likely_ai=0.6, ai=0.9)


class FakeDetector:
    """Gives the mean brightness (0..1) of each image as ``name``_prob, or raises what it was given."""

    version = "fake@1"

    def __init__(self, name: str = "effnet", error: Exception | None = None, fails_on: str | None = None) -> None:
        self.name = name
        self.features = {f"{name}_prob": "brightness"}
        self.error = error
        self.fails_on = fails_on

    def score(self, samples: Sequence[Sample]) -> list[Measurement]:
        if self.error and (self.fails_on is None or any(sample.source == self.fails_on for sample in samples)):
            raise self.error
        return [Measurement({f"{self.name}_prob": float(sample.rgb.mean() / 255)}) for sample in samples]


def forensic(name: str, reads: str, measure) -> Forensic:
    return Forensic(name, reads, {f"{name}.value": "a number"}, {}, measure)


def fusion_model(*inputs: str) -> FusionModel:
    """Log-odds = 4 x (sum of the inputs' log-odds or values); missing inputs add nothing."""
    n = len(inputs)
    scaling = Scaling(np.zeros(n), np.ones(n), np.array([name.endswith("_prob") for name in inputs]))
    return FusionModel(
        name="fake-fusion",
        profile="embedded",
        inputs=inputs,
        estimator=Logistic(scaling, np.full(n, 4.0), np.zeros(n), 0.0),
        calibration=Platt(1.0, 0.0),
        thresholds=THRESHOLDS,
        quantiles={label: np.full((n, 5), math.nan) for label in ("real", "ai")},
        metrics={},
    )


def flat_sample(level: int, source: str = "flat", side: int = 320, **fields) -> Sample:
    return Sample(source, b"raw %d" % level, np.full((side, side, 3), level, np.uint8), "PNG", **fields)


def flat_png(level: int = 200) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()

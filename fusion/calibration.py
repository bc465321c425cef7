"""The two monotone maps from raw log-odds to a calibrated probability. Knows how to apply them, not to fit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from fusion.estimators import FloatArray, sigmoid
from utils.contracts import Json

PROBABILITY_FLOOR = 1e-6  # a probability is never exactly 0 or 1, so a threshold of 1 means "never"


@dataclass(frozen=True, slots=True)
class Platt:
    """A straight line in log-odds (Platt 1999); with intercept 0 it is temperature scaling (Guo et al. 2017)."""

    kind: ClassVar[str] = "platt"
    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (self.slope > 0 and np.isfinite(self.slope) and np.isfinite(self.intercept)):
            raise ValueError(f"calibration must be finite and rise: {self}")

    def __call__(self, log_odds: FloatArray) -> FloatArray:
        return _bounded(self.slope * log_odds + self.intercept)

    def to_json(self) -> dict[str, Json]:
        return {"kind": self.kind, "slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Piecewise linear between knots, both axes in log-odds; constant outside them."""

    kind: ClassVar[str] = "isotonic"
    log_odds: tuple[float, ...]  # strictly rising
    calibrated: tuple[float, ...]  # rising

    def __post_init__(self) -> None:
        steps, rises = np.diff(self.log_odds), np.diff(self.calibrated)
        if (
            len(self.log_odds) != len(self.calibrated)
            or not self.log_odds
            or not (steps > 0).all()
            or (rises < 0).any()
        ):
            raise ValueError("isotonic knots must rise")

    def __call__(self, log_odds: FloatArray) -> FloatArray:
        return _bounded(np.interp(log_odds, self.log_odds, self.calibrated))

    def to_json(self) -> dict[str, Json]:
        return {"kind": self.kind, "log_odds": list(self.log_odds), "calibrated": list(self.calibrated)}


Calibration: TypeAlias = Platt | Isotonic


def calibration_from_json(calibration: Mapping[str, Json]) -> Calibration:
    if calibration["kind"] == Platt.kind:
        return Platt(float(calibration["slope"]), float(calibration["intercept"]))
    if calibration["kind"] == Isotonic.kind:
        return Isotonic(tuple(calibration["log_odds"]), tuple(calibration["calibrated"]))
    raise ValueError(f"unknown calibration {calibration['kind']!r}")


def _bounded(log_odds: FloatArray) -> FloatArray:
    return np.clip(sigmoid(log_odds), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)

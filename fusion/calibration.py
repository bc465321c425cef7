"""The monotone maps from raw log-odds to a calibrated probability. Knows how to apply them, not to fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypeAlias

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


@dataclass(frozen=True, slots=True, eq=False)
class Subsets:
    """A calibration for each subset of parts (detectors, and forensics as a whole) that may be all that was measured.

    One for all would be too flat where a strong part is missing: what remains was weighed beside it.
    """

    parts: Mapping[str, tuple[int, ...]]  # part -> positions of its inputs
    maps: Mapping[frozenset[str], Calibration]  # by the parts that were measured

    def __call__(self, matrix: FloatArray, log_odds: FloatArray, otherwise: Calibration) -> FloatArray:
        """n x d features and their n log-odds -> n; ``otherwise`` is for subsets without a map, as the full one."""
        measured = np.column_stack([~np.isnan(matrix[:, list(each)]).all(axis=1) for each in self.parts.values()])
        patterns, pattern_of_row = np.unique(measured, axis=0, return_inverse=True)
        probabilities = np.empty(len(matrix))
        for number, pattern in enumerate(patterns):
            rows = pattern_of_row.reshape(-1) == number
            kept = frozenset(name for name, there in zip(self.parts, pattern, strict=True) if there)
            probabilities[rows] = self.maps.get(kept, otherwise)(log_odds[rows])
        return probabilities

    def to_json(self, inputs: Sequence[str]) -> dict[str, Json]:
        named = {name: [inputs[each] for each in positions] for name, positions in self.parts.items()}
        maps = {" ".join(sorted(kept)): each.to_json() for kept, each in self.maps.items()}
        return {"parts": named, "maps": maps}

    @classmethod
    def from_json(cls, stored: Mapping[str, Json], inputs: Sequence[str]) -> Self:
        """
        Raises:
            ValueError: a part names an input that is not there, or a map a part.
        """
        parts = {name: tuple(inputs.index(each) for each in names) for name, names in stored["parts"].items()}
        maps = {frozenset(kept.split()): calibration_from_json(each) for kept, each in stored["maps"].items()}
        if unknown := frozenset().union(*maps) - parts.keys():
            raise ValueError(f"maps of unknown parts: {', '.join(sorted(unknown))}")
        return cls(parts, maps)


def calibration_from_json(calibration: Mapping[str, Json]) -> Calibration:
    if calibration["kind"] == Platt.kind:
        return Platt(float(calibration["slope"]), float(calibration["intercept"]))
    if calibration["kind"] == Isotonic.kind:
        return Isotonic(tuple(calibration["log_odds"]), tuple(calibration["calibrated"]))
    raise ValueError(f"unknown calibration {calibration['kind']!r}")


def _bounded(log_odds: FloatArray) -> FloatArray:
    return np.clip(sigmoid(log_odds), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)

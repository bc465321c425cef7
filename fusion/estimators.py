"""The three kinds of meta-model as inference needs them: raw feature matrix in, log-odds and their parts out.

Knows nothing of training, calibration or files. Every estimator takes an n x d float matrix in the artifact's input
order, NaN = missing, and is deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from utils.contracts import Json
from utils.errors import FusionMismatch

FloatArray: TypeAlias = NDArray[np.float64]

LOGIT_FLOOR = 1e-4  # detectors saturate; beyond this their digits say nothing, and log-odds would be unbounded
HUGE = 1e30  # XGBoost holds float32 and refuses infinities; squares must not overflow in float64
PATH_NODES, PATH_WEIGHTS = np.polynomial.legendre.leggauss(64)


def clean(values: FloatArray) -> FloatArray:
    """Features as every estimator may see them: finite and within float32, or NaN."""
    return np.where(np.isfinite(values), np.clip(values, -HUGE, HUGE), np.nan)


def sigmoid(log_odds: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * log_odds)))


def logit(probability: FloatArray, floor: float) -> FloatArray:
    """Log-odds of a probability clipped to floor..1-floor."""
    clipped = np.clip(probability, floor, 1 - floor)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


class Estimator(Protocol):
    kind: ClassVar[str]

    @property
    def bias(self) -> float:
        """Log-odds that belong to no input."""
        ...

    def log_odds(self, matrix: FloatArray) -> FloatArray:
        """n x d -> n, before calibration."""
        ...

    def contributions(self, matrix: FloatArray) -> FloatArray:
        """n x d -> n x d; a row and ``bias`` sum to its log-odds."""
        ...

    def to_json(self) -> dict[str, Json]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """One robust scale for all inputs: asinh((x - median) / spread), 0 when missing.

    asinh is linear around the median and logarithmic in the tails (Johnson 1949, the S_U curve), so an absurd value
    moves the answer a little instead of ruling it. Detector probabilities go through their log-odds first: that is
    the scale on which independent evidence adds.
    """

    centre: FloatArray  # d
    spread: FloatArray  # d, > 0
    is_probability: NDArray[np.bool_]  # d

    def __post_init__(self) -> None:
        if not (np.all(self.spread > 0) and np.all(np.isfinite(self.centre)) and np.all(np.isfinite(self.spread))):
            raise ValueError("scaling must be finite with a positive spread")

    @classmethod
    def from_json(cls, scaling: Mapping[str, Json]) -> Scaling:
        return cls(
            np.array(scaling["centre"], float),
            np.array(scaling["spread"], float),
            np.array(scaling["is_probability"], bool),
        )

    def to_json(self) -> dict[str, Json]:
        return {
            "centre": self.centre.tolist(),
            "spread": self.spread.tolist(),
            "is_probability": self.is_probability.tolist(),
        }

    def linear(self, matrix: FloatArray) -> FloatArray:
        """Log-odds for probabilities, the value itself otherwise; n x d."""
        return np.where(self.is_probability, logit(matrix, LOGIT_FLOOR), matrix)

    def __call__(self, matrix: FloatArray) -> FloatArray:
        """n x d -> n x 2d: the scaled values, then one missing indicator per input."""
        missing = np.isnan(matrix)
        scaled = np.arcsinh((self.linear(matrix) - self.centre) / self.spread)
        return np.hstack([np.where(missing, 0.0, scaled), missing.astype(float)])


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """Linear in the scaled values and the missing indicators."""

    kind: ClassVar[str] = "logistic"
    scaling: Scaling
    weights: FloatArray  # d
    missing_weights: FloatArray  # d
    intercept: float

    def __post_init__(self) -> None:
        if not len(self.weights) == len(self.missing_weights) == len(self.scaling.centre):
            raise ValueError("weights and scaling differ in length")

    @classmethod
    def from_json(cls, model: Mapping[str, Json]) -> Logistic:
        return cls(
            Scaling.from_json(model["scaling"]),
            np.array(model["weights"], float),
            np.array(model["missing_weights"], float),
            float(model["intercept"]),
        )

    def to_json(self) -> dict[str, Json]:
        return {
            "scaling": self.scaling.to_json(),
            "weights": self.weights.tolist(),
            "missing_weights": self.missing_weights.tolist(),
            "intercept": self.intercept,
        }

    @property
    def bias(self) -> float:
        return self.intercept + float(self.missing_weights.sum())

    def log_odds(self, matrix: FloatArray) -> FloatArray:
        return np.asarray(self.scaling(matrix) @ np.concatenate([self.weights, self.missing_weights]) + self.intercept)

    def contributions(self, matrix: FloatArray) -> FloatArray:
        """Exact, against an image of which nothing is known: a missing input contributes exactly 0."""
        scaled, missing = np.hsplit(self.scaling(matrix), 2)
        return np.asarray(scaled * self.weights + (missing - 1) * self.missing_weights)


@dataclass(frozen=True, slots=True, eq=False)
class Perceptron:
    """One hidden tanh layer over the scaled values and the missing indicators."""

    kind: ClassVar[str] = "mlp"
    scaling: Scaling
    hidden_weights: FloatArray  # 2d x h
    hidden_bias: FloatArray  # h
    output_weights: FloatArray  # h
    output_bias: float

    def __post_init__(self) -> None:
        expected = (2 * len(self.scaling.centre), len(self.hidden_bias))
        if self.hidden_weights.shape != expected or self.output_weights.shape != self.hidden_bias.shape:
            raise ValueError(f"hidden layer must be {expected}, got {self.hidden_weights.shape}")

    @classmethod
    def from_json(cls, model: Mapping[str, Json]) -> Perceptron:
        return cls(
            Scaling.from_json(model["scaling"]),
            np.array(model["hidden_weights"], float),
            np.array(model["hidden_bias"], float),
            np.array(model["output_weights"], float),
            float(model["output_bias"]),
        )

    def to_json(self) -> dict[str, Json]:
        return {
            "scaling": self.scaling.to_json(),
            "hidden_weights": self.hidden_weights.tolist(),
            "hidden_bias": self.hidden_bias.tolist(),
            "output_weights": self.output_weights.tolist(),
            "output_bias": self.output_bias,
        }

    @property
    def bias(self) -> float:
        return float(self._log_odds(self._baseline)[0])

    @property
    def _baseline(self) -> FloatArray:
        """The scaled row of an image of which nothing is known; 1 x 2d."""
        inputs = len(self.scaling.centre)
        return np.concatenate([np.zeros(inputs), np.ones(inputs)])[None]

    def _log_odds(self, scaled: FloatArray) -> FloatArray:
        hidden = np.tanh(scaled @ self.hidden_weights + self.hidden_bias)
        return np.asarray(hidden @ self.output_weights + self.output_bias)

    def log_odds(self, matrix: FloatArray) -> FloatArray:
        return self._log_odds(self.scaling(matrix))

    def contributions(self, matrix: FloatArray) -> FloatArray:
        """Integrated gradients (Sundararajan et al. 2017, eq. 1) from an image of which nothing is known.

        The path integral is Gauss-Legendre quadrature; the network is smooth, so 64 nodes leave a completeness gap
        below 1e-6. A missing input does not move along the path and contributes exactly 0.
        """
        scaled = self.scaling(matrix)
        step = scaled - self._baseline
        gradient = np.zeros_like(scaled)
        for node, weight in zip(PATH_NODES, PATH_WEIGHTS, strict=True):
            hidden = np.tanh((self._baseline + (node + 1) / 2 * step) @ self.hidden_weights + self.hidden_bias)
            gradient += weight / 2 * ((1 - hidden**2) * self.output_weights) @ self.hidden_weights.T
        by_value, by_presence = np.hsplit(gradient * step, 2)
        return np.asarray(by_value + by_presence)


@dataclass(frozen=True, eq=False)
class Trees:
    """Gradient-boosted trees; a missing value takes the direction each split has learnt.

    No slots: the cached properties live in ``__dict__``.
    """

    kind: ClassVar[str] = "xgboost"
    ubj: bytes  # XGBoost's binary JSON
    input_count: int

    def __post_init__(self) -> None:
        if self._booster.num_features() != self.input_count:
            raise ValueError(f"the trees have {self._booster.num_features()} inputs, expected {self.input_count}")

    @cached_property
    def _booster(self) -> Any:
        xgboost = _xgboost()
        booster = xgboost.Booster()
        booster.load_model(bytearray(self.ubj))
        booster.set_param({"nthread": 1})  # one row at a time: threads cost more than they give
        return booster

    def to_json(self) -> dict[str, Json]:
        return {}

    @cached_property
    def bias(self) -> float:
        return float(self._predict(np.full((1, self.input_count), np.nan), pred_contribs=True)[0, -1])

    def log_odds(self, matrix: FloatArray) -> FloatArray:
        return self._predict(matrix, output_margin=True)

    def contributions(self, matrix: FloatArray) -> FloatArray:
        """TreeSHAP (Lundberg et al. 2020), against the average training image."""
        return self._predict(matrix, pred_contribs=True)[:, :-1]

    def _predict(self, matrix: FloatArray, **what: bool) -> FloatArray:
        rows = _xgboost().DMatrix(matrix, nthread=1)
        return np.asarray(self._booster.predict(rows, **what), float)


def _xgboost() -> Any:
    """Only an artifact of trees needs it.

    Raises:
        FusionMismatch: it is not installed.
    """
    try:
        return import_module("xgboost")
    except ImportError:
        raise FusionMismatch("a fusion artifact of trees needs XGBoost: pip install 'xgboost>=3.1,<4'") from None


def estimator_from_json(kind: str, model: Mapping[str, Json], inputs: Sequence[str], ubj: bytes | None) -> Estimator:
    """Rebuild an estimator from an artifact's parts.

    Raises:
        ValueError: unknown kind, or the parts do not fit ``inputs``.
    """
    if kind == "xgboost":
        if ubj is None:
            raise ValueError("model.ubj is missing")
        return Trees(ubj, len(inputs))
    estimator: Logistic | Perceptron
    if kind == "logistic":
        estimator = Logistic.from_json(model)
    elif kind == "mlp":
        estimator = Perceptron.from_json(model)
    else:
        raise ValueError(f"unknown kind {kind!r}")
    if len(estimator.scaling.centre) != len(inputs):
        raise ValueError(f"the weights are for {len(estimator.scaling.centre)} inputs, expected {len(inputs)}")
    return estimator

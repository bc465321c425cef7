"""Trained classifiers of embeddings as plain numbers: a line, support vectors, a forest, a small network.

NumPy in, log-odds out.

A head is stored as arrays in a safetensors file and computed here, so that opening one runs no code and needs no
scikit-learn; training/heads.py turns fitted scikit-learn pipelines into these and a test compares every kind. Knows
nothing of images, of calibration, or of how heads are fitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusion.estimators import FloatArray, logit

IntArray: TypeAlias = NDArray[np.int64]

FOREST_FLOOR = 1e-3  # a forest says 0 or 1 when its trees agree; log-odds must stay finite


class Classifier(Protocol):
    """n x d embeddings -> n log-odds towards AI, before calibration."""

    kind: ClassVar[str]

    def log_odds(self, embeddings: FloatArray) -> FloatArray: ...

    def arrays(self) -> dict[str, NDArray[Any]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """Every field is an array; on disk it has the field's name."""

    mean: FloatArray  # d, of the training embeddings
    scale: FloatArray  # d, above 0, their deviations

    def __post_init__(self) -> None:
        if not (self.mean.ndim == 1 and self.mean.shape == self.scale.shape and (self.scale > 0).all()):
            raise ValueError("mean and scale must have one finite number per dimension, scale above 0")
        if not all(np.isfinite(value).all() for value in self.arrays().values()):
            raise ValueError("a head holds finite numbers only")

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """
        Raises:
            KeyError, ValueError: an array is missing, or they do not fit each other.
        """
        return cls(*(arrays[field.name] for field in fields(cls)))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def standardised(self, embeddings: FloatArray) -> FloatArray:
        return np.asarray((embeddings - self.mean) / self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class Linear(_Stored):
    """A linear SVM or a logistic regression: standardised embedding times weights, plus intercept."""

    kind: ClassVar[str] = "linear"
    weights: FloatArray  # d
    intercept: FloatArray  # 1

    def __post_init__(self) -> None:
        _Stored.__post_init__(self)
        if self.weights.shape != self.mean.shape or self.intercept.shape != (1,):
            raise ValueError("a line has a weight per dimension and one intercept")

    def log_odds(self, embeddings: FloatArray) -> FloatArray:
        return np.asarray(self.standardised(embeddings) @ self.weights + self.intercept)


@dataclass(frozen=True, slots=True, eq=False)
class RadialSvm(_Stored):
    """Support vectors under a Gaussian kernel: sum of coefficient x exp(-gamma |x - vector|^2), plus intercept."""

    kind: ClassVar[str] = "rbf"
    vectors: FloatArray  # k x d, standardised
    coefficients: FloatArray  # k, signed: alpha x class
    intercept: FloatArray  # 1
    gamma: FloatArray  # 1

    def __post_init__(self) -> None:
        _Stored.__post_init__(self)
        if self.vectors.shape != (len(self.coefficients), len(self.mean)) or self.coefficients.ndim != 1:
            raise ValueError("there must be one coefficient per support vector, each as long as an embedding")
        if self.intercept.shape != (1,) or self.gamma.shape != (1,):
            raise ValueError("intercept and gamma are one number each")

    def log_odds(self, embeddings: FloatArray) -> FloatArray:
        x = self.standardised(embeddings)
        # |a - b|^2 = |a|^2 - 2 a b + |b|^2 needs n x k numbers where the differences would need n x k x d.
        squares = (x**2).sum(axis=1)[:, None] - 2 * x @ self.vectors.T + (self.vectors**2).sum(axis=1)
        return np.asarray(np.exp(-self.gamma * np.maximum(squares, 0)) @ self.coefficients + self.intercept)


@dataclass(frozen=True, slots=True, eq=False)
class Forest(_Stored):
    """Decision trees in one table of nodes; the log-odds of their mean share of AI."""

    kind: ClassVar[str] = "forest"
    roots: IntArray  # trees; the node each starts at
    left: IntArray  # nodes; where to go when feature <= threshold, 0 at a leaf: no branch leads back to node 0
    right: IntArray  # nodes
    feature: IntArray  # nodes; which dimension, 0 at a leaf
    threshold: FloatArray  # nodes
    share: FloatArray  # nodes; share of AI among the training rows there

    def __post_init__(self) -> None:
        _Stored.__post_init__(self)
        count, nodes = len(self.left), (self.left, self.right, self.feature, self.threshold, self.share)
        if any(each.shape != (count,) for each in nodes) or not len(self.roots):
            raise ValueError("every node has two branches, a feature, a threshold and a share")
        inner = self.left > 0
        # Branches lead onwards, so walking ends.
        onwards = np.minimum(self.left, self.right)[inner] > np.flatnonzero(inner)
        inside = max(self.left.max(), self.right.max(), self.roots.max()) < count and self.roots.min() >= 0
        if not (onwards.all() and inside and (self.feature >= 0).all() and (self.feature < len(self.mean)).all()):
            raise ValueError("a node leads outside the forest")

    def log_odds(self, embeddings: FloatArray) -> FloatArray:
        x = self.standardised(embeddings).astype(np.float32)  # as scikit-learn's trees compare
        at = np.tile(self.roots, (len(x), 1))
        while (inner := self.left[at] > 0).any():
            goes_left = np.take_along_axis(x, self.feature[at], axis=1) <= self.threshold[at]
            at = np.where(inner, np.where(goes_left, self.left[at], self.right[at]), at)
        return logit(self.share[at].mean(axis=1), FOREST_FLOOR)


@dataclass(frozen=True, slots=True, eq=False)
class Mlp(_Stored):
    """A perceptron with one hidden layer of rectified units."""

    kind: ClassVar[str] = "mlp"
    hidden: FloatArray  # d x h
    hidden_bias: FloatArray  # h
    weights: FloatArray  # h
    intercept: FloatArray  # 1

    def __post_init__(self) -> None:
        _Stored.__post_init__(self)
        units = len(self.hidden_bias)
        if self.hidden.shape != (len(self.mean), units) or self.weights.shape != (units,):
            raise ValueError("every hidden unit has a weight per dimension, a bias and a weight of its own")
        if self.intercept.shape != (1,):
            raise ValueError("the intercept is one number")

    def log_odds(self, embeddings: FloatArray) -> FloatArray:
        units = np.maximum(self.standardised(embeddings) @ self.hidden + self.hidden_bias, 0)
        return np.asarray(units @ self.weights + self.intercept)


CLASSIFIERS: dict[str, type[Linear | RadialSvm | Forest | Mlp]] = {
    each.kind: each for each in (Linear, RadialSvm, Forest, Mlp)
}

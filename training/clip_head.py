"""A head on class tokens: fitted, chosen by cross-validation over groups of sources, calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve
from sklearn.model_selection import StratifiedGroupKFold

from fusion.estimators import FloatArray
from inference.similarity_head import Axes, Known, SimilarityHead, nearness, squares
from training.feature_table import IntArray, NameArray, source_weights

Tokens: TypeAlias = NDArray[np.float16]  # (n, blocks, width)

FOLDS = 5
RIDGES = (0.3, 1.0, 3.0)  # for weights of mean 1; large is strong regularisation
LINEAR = 0.3  # of the kernel, beside nearness; 0 and 1 were .003 and .004 nats worse
BLOCK_SETS: Mapping[str, tuple[int, ...]] = {  # counted from 1, as the papers do
    "6+8+10+12": (6, 8, 10, 12),
    "7-12": tuple(range(7, 13)),
    "all": tuple(range(1, 13)),
}
LOOKED_AT = "7-12"  # of BLOCK_SETS: all blocks rank as well, but tell a picture from its own JPEG copy more easily
AXES = 1000  # principal ones of the standardised tokens, in which heads are fitted; further ones hold noise
TEMPERATURES = np.geomspace(0.05, 20, 400)


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Views to learn from.

    Args:
        tokens: (n, blocks, width).
        labels: n; 1 = AI.
        sources, groups: n; groups are of sources that share an author or motifs: cross-validation keeps them together.
        weights: n, summing to 1.
    """

    tokens: Tokens
    labels: IntArray
    sources: NameArray
    groups: NameArray
    weights: FloatArray

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: NDArray[np.bool_]) -> Examples:
        """Some of them, weighing in all 1 again."""
        weights = self.weights[chosen]
        named = self.sources[chosen], self.groups[chosen]
        return Examples(self.tokens[chosen], self.labels[chosen], *named, weights / weights.sum())


def balanced(tokens: Tokens, labels: IntArray, sources: NameArray, groups: NameArray) -> Examples:
    """Examples of which each label weighs the same, and within a label each source."""
    return Examples(tokens, labels, sources, groups, source_weights(labels, sources))


@dataclass(frozen=True, slots=True)
class Recipe:
    blocks: str  # of BLOCK_SETS
    ridge: float


class Points:
    """Examples as points on the principal axes of their standardised tokens. Labels play no part in the axes.

    How an image travelled says nothing of who made it, but moves its tokens, and on average always the same way. Points
    have no extent in these directions, so no head can read them: a picture and its JPEG copy get the same score on
    average, and so do a photograph and its copy on a web page, which one threshold for all needs.

    Args:
        examples: as they are taught.
        blocks: of BLOCK_SETS.
        ways: for each, (m, 2, blocks, width): of m images, two that show the same and travelled differently.
    """

    def __init__(self, examples: Examples, blocks: str, ways: Sequence[Tokens] = ()) -> None:
        self.examples = examples
        self._blocks = np.array(BLOCK_SETS[blocks]) - 1
        self._shape = examples.tokens.shape[1:]
        inputs = examples.tokens[:, self._blocks].reshape(len(examples), -1).astype(np.float32)
        self._mean = examples.weights.astype(np.float32) @ inputs
        inputs -= self._mean
        self._scale = np.sqrt(examples.weights.astype(np.float32) @ inputs**2) + np.float32(1e-6)
        inputs /= self._scale
        self._axes = _principal(inputs)
        moves = np.reshape([self._moved(each) for each in ways], (-1, self._axes.shape[1]))
        self._axes = without(self._axes.astype(float), moves).astype(np.float32)
        self.values = inputs @ self._axes
        self.spread = float(np.mean(np.sum(self.values**2, axis=1)))

    def _moved(self, way: Tokens) -> FloatArray:
        """How far the first of a pair lies from the second, on average: (axes,)."""
        apart = np.subtract(way[:, 0, self._blocks], way[:, 1, self._blocks], dtype=np.float32).mean(axis=0)
        return (apart.ravel() / self._scale @ self._axes).astype(float)

    def fit(self, chosen: NDArray[np.bool_], recipe: Recipe) -> SimilarityHead:
        """Kernel ridge regression of the label, -1 or 1, on some of the examples."""
        points, weights = self.values[chosen], self.examples.weights[chosen]
        weights = weights * len(weights) / weights.sum()
        targets = 2 * self.examples.labels[chosen] - 1
        middle = float(np.average(targets, weights=weights))
        gram = nearness(points, points, squares(points), self.spread) + np.float32(LINEAR / self.spread) * (
            points @ points.T
        )
        gram[np.diag_indices_from(gram)] += (recipe.ridge / weights).astype(np.float32)
        pull = solve(gram, (targets - middle).astype(np.float32), assume_a="pos", overwrite_a=True)
        line = LINEAR / self.spread * (pull @ points)
        weight, bias = self.folded(line[np.newaxis].astype(float), np.array([middle]))
        return SimilarityHead(weight[0], float(bias[0]), Known(self.axes, points, pull, self.spread))

    @cached_property
    def axes(self) -> Axes:
        """What makes points of tokens."""
        directions = self._axes.T / self._scale
        looked_at = directions.reshape(len(directions), len(self._blocks), -1)
        return Axes(self._blocks, looked_at, directions @ self._mean)

    def folded(self, coefficients: FloatArray, intercepts: FloatArray) -> tuple[NDArray[np.float32], FloatArray]:
        """Linear models of points, (k, axes) and k, as ones of tokens: (k, blocks, width) and k."""
        inputs = (coefficients @ self._axes.astype(float).T) / self._scale
        weights = np.zeros((len(inputs), *self._shape), np.float32)
        weights[:, self._blocks] = inputs.reshape(len(inputs), len(self._blocks), -1)
        return weights, intercepts - inputs @ self._mean


def _principal(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The AXES longest principal axes of (n, inputs) as columns, by way of the smaller of the two product matrices."""
    by_rows = len(inputs) < inputs.shape[1]
    sizes, axes = np.linalg.eigh((inputs @ inputs.T if by_rows else inputs.T @ inputs).astype(float))
    kept = np.flatnonzero(sizes > 1e-6 * sizes[-1])[-AXES:]
    axes = axes[:, kept].astype(np.float32)
    return inputs.T @ axes / np.sqrt(sizes[kept]).astype(np.float32) if by_rows else axes


def without(points: FloatArray, directions: FloatArray) -> FloatArray:
    """(n, axes), and what is left of it at right angles to (k, axes) directions."""
    basis, _ = np.linalg.qr(directions.T)
    return np.asarray(points - points @ basis @ basis.T)


@dataclass(frozen=True, slots=True)
class CrossFit:
    """One head for each fold of the groups, made without it."""

    heads: tuple[SimilarityHead, ...]
    fold_of: Mapping[str, int]

    def log_odds(self, tokens: Tokens, groups: NameArray) -> FloatArray:
        """Of each view by the head that saw nothing of its group."""
        folds = np.array([self.fold_of[str(group)] for group in groups])
        found = np.empty(len(tokens))
        for fold in set(folds):
            found[folds == fold] = self.heads[fold].log_odds(tokens[folds == fold])
        return found


def cross_fit(points: Points, recipe: Recipe, seed: int) -> CrossFit:
    examples, heads = points.examples, []
    fold_of: dict[str, int] = {}
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fold, (kept, held) in enumerate(splitter.split(points.values, examples.labels, examples.groups)):
        heads.append(points.fit(np.isin(np.arange(len(examples)), kept), recipe))
        fold_of |= dict.fromkeys(map(str, examples.groups[held]), fold)
    return CrossFit(tuple(heads), fold_of)


def temperature_of(log_odds: FloatArray, examples: Examples) -> float:
    """What to divide log-odds by for the lowest log loss (Guo et al., ICML 2017)."""
    return float(min(TEMPERATURES, key=lambda each: loss_of(log_odds / each, examples)))


def loss_of(log_odds: FloatArray, examples: Examples) -> float:
    """Mean log loss, nats."""
    signed = np.where(examples.labels == 1, -log_odds, log_odds)
    return float(examples.weights @ np.logaddexp(0, signed))

"""A linear head on class tokens: fitted, chosen by cross-validation over sources, calibrated. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from fusion.estimators import FloatArray
from training.feature_table import IntArray, NameArray, source_weights

Tokens: TypeAlias = NDArray[np.float16]  # (n, blocks, width)

FOLDS = 5
STRENGTHS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)  # scikit-learn's C for weights of mean 1; small is strong regularisation
BLOCK_SETS: Mapping[str, tuple[int, ...]] = {  # counted from 1, as the papers do
    "6+8+10+12": (6, 8, 10, 12),
    "all": tuple(range(1, 13)),
}
TEMPERATURES = np.geomspace(0.05, 20, 400)


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Views to learn from.

    Args:
        tokens: (n, blocks, width).
        labels: n; 1 = AI.
        sources: n; views of one source are not independent.
        weights: n, summing to 1.
    """

    tokens: Tokens
    labels: IntArray
    sources: NameArray
    weights: FloatArray

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: NDArray[np.bool_]) -> Examples:
        weights = self.weights[chosen]
        return Examples(self.tokens[chosen], self.labels[chosen], self.sources[chosen], weights / weights.sum())


def balanced(tokens: Tokens, labels: IntArray, sources: NameArray) -> Examples:
    """Examples of which each label weighs the same, and within a label each source."""
    return Examples(tokens, labels, sources, source_weights(labels, sources))


def together(main: Examples, pairs: Examples, share: float) -> Examples:
    """Both, the pairs with ``share`` times the weight of the main examples."""
    return Examples(
        np.concatenate([main.tokens, pairs.tokens]),
        np.concatenate([main.labels, pairs.labels]),
        np.concatenate([main.sources, pairs.sources]),
        np.concatenate([main.weights, share * pairs.weights]) / (1 + share),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Log-odds of AI = sum(weight * tokens) + bias."""

    weight: NDArray[np.float32]  # (blocks, width)
    bias: float

    def log_odds(self, tokens: Tokens) -> FloatArray:
        return np.tensordot(tokens.astype(np.float32), self.weight, axes=2).astype(float) + self.bias

    def divided(self, temperature: float) -> Head:
        """With the log-odds divided by ``temperature``."""
        return Head((self.weight / temperature).astype(np.float32), self.bias / temperature)


@dataclass(frozen=True, slots=True)
class Recipe:
    blocks: str  # of BLOCK_SETS
    strength: float


def fit_head(examples: Examples, recipe: Recipe) -> Head:
    """Logistic regression on tokens in units of their own deviation, which are then folded into weight and bias."""
    blocks = np.array(BLOCK_SETS[recipe.blocks]) - 1
    inputs = examples.tokens[:, blocks].reshape(len(examples), -1).astype(np.float32)
    scaler = StandardScaler().fit(inputs, sample_weight=examples.weights)
    model = LogisticRegression(C=recipe.strength, max_iter=1000)
    model.fit(scaler.transform(inputs), examples.labels, sample_weight=examples.weights * len(examples))
    coefficients = model.coef_[0] / scaler.scale_
    weight = np.zeros(examples.tokens.shape[1:], np.float32)
    weight[blocks] = coefficients.reshape(len(blocks), -1)
    return Head(weight, float(model.intercept_[0] - coefficients @ scaler.mean_))


def held_out(examples: Examples, recipe: Recipe, seed: int) -> FloatArray:
    """The log-odds of each view by a head that saw no view of its source."""
    found = np.empty(len(examples))
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for kept, held in splitter.split(found, examples.labels, examples.sources):
        chosen = np.isin(np.arange(len(examples)), kept)
        found[held] = fit_head(examples.rows(chosen), recipe).log_odds(examples.tokens[held])
    return found


def temperature_of(log_odds: FloatArray, examples: Examples) -> float:
    """What to divide log-odds by for the lowest log loss (Guo et al., ICML 2017)."""
    return float(min(TEMPERATURES, key=lambda each: loss_of(log_odds / each, examples)))


def loss_of(log_odds: FloatArray, examples: Examples) -> float:
    """Mean log loss, nats."""
    signed = np.where(examples.labels == 1, -log_odds, log_odds)
    return float(examples.weights @ np.logaddexp(0, signed))

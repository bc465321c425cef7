"""Weighted classification metrics with bootstrap intervals over sources. Knows nothing of models or images.

scikit-learn has these metrics for one weight vector; a bootstrap over sources needs hundreds, and here a resample is
only another row of weights (a test compares each metric with scikit-learn's).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusion.estimators import FloatArray
from training.feature_table import IntArray, NameArray, source_weights

ECE_BINS = 15  # equal width, as in Guo et al. 2017
RESAMPLES = 300
THRESHOLD = 0.5  # where a detector by itself is measured; fusion, not one detector, decides


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def plain(metrics: Mapping[str, Interval]) -> dict[str, list[float]]:
    """For JSON: value, low and high by metric."""
    return {name: [round(value, 5) for value in (each.value, each.low, each.high)] for name, each in metrics.items()}


def auroc(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> FloatArray:
    """Area under the ROC curve, ties counting half.

    Args:
        labels: n; 1 = AI.
        probabilities: n.
        weights: b x n, one row per resample.

    Returns:
        b values; NaN where a class has no weight.
    """
    order = np.argsort(probabilities, kind="stable")
    _, starts = np.unique(probabilities[order], return_index=True)
    positives = np.add.reduceat((weights * labels)[:, order], starts, axis=1)
    negatives = np.add.reduceat((weights * (1 - labels))[:, order], starts, axis=1)
    won = (positives * (np.cumsum(negatives, axis=1) - negatives / 2)).sum(axis=1)
    return _ratio(won, positives.sum(axis=1) * negatives.sum(axis=1))


def class_accuracy(labels: IntArray, predicted: IntArray, weights: FloatArray, label: int) -> FloatArray:
    """Share of the images of one class that are called so; b values."""
    chosen = weights * (labels == label)
    return _ratio(chosen @ (predicted == label), chosen.sum(axis=1))


def expected_calibration_error(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean gap between the probability and the share of AI images, over ECE_BINS equal-width bins; b values."""
    bins = np.minimum((probabilities * ECE_BINS).astype(int), ECE_BINS - 1)
    member = np.equal.outer(bins, np.arange(ECE_BINS)).astype(float)
    gaps = (weights * (probabilities - labels)) @ member
    return _ratio(np.abs(gaps).sum(axis=1), weights.sum(axis=1))


def brier(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean squared error of the probability; b values."""
    return _ratio(weights @ (probabilities - labels) ** 2, weights.sum(axis=1))


def log_loss(labels: IntArray, probabilities: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean negative log-likelihood in nats; probabilities must lie strictly between 0 and 1; b values."""
    losses = -np.where(labels == 1, np.log(probabilities), np.log1p(-probabilities))
    return _ratio(weights @ losses, weights.sum(axis=1))


def evaluate(
    labels: IntArray, probabilities: FloatArray, sources: NameArray, threshold: float, seed: int = 0
) -> dict[str, Interval]:
    """All metrics at one threshold, every source and class weighing the same, with intervals over sources."""
    weights = resampled_weights(labels, sources, seed)
    predicted = (probabilities >= threshold).astype(np.int64)
    on_real, on_ai = (class_accuracy(labels, predicted, weights, label) for label in (0, 1))
    return {
        "auroc": _interval(auroc(labels, probabilities, weights)),
        "balanced_accuracy": _interval((on_real + on_ai) / 2),
        "real_called_real": _interval(on_real),
        "ai_called_ai": _interval(on_ai),
        "ece": _interval(expected_calibration_error(labels, probabilities, weights)),
        "brier": _interval(brier(labels, probabilities, weights)),
    }


def resampled_weights(labels: IntArray, sources: NameArray, seed: int) -> FloatArray:
    """1 + RESAMPLES x n: each source and class weighing the same, then bootstrap samples of the sources."""
    base = source_weights(labels, sources)
    return np.vstack([base, _resample(base, labels, sources, seed)])


def _resample(base: FloatArray, labels: IntArray, sources: NameArray, seed: int) -> FloatArray:
    """RESAMPLES x n weights: sources drawn with replacement, apart for real, AI and mixed sources."""
    names, row_source = np.unique(sources, return_inverse=True)
    ai_share = np.bincount(row_source, labels) / np.bincount(row_source)
    stratum = np.sign(ai_share) + (ai_share == 1)  # 0 real only, 1 mixed, 2 AI only
    generator = np.random.default_rng(seed)
    counts = np.zeros((RESAMPLES, len(names)))
    for value in (0, 1, 2):
        members = np.flatnonzero(stratum == value)
        if members.size:
            counts[:, members] = generator.multinomial(
                members.size, np.full(members.size, 1 / members.size), size=RESAMPLES
            )
    weights = base * counts[:, row_source]
    for label in (0, 1):
        chosen = labels == label
        total = weights[:, chosen].sum(axis=1, keepdims=True)
        weights[:, chosen] = np.divide(weights[:, chosen], total, out=weights[:, chosen], where=total > 0)
    return weights


def _interval(values: FloatArray) -> Interval:
    """The first value is the measurement, the others are its resamples."""
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return Interval(float(values[0]), float(low), float(high))


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)

"""Chooses the cuts on the calibrated probability and measures what lies between them. Knows no model."""

from __future__ import annotations

import numpy as np

from fusion.decision import TIERS, Thresholds
from fusion.estimators import FloatArray
from training.feature_table import IntArray, NameArray, Table, source_weights

# Largest share of wrong images beyond a cut, for equally frequent classes: what the words are meant to promise.
LIKELY_ERROR = 0.05
CERTAIN_ERROR = 0.03


def choose_thresholds(table: Table, probabilities: FloatArray, target_real: float) -> Thresholds:
    """One threshold for every delivery, and the tiers around it.

    The label's is the lowest at which ``target_real`` of the real images, each source weighing the same, are called
    real in the worst delivery. The tiers' cuts are the widest whose measured error stays within LIKELY_ERROR and
    CERTAIN_ERROR; a tier that no cut can promise gets a cut that is never passed.
    """
    label = max(
        _real_quantile(chosen.labels, chosen.sources, probabilities[table.deliveries == delivery], target_real)
        for delivery in np.unique(table.deliveries)
        if not (chosen := table.rows(table.deliveries == delivery)).labels.all()
    )
    weights = source_weights(table.labels, table.sources)

    def above(error: float) -> float:
        return _cut_above(table.labels, probabilities, weights, label, error)

    def below(error: float) -> float:  # the same question with the classes and the axis turned round
        return min(label, 1 - _cut_above(1 - table.labels, 1 - probabilities, weights, 1 - label, error))

    return Thresholds(
        label=label,
        real=below(CERTAIN_ERROR),
        likely_real=below(LIKELY_ERROR),
        likely_ai=above(LIKELY_ERROR),
        ai=above(CERTAIN_ERROR),
    )


def _real_quantile(labels: IntArray, sources: NameArray, probabilities: FloatArray, target: float) -> float:
    """The middle of the gap above the ``target`` quantile of the real images."""
    real = labels == 0
    order = np.argsort(probabilities[real], kind="stable")
    share = np.cumsum(source_weights(labels[real], sources[real])[order])
    last = probabilities[real][order][np.searchsorted(share, target - 1e-9)]
    higher = probabilities[probabilities > last]
    return float((last + (higher.min() if higher.size else 1.0)) / 2)


def _cut_above(labels: IntArray, probabilities: FloatArray, weights: FloatArray, start: float, error: float) -> float:
    """The lowest cut >= start beyond which the share of label 0 is at most ``error``; 1 if there is none."""
    values, position = np.unique(probabilities, return_inverse=True)
    wrong = np.cumsum(np.bincount(position, weights * (labels == 0))[::-1])[::-1]
    total = np.cumsum(np.bincount(position, weights)[::-1])[::-1]
    good = (values >= start) & (wrong <= error * total)
    if not good.any():
        return 1.0
    first = int(np.argmax(good))
    return start if first == 0 or values[first - 1] < start else float((values[first - 1] + values[first]) / 2)


def measure_tiers(
    table: Table, probabilities: FloatArray, thresholds: Thresholds, label: float | None = None
) -> dict[str, dict[str, float | None]]:
    """For each tier, and for all but ``inconclusive`` together: coverage, and the share of wrong images within it.

    Classes count as equally frequent and sources weigh the same. ``error`` of the inconclusive tier is the share that
    the label gets wrong.

    Args:
        label: the cut of the label where it is not the artifact's own.
    """
    weights = source_weights(table.labels, table.sources)
    tiers = np.array([TIERS.index(thresholds.tier(probability)) for probability in probabilities])
    wrong = (probabilities >= (thresholds.label if label is None else label)) != table.labels
    chosen = {str(name): tiers == index for index, name in enumerate(TIERS)}
    chosen["outside_inconclusive"] = ~chosen["inconclusive"]
    measured: dict[str, dict[str, float | None]] = {}
    for name, rows in chosen.items():
        covered = float(weights[rows].sum())
        errors = float(weights[rows & wrong].sum())
        measured[name] = {"coverage": covered, "error": errors / covered if covered else None}
    return measured

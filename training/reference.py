"""Makes the table that says how rare a score is, from the scores of held-out images. Knows no model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusion.estimators import FloatArray
from fusion.reference import CUTS, DIGITS, KINDS, Curves, ReferenceTable
from training.feature_table import Table
from training.metrics import resampled_weights
from utils.deliveries import ANY

FEWEST_SOURCES = 10  # of each label: a kind or delivery with fewer has no curves of its own


def measure_reference(table: Table, probabilities: FloatArray, measured_on: str, seed: int = 0) -> ReferenceTable:
    """Curves for each kind and delivery, and for all together; every source weighs the same within its class.

    Args:
        probabilities: n, of images that neither the detectors nor the fusion model saw in fitting.
        measured_on: which images these are, in words.
    """
    everything = np.ones(len(table), np.bool_)
    kinds = {ANY: everything}
    if table.kinds is not None:
        kinds |= {kind: table.kinds == kind for kind in KINDS}
    deliveries = {ANY: everything} | {str(each): table.deliveries == each for each in np.unique(table.deliveries)}
    curves: dict[str, dict[str, Curves]] = {}
    for kind, of_kind in kinds.items():
        for delivery, delivered in deliveries.items():
            rows = of_kind & delivered
            sources = [len(np.unique(table.sources[rows & (table.labels == label)])) for label in (0, 1)]
            if kind == delivery == ANY or min(sources) >= FEWEST_SOURCES:
                curves.setdefault(kind, {})[delivery] = _curves(table.rows(rows), probabilities[rows], seed)
    return ReferenceTable(measured_on, {kind: found for kind, found in curves.items() if ANY in found})


def _curves(table: Table, probabilities: FloatArray, seed: int) -> Curves:
    weights = resampled_weights(table.labels, table.sources, seed)
    above = probabilities[:, None] >= CUTS
    real, ai = table.labels == 0, table.labels == 1
    return Curves(
        _shares(weights[:, real], above[real]),
        _shares(weights[:, ai], probabilities[ai, None] <= CUTS),
        len(np.unique(table.sources[real])),
        len(np.unique(table.sources[ai])),
    )


def _shares(weights: FloatArray, hits: NDArray[np.bool_]) -> FloatArray:
    """c x 3: share, low, high.

    A share that no image shows has no bootstrap interval. How many independent images the sources are worth follows
    from the spread of the others, and so many without a hit leave 1 - 0.05 ** (1 / n) possible (95 %, one-sided).
    """
    total = weights.sum(axis=1, keepdims=True)
    weights, total = weights[total[:, 0] > 0], total[total[:, 0] > 0]
    shares = weights @ hits / total
    value, resamples = shares[0], shares[1:]
    low, high = np.percentile(resamples, (2.5, 97.5), axis=0)
    spread = resamples.var(axis=0)
    known = (value > 0.05) & (value < 0.95) & (spread > 0)
    worth = np.median((value * (1 - value))[known] / spread[known]) if known.any() else 1.0
    least = 1 - 0.05 ** (1 / max(1.0, worth))
    return np.column_stack([value, np.minimum(low, 1 - least), np.maximum(high, least)]).round(DIGITS)

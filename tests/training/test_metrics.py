from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from training.feature_table import source_weights
from training.metrics import auroc, brier, class_accuracy, evaluate, expected_calibration_error, log_loss

RANDOM = np.random.default_rng(3)
LABELS = RANDOM.integers(0, 2, 400)
PROBABILITIES = np.asarray(
    np.round(np.clip(0.3 * LABELS + RANDOM.uniform(0.05, 0.7, 400), 0.01, 0.99), 2), np.float64
)  # rounded: with ties
WEIGHTS = RANDOM.uniform(0, 1, (2, 400))
PREDICTED = (PROBABILITIES >= 0.5).astype(np.int64)


def test_the_metrics_are_scikit_learns() -> None:
    on_real, on_ai = (class_accuracy(LABELS, PREDICTED, WEIGHTS, label) for label in (0, 1))
    for row, weights in enumerate(WEIGHTS):
        weighted = {"sample_weight": weights}
        assert auroc(LABELS, PROBABILITIES, WEIGHTS)[row] == pytest.approx(
            reference.roc_auc_score(LABELS, PROBABILITIES, **weighted)
        )
        assert brier(LABELS, PROBABILITIES, WEIGHTS)[row] == pytest.approx(
            reference.brier_score_loss(LABELS, PROBABILITIES, **weighted)
        )
        assert log_loss(LABELS, PROBABILITIES, WEIGHTS)[row] == pytest.approx(
            reference.log_loss(LABELS, PROBABILITIES, **weighted)
        )
        assert (on_real + on_ai)[row] / 2 == pytest.approx(
            reference.balanced_accuracy_score(LABELS, PREDICTED, **weighted)
        )


def test_the_calibration_error_is_the_gap_that_was_put_in() -> None:
    labels = np.repeat([0, 1, 0, 1], [70, 30, 20, 80])
    weights = np.ones((1, 200))
    honest, boastful = (np.repeat(levels, 100).astype(float) for levels in ((0.3, 0.8), (0.1, 0.95)))
    assert expected_calibration_error(labels, honest, weights)[0] == pytest.approx(0)
    assert expected_calibration_error(labels, boastful, weights)[0] == pytest.approx((0.2 + 0.15) / 2)


def test_intervals_are_over_sources_not_images() -> None:
    few = np.where(LABELS == 1, "ai", "real").astype("<U8")
    few = np.char.add(few, (np.arange(400) % 3).astype(str))
    many = np.arange(400).astype(str)
    narrow, wide = (evaluate(LABELS, PROBABILITIES, sources, 0.5)["auroc"] for sources in (many, few))
    assert narrow.low < narrow.value < narrow.high
    # The same images ten times over are no new sources: the interval must not shrink.
    repeated = evaluate(np.tile(LABELS, 10), np.tile(PROBABILITIES, 10), np.tile(many, 10), 0.5)["auroc"]
    assert repeated.high - repeated.low == pytest.approx(narrow.high - narrow.low, rel=0.05)
    assert wide.value == pytest.approx(narrow.value, abs=0.02)


def test_sources_with_both_labels_are_resampled_whole() -> None:
    measured = evaluate(LABELS, PROBABILITIES, np.array(["one", "two"])[np.arange(400) % 2], 0.5)
    assert all(np.isfinite([each.value, each.low, each.high]).all() for each in measured.values())


def test_each_source_and_each_class_weighs_the_same() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    weights = source_weights(labels, np.array(["a", "a", "b", "c", "c", "c"]))
    assert weights == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 6, 1 / 6, 1 / 6])

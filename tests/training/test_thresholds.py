from __future__ import annotations

import numpy as np
import pytest

from fusion.decision import TIERS
from training.feature_table import Table
from training.thresholds import CERTAIN_ERROR, LIKELY_ERROR, choose_thresholds, measure_tiers


def scored(separation: float, images: int = 2000, seed: int = 1) -> tuple[Table, np.ndarray]:
    """Two deliveries, the second less separable; every image its own source; calibrated by construction."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    deliveries = np.where(random.random(images) < 0.5, "clean", "hard")
    strength = np.where(deliveries == "clean", separation, separation / 2)
    # For unit normals at -s/2 and s/2 the log-odds are s times the value.
    log_odds = strength * ((labels - 0.5) * strength + random.normal(size=images))
    table = Table(
        inputs=("x",),
        matrix=log_odds[:, None],
        labels=labels,
        sources=np.arange(images).astype(str),
        splits=np.full(images, "train"),
        deliveries=deliveries,
    )
    return table, 1 / (1 + np.exp(-log_odds))


@pytest.mark.parametrize("separation", [0.2, 1.5, 4.0])
@pytest.mark.parametrize("target", [0.9, 0.95])
def test_enough_real_images_are_called_real_in_the_worst_delivery(separation: float, target: float) -> None:
    table, probabilities = scored(separation)
    label = choose_thresholds(table, probabilities, target).label
    called_real = [
        np.mean(probabilities[(table.deliveries == delivery) & (table.labels == 0)] < label)
        for delivery in ("clean", "hard")
    ]
    assert min(called_real) >= target
    assert min(called_real) < target + 0.01  # the lowest such threshold, not just any


def test_the_tiers_keep_their_promised_error() -> None:
    table, probabilities = scored(4.0)
    thresholds = choose_thresholds(table, probabilities, 0.95)
    tiers = measure_tiers(table, probabilities, thresholds)
    assert sum(tiers[name]["coverage"] or 0 for name in TIERS) == pytest.approx(1)
    for side in (("real", "likely_real"), ("ai", "likely_ai")):
        certain, likely = (tiers[name] for name in side)
        assert certain["error"] is not None
        assert certain["error"] <= CERTAIN_ERROR
        both = (certain["coverage"] or 0) + (likely["coverage"] or 0)
        wrong = (certain["coverage"] or 0) * certain["error"] + (likely["coverage"] or 0) * (likely["error"] or 0)
        assert wrong <= LIKELY_ERROR * both
    outside = tiers["outside_inconclusive"]
    assert outside["error"] is not None
    assert outside["error"] <= LIKELY_ERROR
    assert (outside["coverage"] or 0) > 0.5


def test_signals_that_say_nothing_are_called_inconclusive() -> None:
    table, _ = scored(0.2)
    probabilities = np.random.default_rng(0).uniform(0.45, 0.55, len(table))
    tiers = measure_tiers(table, probabilities, choose_thresholds(table, probabilities, 0.95))
    assert (tiers["inconclusive"]["coverage"] or 0) > 0.95


def test_one_probability_for_all_gives_thresholds_and_calls_all_real() -> None:
    table, _ = scored(1.0, images=40)
    thresholds = choose_thresholds(table, np.full(40, 0.5), 0.95)
    assert thresholds.label > 0.5
    assert thresholds.tier(0.5) == "inconclusive"

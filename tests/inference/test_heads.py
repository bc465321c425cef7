"""Plain heads: their rules fire, and the log-odds follow from the numbers. Parity with scikit-learn: tests/training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inference.heads import CLASSIFIERS, FOREST_FLOOR, Classifier, Forest, Linear, Mlp, RadialSvm

ONE = np.ones(1)


def examples() -> dict[str, Classifier]:
    """Of each kind, in two dimensions."""
    scaling = np.array([1.0, 0.0]), np.array([2.0, 1.0])
    branches = np.array([1, 0, 0]), np.array([2, 0, 0])
    return {
        "linear": Linear(*scaling, np.array([3.0, -1.0]), ONE),
        "rbf": RadialSvm(*scaling, np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([2.0, -1.0]), ONE, ONE),
        "forest": Forest(
            *scaling, np.array([0]), *branches, np.array([1, 0, 0]), np.array([0.5, 0, 0]), np.array([0.5, 0.2, 1])
        ),
        "mlp": Mlp(*scaling, np.array([[1.0, 0.0], [0.0, -1.0]]), np.array([0.0, 1.0]), np.array([2.0, 3.0]), ONE),
    }


def test_every_kind_is_what_its_formula_says() -> None:
    points = np.array([[1.0, 0.0], [3.0, 0.5], [1.0, 2.0]])
    found = {kind: head.log_odds(points) for kind, head in examples().items()}
    assert found["linear"] == pytest.approx([1.0, 3.0 - 0.5 + 1, -2.0 + 1])
    at_second = 1 + 2 * np.exp(-1.25) - np.exp(-0.25)
    assert found["rbf"] == pytest.approx([1 + 2 - np.exp(-1), at_second, 1 + 2 * np.exp(-4) - np.exp(-5)])
    assert found["mlp"] == pytest.approx([0 + 3 + 1, 2 + 1.5 + 1, 0 + 0 + 1])
    sure = np.log((1 - FOREST_FLOOR) / FOREST_FLOOR)
    assert found["forest"] == pytest.approx([np.log(0.25), np.log(0.25), sure]), "at the threshold: left"


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_arrays_carry_a_head(kind: str) -> None:
    head = examples()[kind]
    again = CLASSIFIERS[kind].from_arrays(head.arrays())
    points = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_array_equal(again.log_odds(points), head.log_odds(points))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("linear", {"scale": np.array([1.0, 0.0])}),
        ("linear", {"mean": np.array([np.nan, 0.0])}),
        ("linear", {"mean": ONE}),
        ("linear", {"weights": ONE}),
        ("linear", {"intercept": np.ones(2)}),
        ("rbf", {"coefficients": ONE}),
        ("rbf", {"gamma": np.array([np.inf])}),
        ("rbf", {"gamma": np.ones(2)}),
        ("rbf", {"vectors": np.ones((2, 3))}),
        ("mlp", {"hidden": np.ones((3, 2))}),
        ("mlp", {"weights": ONE}),
        ("mlp", {"intercept": np.ones(2)}),
        ("forest", {"left": np.array([3, 0, 0])}),
        ("forest", {"roots": np.array([3])}),
        ("forest", {"roots": np.array([-1])}),
        ("forest", {"roots": np.array([], int)}),
        ("forest", {"feature": np.array([2, 0, 0])}),
        ("forest", {"left": np.array([2, 1, 0])}),
        ("forest", {"right": np.array([2, 0])}),
    ],
)
def test_numbers_that_do_not_fit_are_refused(kind: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        CLASSIFIERS[kind].from_arrays(examples()[kind].arrays() | changes)

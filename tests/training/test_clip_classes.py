"""Heads that tell classes apart: what they are, that held-out groups are held out, and when a class is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from inference.class_head import ClassHead
from training.clip_classes import STRENGTHS, ClassFit, choose_cut, fit_classes, names_of_strangers
from training.clip_head import LOOKED_AT, Points, balanced
from training.feature_table import NameArray

WIDTH = 5
NAMES = ("flux", "gan", "imagen")


def points(images: int = 360, signal: float = 2.0, seed: int = 0) -> tuple[Points, NameArray]:
    """Block 10 tells three classes apart; each has eight groups."""
    rng = np.random.default_rng(seed)
    number = np.arange(images) % 3
    group = (np.arange(images) % 24).astype(str)
    tokens = rng.standard_normal((images, 12, WIDTH))
    tokens[np.arange(images), 9, number] += signal
    labels = np.ones(images, np.int64)
    return Points(balanced(tokens.astype(np.float16), labels, group, group), LOOKED_AT), np.array(NAMES)[number]


def test_a_head_is_multinomial_regression_on_standardised_tokens() -> None:
    given, classes = points()
    fit = fit_classes(given, classes)
    inputs = given.examples.tokens[:, 6:].reshape(len(classes), -1).astype(float)
    scaled = StandardScaler().fit_transform(inputs)
    model = LogisticRegression(C=fit.strength, max_iter=1000).fit(scaled, classes)
    logits = model.decision_function(scaled) / fit.temperature
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fit.head.probabilities(given.examples.tokens), expected, atol=2e-3)
    assert fit.names == NAMES
    assert fit.strength in STRENGTHS


def test_what_is_said_of_an_example_is_said_by_a_head_that_did_not_see_its_group() -> None:
    """Labels drawn by group alone can be remembered, never learnt."""
    given, _ = points(signal=0)
    rng = np.random.default_rng(5)
    given.examples.tokens[:, 6] += 6 * rng.standard_normal((24, WIDTH)).astype(np.float16)[np.arange(360) % 24]
    classes = np.array(NAMES)[rng.integers(0, 3, 24)][np.arange(360) % 24]
    remembered = Points(given.examples, LOOKED_AT)
    fit = fit_classes(remembered, classes)
    best = np.array(NAMES)[fit.held_out.argmax(axis=1)]
    assert (best == classes).mean() < 0.6
    group = str(given.examples.groups[0])
    rows = given.examples.groups == group
    np.testing.assert_allclose(fit.probabilities(given.examples.tokens[rows], group), fit.held_out[rows], atol=1e-5)


def test_a_head_survives_being_stored() -> None:
    given, classes = points()
    head = fit_classes(given, classes).head
    back = ClassHead.from_arrays(head.arrays("kinds"), "kinds", " ".join(head.names))
    np.testing.assert_array_equal(back.probabilities(given.examples.tokens), head.probabilities(given.examples.tokens))
    assert back.probabilities(given.examples.tokens).sum(axis=1) == pytest.approx(1)


def fitted(held_out: list[list[float]]) -> ClassFit:
    head = ClassHead(NAMES, np.zeros((3, 12, WIDTH), np.float32), np.zeros(3, np.float32))
    return ClassFit(head, (), {}, np.array(held_out), 1e-2, 1.0, 0.0)


def test_a_class_is_named_where_names_are_true_often_enough() -> None:
    sure = [[0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]
    classes = np.array(["flux", "flux", "gan", "imagen", "gan"])
    naming = choose_cut(fitted(sure), classes, np.full(5, 0.2), right=0.75)
    assert (naming.cut, naming.named, naming.right) == pytest.approx((0.7, 0.8, 0.75))


def test_nothing_is_named_where_names_are_hardly_ever_true() -> None:
    classes = np.array(["gan", "imagen"])
    naming = choose_cut(fitted([[0.9, 0.05, 0.05], [0.8, 0.1, 0.1]]), classes, np.full(2, 0.5))
    assert (naming.cut, naming.named) == (1.0, 0.0)


def test_a_class_that_a_head_never_saw_can_only_be_named_wrongly() -> None:
    given, classes = points(signal=6.0)
    fit = fit_classes(given, classes)
    always = names_of_strangers(given, classes, replace(fit, temperature=1.0), cut=0.0)
    never = names_of_strangers(given, classes, fit, cut=1.0)
    assert always == dict.fromkeys(NAMES, 1.0)
    assert set(never.values()) == {0.0}

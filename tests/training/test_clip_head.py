"""A head on class tokens: what it computes, what its recipe means, and that held-out sources are held out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from training.clip_head import (
    BLOCK_SETS,
    Examples,
    Head,
    Points,
    Recipe,
    balanced,
    cross_fit,
    loss_of,
    temperature_of,
    without,
)

WIDTH = 5


def examples(images: int = 240, sources: int = 24, seed: int = 0) -> Examples:
    """Block 10 tells the labels apart; block 7 the sources, each of which has one label."""
    rng = np.random.default_rng(seed)
    source = np.arange(images) % sources
    labels = source % 2
    tokens = rng.standard_normal((images, 12, WIDTH))
    tokens[:, 9, 0] += 2 * labels
    tokens[:, 6] += 3 * rng.standard_normal((sources, WIDTH))[source]
    names = source.astype(str)
    return balanced((7 + 2 * tokens).astype(np.float16), labels, names, names)


def fit_head(given: Examples, recipe: Recipe) -> Head:
    return Points(given, recipe.blocks).fit(np.ones(len(given), bool), recipe)


def held_out(given: Examples, recipe: Recipe, seed: int) -> np.ndarray:
    return cross_fit(Points(given, recipe.blocks), recipe, seed).log_odds(given.tokens, given.groups)


def test_the_head_is_logistic_regression_on_standardised_tokens() -> None:
    given = examples()
    head = fit_head(given, Recipe("6+8+10+12", 1e-2))
    inputs = given.tokens[:, [5, 7, 9, 11]].reshape(len(given), -1).astype(float)
    scaled = StandardScaler().fit_transform(inputs)
    model = LogisticRegression(C=1e-2, max_iter=1000).fit(scaled, given.labels)
    np.testing.assert_allclose(head.log_odds(given.tokens), model.decision_function(scaled), atol=2e-3)
    assert not head.weight[[0, 1, 2, 3, 4, 6, 8, 10]].any(), "blocks that it was not given"


def test_a_group_is_judged_by_the_head_that_did_not_see_it() -> None:
    given = examples()
    fitted = cross_fit(Points(given, "all"), Recipe("all", 1e-2), seed=0)
    assert set(fitted.fold_of) == set(given.groups)
    group = given.groups[0]
    own = fitted.heads[fitted.fold_of[group]]
    rows = given.groups == group
    np.testing.assert_allclose(
        fitted.log_odds(given.tokens[rows], given.groups[rows]), own.log_odds(given.tokens[rows])
    )
    others = [head for head in fitted.heads if head is not own]
    assert all(not np.allclose(head.log_odds(given.tokens[rows]), own.log_odds(given.tokens[rows])) for head in others)


def test_nothing_is_left_in_a_direction_and_everything_beside_it() -> None:
    points = np.random.default_rng(0).standard_normal((200, 3))
    np.testing.assert_allclose(without(points, np.array([[0.0, 5, 0]])), points * [1, 0, 1], atol=1e-12)
    np.testing.assert_array_equal(without(points, np.empty((0, 3))), points)


def test_a_head_does_not_read_how_an_image_travelled() -> None:
    """Block 10 tells the labels apart; where two ways differ in just that, the head looks away. Chance moves stay."""
    given = examples()
    rng = np.random.default_rng(1)
    one, other, unlike = np.zeros((3, 50, 12, WIDTH), np.float16)
    other[:, 9, 0] = 2
    unlike[:, 9, 0] = rng.choice([-2, 2], 50)
    unlike[:, 9, 0] -= unlike[:, 9, 0].mean()
    shifts = []
    for ways in ((), (np.stack([one, other], axis=1),), (np.stack([one, unlike], axis=1),)):
        head = Points(given, "all", ways).fit(np.ones(len(given), bool), Recipe("all", 1e-2))
        shifts.append(float(np.mean(head.log_odds(other) - head.log_odds(one))))
    assert shifts[0] > 0.3
    assert abs(shifts[1]) < 0.05 * shifts[0]


def test_all_blocks_are_all_blocks() -> None:
    assert BLOCK_SETS["all"] == tuple(range(1, 13))
    assert fit_head(examples(), Recipe("all", 1e-2)).weight.all()


def test_a_source_weighs_the_same_however_many_images_it_has() -> None:
    names = np.array(["a", "a", "b", "c", "c"])
    given = balanced(np.zeros((5, 12, 1), np.float16), np.array([0, 0, 0, 1, 1]), names, names)
    np.testing.assert_allclose(given.weights, [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4])


def test_held_out_log_odds_do_not_know_the_source() -> None:
    """With every label drawn by source alone, what is seen in training is no use elsewhere."""
    noise = examples()
    noise.tokens[:, 9] = 0
    recipe = Recipe("all", 1.0)
    assert loss_of(fit_head(noise, recipe).log_odds(noise.tokens), noise) < 0.5
    assert loss_of(held_out(noise, recipe, seed=0), noise) > np.log(2)


def test_held_out_log_odds_find_what_all_sources_share() -> None:
    given = examples()
    assert loss_of(held_out(given, Recipe("6+8+10+12", 1e-2), seed=0), given) < 0.6


def test_the_temperature_undoes_what_made_log_odds_too_large() -> None:
    given = examples(images=2400)
    rng = np.random.default_rng(3)
    log_odds = rng.normal(0, 2, len(given))
    drawn = Examples(
        given.tokens,
        (rng.random(len(given)) < 1 / (1 + np.exp(-log_odds))) * 1,
        given.sources,
        given.groups,
        given.weights,
    )
    assert temperature_of(3 * log_odds, drawn) == pytest.approx(3, rel=0.15)
    head = Head(np.ones((12, WIDTH), np.float32), 6.0)
    np.testing.assert_allclose(head.divided(3).log_odds(given.tokens), head.log_odds(given.tokens) / 3, rtol=1e-5)

"""A head on class tokens: what it computes, what its recipe means, and that held-out sources are held out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler

from inference.similarity_head import SimilarityHead
from training.clip_head import (
    BLOCK_SETS,
    LINEAR,
    Examples,
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


def fit_head(given: Examples, recipe: Recipe) -> SimilarityHead:
    return Points(given, recipe.blocks).fit(np.ones(len(given), bool), recipe)


def held_out(given: Examples, recipe: Recipe, seed: int) -> np.ndarray:
    return cross_fit(Points(given, recipe.blocks), recipe, seed).log_odds(given.tokens, given.groups)


def test_the_head_is_kernel_ridge_regression_on_standardised_tokens() -> None:
    given = examples()
    head = fit_head(given, Recipe("6+8+10+12", 0.3))
    inputs = given.tokens[:, [5, 7, 9, 11]].reshape(len(given), -1).astype(float)
    scaled = StandardScaler().fit_transform(inputs)
    spread = np.mean(np.sum(scaled**2, axis=1))
    gram = rbf_kernel(scaled, gamma=1 / spread) + LINEAR / spread * scaled @ scaled.T
    model = KernelRidge(alpha=0.3, kernel="precomputed").fit(gram, 2 * given.labels - 1)
    np.testing.assert_allclose(head.log_odds(given.tokens), model.predict(gram), atol=2e-3)
    assert not head.weight[[0, 1, 2, 3, 4, 6, 8, 10]].any(), "blocks that it was not given"


def test_an_example_pulls_as_much_as_it_weighs() -> None:
    """Twice in the data set is the same as twice the weight."""
    given = examples(images=60)
    again = np.r_[np.arange(60), np.arange(20)]
    twice = Examples(
        given.tokens[again], given.labels[again], given.sources[again], given.groups[again], np.full(80, 1 / 80)
    )
    heavy = np.ones(60)
    heavy[:20] = 2
    heavier = Examples(given.tokens, given.labels, given.sources, given.groups, heavy / heavy.sum())
    points, recipe = Points(given, "all"), Recipe("all", 0.3)
    one, other = Points(twice, "all"), Points(heavier, "all")
    for each in (one, other):  # the same axes, so that only the weights differ
        each._axes, each._mean, each._scale, each.spread = points._axes, points._mean, points._scale, points.spread
    one.values, other.values = points.values[again], points.values
    scale = 80 / 60  # weights have mean 1, so the ridge is relative to it
    first = one.fit(np.ones(80, bool), recipe).log_odds(given.tokens)
    second = other.fit(np.ones(60, bool), Recipe("all", 0.3 / scale)).log_odds(given.tokens)
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_a_group_is_judged_by_the_head_that_did_not_see_it() -> None:
    given = examples()
    fitted = cross_fit(Points(given, "all"), Recipe("all", 0.3), seed=0)
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
    """Block 10 tells the labels apart; where two ways differ in just that, the head looks away."""
    given = examples()
    one, other = np.zeros((2, 50, 12, WIDTH), np.float16)
    other[:, 9, 0] = 2
    shifts = []
    for ways in ((), (np.stack([one, other], axis=1),)):
        head = Points(given, "all", ways).fit(np.ones(len(given), bool), Recipe("all", 0.3))
        shifts.append(float(np.mean(head.log_odds(other) - head.log_odds(one))))
    assert shifts[0] > 0.1
    assert abs(shifts[1]) < 1e-4


def test_all_blocks_are_all_blocks() -> None:
    assert BLOCK_SETS["all"] == tuple(range(1, 13))
    assert fit_head(examples(), Recipe("all", 0.3)).weight.all()


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
    assert loss_of(held_out(given, Recipe("6+8+10+12", 0.3), seed=0), given) < 0.6


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
    head = fit_head(given, Recipe("all", 0.3))
    np.testing.assert_allclose(head.divided(3).log_odds(given.tokens), head.log_odds(given.tokens) / 3, atol=1e-5)

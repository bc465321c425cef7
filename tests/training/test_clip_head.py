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
    Recipe,
    balanced,
    fit_head,
    held_out,
    loss_of,
    temperature_of,
    together,
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
    return balanced((7 + 2 * tokens).astype(np.float16), labels, source.astype(str))


def test_the_head_is_logistic_regression_on_standardised_tokens() -> None:
    given = examples()
    head = fit_head(given, Recipe("6+8+10+12", 1e-2))
    inputs = given.tokens[:, [5, 7, 9, 11]].reshape(len(given), -1).astype(float)
    scaled = StandardScaler().fit_transform(inputs)
    model = LogisticRegression(C=1e-2, max_iter=1000).fit(scaled, given.labels)
    np.testing.assert_allclose(head.log_odds(given.tokens), model.decision_function(scaled), atol=2e-3)
    assert not head.weight[[0, 1, 2, 3, 4, 6, 8, 10]].any(), "blocks that it was not given"


def test_all_blocks_are_all_blocks() -> None:
    assert BLOCK_SETS["all"] == tuple(range(1, 13))
    assert fit_head(examples(), Recipe("all", 1e-2)).weight.all()


def test_a_source_weighs_the_same_however_many_images_it_has() -> None:
    given = balanced(np.zeros((5, 12, 1), np.float16), np.array([0, 0, 0, 1, 1]), np.array(["a", "a", "b", "c", "c"]))
    np.testing.assert_allclose(given.weights, [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4])


def test_pairs_weigh_their_share_of_the_main_examples() -> None:
    main, pairs = examples(images=48), examples(images=24, seed=1)
    both = together(main, pairs, 0.25)
    assert len(both) == 72
    assert both.weights.sum() == pytest.approx(1)
    assert both.weights[48:].sum() == pytest.approx(0.25 * both.weights[:48].sum())
    np.testing.assert_array_equal(both.tokens[48:], pairs.tokens)


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
        given.tokens, (rng.random(len(given)) < 1 / (1 + np.exp(-log_odds))) * 1, given.sources, given.weights
    )
    assert temperature_of(3 * log_odds, drawn) == pytest.approx(3, rel=0.15)
    head = Head(np.ones((12, WIDTH), np.float32), 6.0)
    np.testing.assert_allclose(head.divided(3).log_odds(given.tokens), head.log_odds(given.tokens) / 3, rtol=1e-5)

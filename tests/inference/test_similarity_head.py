"""A head that asks known images: what it computes, and that a file gives it back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import load, save

from inference.similarity_head import Axes, Known, SimilarityHead, nearness, squares
from models.quantised import dequantised

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(5, 3, 4)).astype(np.float32)


def head(images: int = 7) -> SimilarityHead:
    axes = Axes(np.array([0, 2]), RNG.normal(size=(2, 2, 4)).astype(np.float32), np.array([0.5, -1], np.float32))
    known = Known(
        axes, RNG.normal(size=(images, 2)).astype(np.float32), np.linspace(-1, 1, images).astype(np.float32), 3
    )
    return SimilarityHead(RNG.normal(size=(3, 4)).astype(np.float32), 0.25, known)


def test_log_odds_are_the_sum_and_what_known_images_say_by_how_near_they_lie() -> None:
    given = head()
    assert given.known
    for token, found in zip(TOKENS, given.log_odds(TOKENS), strict=True):
        seen = token[[0, 2]]
        point = [float((seen * each).sum()) for each in given.known.axes.directions] - given.known.axes.origin
        near = [math.exp(-float(((point - each) ** 2).sum()) / 3) for each in given.known.points]
        expected = float((token * given.weight).sum()) + 0.25 + float(np.dot(near, given.known.pull))
        assert found == pytest.approx(expected, abs=1e-5)
    here, there = np.zeros((1, 2), np.float32), np.array([[0, 0], [1, 1]], np.float32)
    assert nearness(here, there, squares(there), 2.0)[0] == pytest.approx([1, math.exp(-1)])


def test_divided_log_odds_are_divided() -> None:
    given = head()
    np.testing.assert_allclose(given.divided(4).log_odds(TOKENS), given.log_odds(TOKENS) / 4, rtol=1e-5)


def test_a_file_gives_it_back_to_the_rounding_of_int8_and_without_known_images_exactly() -> None:
    given = head()
    stored = load(save(given.arrays()))
    assert stored["known"].dtype == np.int8
    found = SimilarityHead.from_arrays(dequantised(stored))
    np.testing.assert_allclose(found.log_odds(TOKENS), given.log_odds(TOKENS), atol=0.05)
    shapes = SimilarityHead.shapes(given.size, 4)
    assert {name: dequantised(stored)[name].shape for name in shapes} == shapes
    plain = SimilarityHead(given.weight, given.bias)
    np.testing.assert_array_equal(
        SimilarityHead.from_arrays(dequantised(load(save(plain.arrays())))).log_odds(TOKENS), plain.log_odds(TOKENS)
    )
    assert not plain.size

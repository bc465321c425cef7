"""Compact ManTraNet: pixel budget, what is read from a map, the whole image as one, and its weights' real path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.mantranet_compact import (
    LONGEST,
    MAX_PIXELS,
    CompactManTraNetDetector,
    concentration,
    described,
    within_budget,
)
from models.mantranet_net import COMPACT, ManTraNet
from tests.inference.installing import install
from tests.pictures import sample_of
from utils.contracts import orient
from utils.errors import WeightsMismatch

BUDGET = 2**19


# --- the budget


@pytest.mark.parametrize(
    "shape", [(1000, 1000), (1001, 999), (2000, 600), (3, 100_000), (100_000, 3), (1, 2_000_000), (40, 50)]
)
def test_any_size_comes_within_the_budget_at_its_aspect(shape: tuple[int, int]) -> None:
    height, width = within_budget(np.zeros((*shape, 3), np.uint8), BUDGET).shape[:2]
    assert height * width <= BUDGET
    assert max(height, width) <= LONGEST
    if min(shape) > 3:
        assert height * width >= 0.99 * min(BUDGET, shape[0] * shape[1])
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.01)


def test_an_image_within_the_budget_is_not_touched(photograph: np.ndarray) -> None:
    assert within_budget(photograph, photograph[..., 0].size) is photograph


def test_a_large_image_is_averaged_not_sampled() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.ptp(within_budget(stripes, 200 * 200)) == 0


# --- the map and its numbers


def test_the_numbers_of_a_map_are_what_they_are_called() -> None:
    heatmap = np.full((100, 100), 0.1)
    heatmap[20:40, 20:40] = 0.9
    heatmap[0, 0] = 1.0
    found = described(heatmap.astype(np.float32)).features
    assert found["mantra_anomaly"] == pytest.approx(heatmap.mean())
    assert found["mantra.max"] == pytest.approx(0.9), "one pixel of ten thousand is not the maximum"
    assert found["mantra.area"] == pytest.approx(401 / 10_000)
    assert found["mantra.concentration"] > 0.9


def test_concentration_tells_one_place_from_everywhere_and_from_apart() -> None:
    point, corners, even = np.zeros((50, 80)), np.zeros((50, 80)), np.zeros((50, 80))
    point[30, 70] = 1
    corners[0, 0] = corners[-1, -1] = 1
    even[::3, ::3] = 1
    assert concentration(point) == pytest.approx(1)
    assert concentration(corners) == 0
    assert concentration(even) < 0.05
    assert concentration(np.full((50, 80), 0.7)) == 0
    assert concentration(np.ones((1, 1))) == 0
    assert concentration(point + 0.3) == pytest.approx(1), "an even background carries no mass"
    assert concentration(np.eye(1, 40)) == pytest.approx(1), "a line has one direction only"


def test_the_network_sees_the_mirrored_image_within_its_budget(photograph: np.ndarray) -> None:
    seen = []

    def spy(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(pixels)
        return np.zeros((1, 1, 2, 2), np.float32)

    detector, small = CompactManTraNetDetector(spy, "x"), photograph[:300, :400]
    detector.measure(sample_of(small))
    np.testing.assert_array_equal(seen[0][0, 2:-2, 2:-2], small)
    np.testing.assert_array_equal(seen[0][0, :2, 2:-2], small[1::-1])
    detector.measure(sample_of(np.zeros((3000, 1500, 3))))
    assert seen[1][0, 2:-2, 2:-2, 0].size <= MAX_PIXELS


def test_the_heatmap_lies_on_the_stored_pixels(photograph: np.ndarray) -> None:
    stored = sample_of(photograph[:64, :96], orientation=6)
    heatmap = CompactManTraNetDetector.tiny().measure(stored).heatmaps["mantranet"]
    assert heatmap.shape == (16, 24)
    assert heatmap.dtype == np.float32
    assert orient(heatmap, 6).shape == tuple(side // 4 for side in stored.upright.shape[:2])


# --- weights


def test_a_trained_file_gives_the_networks_map_also_when_that_is_tiled(tmp_path: Path, photograph: np.ndarray) -> None:
    torch.manual_seed(0)
    network = ManTraNet(COMPACT).eval()
    weights, small = install(tmp_path, "mantranet_compact", network.state_dict()), photograph[:300, :400].copy()
    measured = CompactManTraNetDetector.load(weights).measure(sample_of(small))
    with torch.inference_mode():
        images = torch.from_numpy(small).permute(2, 0, 1).float()[None]
        whole, tiled = network(images).sigmoid()[0, 0].numpy(), network.tiled(images, 256).sigmoid()[0, 0].numpy()
    assert measured.heatmaps["mantranet"].shape == (75, 100)
    np.testing.assert_allclose(measured.heatmaps["mantranet"], whole, atol=2e-5)
    np.testing.assert_allclose(measured.heatmaps["mantranet"], tiled, atol=2e-5)
    assert whole.std() > 1e-4


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    weights = install(tmp_path, "mantranet_compact", ManTraNet().state_dict())
    with pytest.raises(WeightsMismatch, match=r"sigma_F \(file \(1, 64, 1, 1\), network \(1, 16, 1, 1\)\)"):
        CompactManTraNetDetector.load(weights)

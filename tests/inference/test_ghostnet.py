"""GhostNet as a detector: where its tiles lie, how score and map follow from them, and its weights' real path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.ghostnet import CELL, MAX_TILES, PATCH, TILE, GhostNetDetector, assemble, cut, pool, tile_origins
from models.ghostnet_net import PATCH as NETWORK_PATCH
from models.ghostnet_net import GhostNetForensics
from models.ghostnet_net import pool as network_pool
from models.loaders import Weights
from tests.inference.installing import install
from tests.pictures import sample_of
from training.detectors import as_graph
from training.export import GhostNetOnPixels
from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing

SHAPES = [(1, 1), (31, 4000), (4000, 31), (256, 256), (257, 511), (427, 640), (1024, 1024), (3000, 4001), (1, 90_000)]


def brightness(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A patch's logit is a tenth of its mean brightness, less 10, so that places can be recognised."""
    patches = pixels.reshape(len(pixels), TILE // PATCH, PATCH, TILE // PATCH, PATCH, 3).mean(axis=(2, 4, 5))
    return (patches / 10 - 10).astype(np.float32)


# --- tiles


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_tiles_are_few_inside_the_image_and_in_phase_with_jpeg(height: int, width: int) -> None:
    origins = tile_origins(height, width)
    assert 1 <= len(origins) <= MAX_TILES
    assert len(set(origins)) == len(origins)
    for top, left in origins:
        assert top % CELL == left % CELL == 0
        assert 0 <= top <= max(0, height - TILE)
        assert 0 <= left <= max(0, width - TILE)


def test_up_to_a_megapixel_every_cell_is_seen_and_beyond_it_nobody_guesses() -> None:
    for height, width in ((1, 1), (257, 511), (427, 640), (1024, 1024), (31, 4000)):
        values = np.full((len(tile_origins(height, width)), 8, 8), 0.25, np.float32)
        heatmap = assemble(values, height, width)
        assert heatmap.shape == (max(1, height // 8), max(1, width // 8))
        np.testing.assert_allclose(heatmap, 0.25)
    heatmap = assemble(np.full((len(tile_origins(3000, 4000)), 8, 8), 0.25, np.float32), 3000, 4000)
    assert 0.05 < np.isnan(heatmap).mean() < 0.95
    assert np.isfinite(heatmap[[0, 0, -1, -1], [0, -1, 0, -1]]).all(), "the corners are seen"


def test_a_small_image_is_mirrored_not_framed() -> None:
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    tile = cut(small, 0, 0)
    assert tile.shape == (TILE, TILE, 3)
    np.testing.assert_array_equal(tile[:4, :4, 0], [[0, 3, 3, 0], [6, 9, 9, 6], [6, 9, 9, 6], [0, 3, 3, 0]])


# --- score and map


def test_the_map_shows_where_and_lies_on_the_stored_pixels() -> None:
    image = np.zeros((512, 768, 3))
    image[256:288, 512:544] = 200
    detector = GhostNetDetector(brightness, "x")
    heatmap = detector.measure(sample_of(image, orientation=6)).heatmaps["ghostnet"]
    assert heatmap.shape == (64, 96)
    bright = np.argwhere(heatmap > 0.9)
    assert bright.min(axis=0).tolist() == [32, 64]
    assert bright.max(axis=0).tolist() == [35, 67]
    assert heatmap[0, 0] < 0.01


def test_the_score_pools_the_patches_of_all_tiles(photograph: np.ndarray) -> None:
    detector = GhostNetDetector(brightness, "x")
    tiles = np.stack([cut(photograph, *origin) for origin in tile_origins(*photograph.shape[:2])])
    assert len(tiles) == 6
    patches = brightness(tiles).astype(np.float64)
    assert patches.std() > 0.5, "else a mean would do as well"
    expected = 1 / (1 + 1 / np.exp(patches).mean())
    found = detector.measure(sample_of(photograph)).features["ghostnet_score"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_pooling_is_the_networks_own() -> None:
    patches = np.random.default_rng(0).normal(0, 3, (5, 8, 8)).astype(np.float32)
    assert pool(patches) == pytest.approx(float(network_pool(torch.from_numpy(patches).flatten())), abs=1e-5)
    assert pool(np.full((1, 8, 8), -700, np.float32)) == -700, "no underflow"
    assert PATCH == NETWORK_PATCH


# --- weights


def test_trained_weights_load_and_score(tmp_path: Path, photograph: np.ndarray) -> None:
    torch.manual_seed(1)
    network = GhostNetForensics().eval()
    detector = GhostNetDetector.load(install(tmp_path, "ghostnet", network.state_dict()))
    sample = sample_of(photograph[:256, :300])
    found = detector.measure(sample).features["ghostnet_score"]
    trained = GhostNetDetector(as_graph(GhostNetOnPixels(network), "cpu"), "x")
    expected = trained.measure(sample).features["ghostnet_score"]
    assert 0 < found < 1
    assert found == pytest.approx(expected, abs=1e-5)
    assert detector.version.startswith("ghostnet@sha256:")


def test_each_thing_wrong_with_the_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="ghostnet"):
        GhostNetDetector.load(Weights(Weights.at(tmp_path).cards, (tmp_path,)))
    state = GhostNetForensics().state_dict()
    with pytest.raises(WeightsCorrupt, match=r"expected sha256 0{64}"):
        GhostNetDetector.load(install(tmp_path, "ghostnet", state, sha256="0" * 64))
    with pytest.raises(WeightsMismatch, match=r"head\.weight \(file \(2, 960, 1, 1\), network \(1, 960, 1, 1\)\)"):
        GhostNetDetector.load(install(tmp_path, "ghostnet", state | {"head.weight": torch.zeros(2, 960, 1, 1)}))
    del state["backbone.conv_stem.weight"]
    with pytest.raises(WeightsMismatch, match=r"1 missing: backbone\.conv_stem\.weight"):
        GhostNetDetector.load(install(tmp_path, "ghostnet", state))

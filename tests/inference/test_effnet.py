"""EfficientNet as a detector: its sizes, its mean logit over its temperature, and its weights' real path."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.effnet import MIN_SIDE, EffNetDetector, reduced, views
from models.loaders import Weights, shipped
from tests.inference.installing import install, register
from tests.pictures import sample_of
from training.detectors import as_graph
from training.export import EXPORTED, OnPixels
from utils.contracts import Sample
from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing

METADATA = {"architecture": "efficientnet_lite0", "temperature": "1.7"}


@pytest.fixture(scope="module")
def network() -> OnPixels:
    torch.manual_seed(2)
    return EXPORTED["effnet"][1]().eval()


def probability(detector: EffNetDetector, sample: Sample) -> float:
    return detector.measure(sample).features["effnet_prob"]


# --- pixels


def test_a_large_image_is_averaged_down_and_a_small_one_never_enlarged(photograph: np.ndarray) -> None:
    large = np.tile(photograph, (3, 3, 1))
    found = reduced(large)
    assert found.shape == (512, 768, 3)
    np.testing.assert_array_equal(found, cv2.resize(large, (768, 512), interpolation=cv2.INTER_AREA))
    assert reduced(photograph) is photograph
    stripes = np.zeros((400, 768, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.ptp(reduced(stripes, 384)) == 0, "averaged, not sampled"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((427, 640), [(267, 400), (342, 512), (427, 640)]),
        ((768, 200), [(400, 104), (512, 133), (768, 200)]),
        ((1600, 1600), [(400, 400), (512, 512), (768, 768)]),
        ((300, 400), [(300, 400)]),
        ((31, 4000), [(64, 400), (64, 512), (64, 768)]),
        ((1, 1), [(64, 64)]),
    ],
)
def test_each_size_below_the_images_own_is_looked_at_once(
    shape: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    assert [view.shape[:2] for view in views(np.zeros((*shape, 3), np.uint8))] == expected


def test_a_thin_image_is_mirrored_not_framed(photograph: np.ndarray) -> None:
    (strip,) = views(photograph[:5, :200])
    assert strip.shape == (MIN_SIDE, 200, 3)
    np.testing.assert_array_equal(strip[5:10], photograph[4::-1, :200])


def test_a_prepared_image_is_seen_as_the_original_is(photograph: np.ndarray) -> None:
    large = np.tile(photograph, (2, 2, 1))
    for original, prepared in zip(views(large), views(reduced(large)), strict=True):
        np.testing.assert_array_equal(original, prepared)


def test_the_image_is_seen_as_a_person_sees_it(photograph: np.ndarray) -> None:
    detector = EffNetDetector.tiny()
    sideways = sample_of(np.rot90(photograph), orientation=6)
    assert probability(detector, sideways) == probability(detector, sample_of(photograph))


# --- scores


def test_the_score_is_the_mean_logit_over_the_temperature(photograph: np.ndarray) -> None:
    seen = []

    def width(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(pixels.shape)
        return np.full((1, 1), pixels.shape[2] / 100, np.float32)

    found = probability(EffNetDetector(width, "x", temperature=2.5), sample_of(photograph))
    assert found == pytest.approx(1 / (1 + math.exp(-(4.00 + 5.12 + 6.40) / 3 / 2.5)), abs=1e-6)
    assert seen == [(1, 267, 400, 3), (1, 342, 512, 3), (1, 427, 640, 3)]


# --- weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 0.01)])
def test_a_trained_file_scores_as_the_network_that_was_trained(
    tmp_path: Path, network: OnPixels, photograph: np.ndarray, dtype: torch.dtype, tolerance: float
) -> None:
    state = {key: value.to(dtype) if value.ndim else value for key, value in network.network.state_dict().items()}
    detector = EffNetDetector.load(install(tmp_path, "effnet", state, METADATA))
    expected = probability(EffNetDetector(as_graph(network, "cpu"), "x", 1.7), sample_of(photograph))
    assert probability(detector, sample_of(photograph)) == pytest.approx(expected, abs=tolerance)
    assert detector.version.startswith("effnet@sha256:")


def test_each_thing_wrong_with_the_weights_is_named(tmp_path: Path, network: OnPixels) -> None:
    state = network.network.state_dict()

    def load(metadata: dict[str, str], sha256: str = "", **changed: Tensor) -> None:
        EffNetDetector.load(install(tmp_path, "effnet", state | changed, metadata, sha256))

    with pytest.raises(WeightsMissing, match="effnet"):
        EffNetDetector.load(Weights(Weights.at(tmp_path).cards, (tmp_path,)))
    with pytest.raises(WeightsMissing, match=r"scripts\.export_graphs"):
        EffNetDetector.load(Weights(install(tmp_path, "effnet", state, METADATA).cards, (tmp_path,)))
    with pytest.raises(WeightsCorrupt, match=r"expected sha256 0{64}"):
        load(METADATA, "0" * 64)
    with pytest.raises(WeightsMismatch, match=r"1 unexpected: blocks\.extra"):
        load(METADATA, **{"blocks.extra": torch.ones(1)})
    with pytest.raises(WeightsMismatch, match=r"classifier\.weight \(file \(2, 1280\), network \(1, 1280\)\)"):
        load(METADATA, **{"classifier.weight": torch.ones(2, 1280)})
    with pytest.raises(WeightsMismatch, match="weights of tf_efficientnet_lite0, graph of efficientnet_lite0"):
        load(METADATA | {"architecture": "tf_efficientnet_lite0"})
    for temperature in ("0", "-1", "nan", "inf", "warm"):
        with pytest.raises(WeightsMismatch, match="'temperature' must be a number above 0"):
            load(METADATA | {"temperature": temperature})
    path = tmp_path / "effnet.safetensors"
    torch.save(state, path)
    register(tmp_path, "effnet", path)
    with pytest.raises(WeightsCorrupt, match="not a safetensors file"):
        EffNetDetector.load(Weights.at(tmp_path))


def test_a_damaged_graph_is_refused(tmp_path: Path, network: OnPixels) -> None:
    weights = install(tmp_path, "effnet", network.network.state_dict(), METADATA)
    (tmp_path / "effnet").mkdir()
    (tmp_path / "effnet" / "graph.onnx").write_bytes(shipped("effnet_graph").read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsCorrupt, match=r"graph\.onnx: expected sha256"):
        EffNetDetector.load(weights)

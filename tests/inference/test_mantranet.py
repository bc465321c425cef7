"""ManTraNet as a detector: pixel budget, what is read from the map, and published checkpoints through the real path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from inference.mantranet import LONGEST, CompactManTraNetDetector, ManTraNetDetector, concentration, within_budget
from models.loaders import Weights
from models.mantranet_net import COMPACT, ManTraNet
from tests.models.test_mantranet_net import official_state, write_keras
from utils.contracts import Measurement, Sample, orient
from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing
from utils.persistence import sha256_file


def sample_of(rgb: np.ndarray, orientation: int = 1) -> Sample:
    return Sample("x", b"", np.ascontiguousarray(rgb, dtype=np.uint8), "JPEG", orientation=orientation)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return load_sample_image("china.jpg")


# --- the budget


@pytest.mark.parametrize(
    "shape", [(1000, 1000), (1001, 999), (2000, 600), (3, 100_000), (100_000, 3), (1, 2_000_000), (40, 50)]
)
def test_any_size_comes_within_the_budget_at_its_aspect(shape: tuple[int, int]) -> None:
    height, width = within_budget(np.zeros((*shape, 3), np.uint8), ManTraNetDetector.MAX_PIXELS).shape[:2]
    assert height * width <= ManTraNetDetector.MAX_PIXELS
    assert max(height, width) <= LONGEST
    if min(shape) > 3:
        assert height * width >= 0.99 * min(ManTraNetDetector.MAX_PIXELS, shape[0] * shape[1])
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.01)


def test_an_image_within_the_budget_is_not_touched(photograph: np.ndarray) -> None:
    assert within_budget(photograph, photograph[..., 0].size) is photograph
    view = CompactManTraNetDetector.tiny().preprocess(sample_of(photograph))
    np.testing.assert_array_equal(view[0].permute(1, 2, 0).numpy(), photograph)


def test_a_large_image_is_averaged_not_sampled() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.ptp(within_budget(stripes, 200 * 200)) == 0


# --- the map and its numbers


def described(heatmap: np.ndarray) -> Measurement:
    output = torch.from_numpy(heatmap.astype(np.float32))[None, None]
    return ManTraNetDetector.tiny().describe((output,), sample_of(np.zeros((*heatmap.shape, 3))))


def test_the_numbers_of_a_map_are_what_they_are_called() -> None:
    heatmap = np.full((100, 100), 0.1)
    heatmap[20:40, 20:40] = 0.9
    heatmap[0, 0] = 1.0
    found = described(heatmap).features
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


def test_the_heatmap_lies_on_the_stored_pixels(photograph: np.ndarray) -> None:
    for detector, stride in ((ManTraNetDetector.tiny(), 1), (CompactManTraNetDetector.tiny(), 4)):
        stored = sample_of(photograph[:64, :96], orientation=6)
        heatmap = detector.score([stored])[0].heatmaps["mantranet"]
        assert heatmap.shape == (64 // stride, 96 // stride)
        assert heatmap.dtype == np.float32
        assert orient(heatmap, 6).shape == tuple(side // stride for side in stored.upright.shape[:2])


# --- checkpoints, full width, through card, hash and strict loading


def installed(folder: Path, name: str, content: object, sha256: str = "") -> Weights:
    path = folder / f"{name}.pt"
    torch.save(content, path)
    (folder / "weights.toml").write_text(f'[{name}]\nfile = "{path.name}"\nsha256 = "{sha256 or sha256_file(path)}"\n')
    return Weights.at(folder)


def anomaly(detector: ManTraNetDetector, sample: Sample) -> float:
    return detector.score([sample])[0].features["mantra_anomaly"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_published_layout_loads_at_full_width_and_scores(
    tmp_path: Path, photograph: np.ndarray, wrapped: bool
) -> None:
    state = official_state()
    weights = installed(tmp_path, "mantranet", {"model": state} if wrapped else state)
    detector = ManTraNetDetector.load(weights, "cpu")
    assert 0 < anomaly(detector, sample_of(photograph[100:148, 200:264])) < 1
    assert detector.version == f"mantranet@sha256:{weights.card('mantranet').sha256[:12]}"


def test_the_keras_file_scores_as_the_torch_file(tmp_path: Path, photograph: np.ndarray) -> None:
    crop = sample_of(photograph[100:140, 200:240])
    torch_file = ManTraNetDetector.load(installed(tmp_path, "mantranet", official_state()), "cpu")
    keras = tmp_path / "ManTraNet_Ptrain4.h5"
    write_keras(keras, official_state())
    (tmp_path / "weights.toml").write_text(f'[mantranet]\nfile = "{keras.name}"\nsha256 = "{sha256_file(keras)}"\n')
    keras_file = ManTraNetDetector.load(Weights.at(tmp_path), "cpu")
    assert anomaly(keras_file, crop) == pytest.approx(anomaly(torch_file, crop), abs=1e-5)


def test_the_compact_network_loads_and_scores_a_whole_photograph(tmp_path: Path, photograph: np.ndarray) -> None:
    state = ManTraNet(COMPACT).state_dict()
    detector = CompactManTraNetDetector.load(installed(tmp_path, "mantranet_compact", state), "cpu")
    measured = detector.score([sample_of(photograph)])[0]
    assert 0 < measured.features["mantra_anomaly"] < 1
    assert measured.heatmaps["mantranet"].shape == (107, 160)


def test_each_thing_wrong_with_the_checkpoint_is_named(tmp_path: Path) -> None:
    def load(state: dict[str, Tensor], sha256: str = "") -> None:
        ManTraNetDetector.load(installed(tmp_path, "mantranet", state, sha256), "cpu")

    with pytest.raises(WeightsMissing, match=r"scripts\.download_weights mantranet"):
        ManTraNetDetector.load(Weights.at(tmp_path), "cpu")
    with pytest.raises(WeightsCorrupt, match=r"mantranet\.pt: expected sha256 0{64}, found"):
        load(official_state(), "0" * 64)
    state = official_state()
    state["IMTFE.final_conv.weight"] = state.pop("IMTFE.init_conv.weight")
    with pytest.raises(WeightsMismatch, match=r"1 missing: IMTFE\.init_conv\.weight; 1 unexpected: IMTFE\.final_conv"):
        load(state)
    with pytest.raises(WeightsMismatch, match=r"sigma_F \(file \(1, 16, 1, 1\), network \(1, 64, 1, 1\)\)"):
        load(ManTraNet(COMPACT).state_dict())

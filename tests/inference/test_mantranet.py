"""ManTraNet at full width: published checkpoints through the real path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.mantranet import ManTraNetDetector
from models.loaders import Weights
from models.mantranet_net import COMPACT, ManTraNet
from tests.models.test_mantranet_net import official_state, write_keras
from tests.pictures import sample_of
from utils.contracts import Sample, orient
from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing
from utils.persistence import sha256_file


def test_the_heatmap_lies_on_the_stored_pixels(photograph: np.ndarray) -> None:
    stored = sample_of(photograph[:64, :96], orientation=6)
    heatmap = ManTraNetDetector.tiny().score([stored])[0].heatmaps["mantranet"]
    assert heatmap.shape == (64, 96)
    assert heatmap.dtype == np.float32
    assert orient(heatmap, 6).shape == stored.upright.shape[:2]


def test_a_large_image_is_reduced_to_the_budget() -> None:
    view = ManTraNetDetector.tiny().preprocess(sample_of(np.zeros((1000, 2000, 3))))
    assert 0.99 * ManTraNetDetector.MAX_PIXELS <= view[0, 0].numel() <= ManTraNetDetector.MAX_PIXELS


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

"""EfficientNet as a detector: its sizes, timm's own answer, its temperature, and its weights' real path."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from inference.effnet import MIN_SIDE, EffNetDetector, long_sides, reduced, rescaled
from models.loaders import Weights
from utils.contracts import Sample
from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing
from utils.persistence import sha256_file

METADATA = {"architecture": "test_efficientnet", "temperature": "1.7"}


def sample_of(rgb: np.ndarray, orientation: int = 1) -> Sample:
    return Sample("x", b"", np.ascontiguousarray(rgb, dtype=np.uint8), "JPEG", orientation=orientation)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return load_sample_image("china.jpg")


def probability(detector: EffNetDetector, sample: Sample) -> float:
    return detector.score([sample])[0].features["effnet_prob"]


def small_network() -> nn.Module:
    torch.manual_seed(2)
    return timm.create_model("test_efficientnet", pretrained=False, num_classes=1).eval()


# --- pixels


def test_a_large_image_is_averaged_down_once_and_a_small_one_never_enlarged(photograph: np.ndarray) -> None:
    large = np.tile(photograph, (3, 3, 1))
    found = reduced(large)
    assert found.shape == (512, 768, 3)
    np.testing.assert_array_equal(found, cv2.resize(large, (768, 512), interpolation=cv2.INTER_AREA))
    assert reduced(photograph) is photograph
    assert reduced(photograph[:1, :1]).shape == (MIN_SIDE, MIN_SIDE, 3)
    assert reduced(np.zeros((31, 4000, 3), np.uint8)).shape == (MIN_SIDE, 768, 3)
    strip = reduced(photograph[:5, :200])
    np.testing.assert_array_equal(strip[5:10], photograph[4::-1, :200])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((427, 640), (400, 512, 640)), ((768, 200), (400, 512, 768)), ((64, 64), (64,)), ((300, 400), (400,))],
)
def test_each_size_is_looked_at_once(shape: tuple[int, int], expected: tuple[int, ...]) -> None:
    view = torch.rand(1, 3, *shape)
    assert long_sides(view) == expected
    for side in expected:
        scaled = rescaled(view, side)
        assert max(scaled.shape[-2:]) == side
        assert scaled.shape[-2] / scaled.shape[-1] == pytest.approx(shape[0] / shape[1], rel=0.01)


def test_rescaling_does_not_alias() -> None:
    stripes = torch.zeros(1, 3, 64, 768)
    stripes[..., ::2] = 1
    inner = rescaled(stripes, 384)[..., 4:-4]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), rtol=0, atol=1e-5)


def test_the_image_is_seen_as_a_person_sees_it(photograph: np.ndarray) -> None:
    detector = EffNetDetector.tiny()
    sideways = sample_of(np.rot90(photograph), orientation=6)
    torch.testing.assert_close(detector.preprocess(sideways), detector.preprocess(sample_of(photograph)))


# --- scores


def test_the_score_is_timms_mean_logit_over_the_temperature(photograph: np.ndarray) -> None:
    network = small_network()
    mean, std = (np.array(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    whole = torch.from_numpy(((photograph / 255 - mean) / std).astype(np.float32)).permute(2, 0, 1)[None]
    logits = []
    with torch.inference_mode():
        for size in ((267, 400), (342, 512), (427, 640)):
            view = nn.functional.interpolate(whole, size, mode="bilinear", antialias=True) if size[1] < 640 else whole
            logits.append(float(network(view)))
    assert np.ptp(logits) > 1e-4, "the sizes differ"
    expected = 1 / (1 + math.exp(-np.mean(logits) / 2.5))
    found = probability(EffNetDetector(network, "x", temperature=2.5), sample_of(photograph))
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_batch_gives_what_single_images_give(photograph: np.ndarray) -> None:
    detector = EffNetDetector.tiny()
    samples = [sample_of(photograph[:, :200]), sample_of(photograph), sample_of(photograph[:70])]
    together = [measured.features["effnet_prob"] for measured in detector.score(samples)]
    assert together == [probability(detector, sample) for sample in samples]
    assert len(set(together)) == 3


# --- weights


def installed(folder: Path, state: dict[str, Tensor], metadata: dict[str, str], sha256: str = "") -> Weights:
    path = folder / "effnet.safetensors"
    save_file(state, path, metadata)
    register(path, sha256 or sha256_file(path))
    return Weights.at(folder)


def register(path: Path, sha256: str) -> None:
    card = f'[effnet]\nfile = "{path.name}"\nsize = {path.stat().st_size}\nsha256 = "{sha256}"\n'
    (path.parent / "weights.toml").write_text(card)


def test_the_file_names_its_network_and_temperature(tmp_path: Path, photograph: np.ndarray) -> None:
    network = small_network()
    detector = EffNetDetector.load(installed(tmp_path, network.state_dict(), METADATA), "cpu")
    expected = probability(EffNetDetector(network, "x", temperature=1.7), sample_of(photograph))
    assert probability(detector, sample_of(photograph)) == pytest.approx(expected, abs=1e-5)
    assert detector.version.startswith("effnet@sha256:")


def test_efficientnet_lite_loads_at_full_size_and_scores(tmp_path: Path, photograph: np.ndarray) -> None:
    torch.manual_seed(1)
    network = timm.create_model("efficientnet_lite0", pretrained=False, num_classes=1)
    weights = installed(tmp_path, network.state_dict(), METADATA | {"architecture": "efficientnet_lite0"})
    assert 0 <= probability(EffNetDetector.load(weights, "cpu"), sample_of(photograph)) <= 1


def test_each_thing_wrong_with_the_weights_is_named(tmp_path: Path) -> None:
    state = small_network().state_dict()

    def load(metadata: dict[str, str], sha256: str = "", **changed: Tensor) -> None:
        EffNetDetector.load(installed(tmp_path, state | changed, metadata, sha256), "cpu")

    with pytest.raises(WeightsMissing, match="effnet"):
        EffNetDetector.load(Weights(Weights.at(tmp_path).cards, (tmp_path,)), "cpu")
    with pytest.raises(WeightsCorrupt, match=r"expected sha256 0{64}"):
        load(METADATA, "0" * 64)
    with pytest.raises(WeightsMismatch, match=r"1 unexpected: blocks\.extra"):
        load(METADATA, **{"blocks.extra": torch.ones(1)})
    with pytest.raises(WeightsMismatch, match=r"classifier\.weight \(file \(2, 256\), network \(1, 256\)\)"):
        load(METADATA, **{"classifier.weight": torch.ones(2, 256)})
    with pytest.raises(WeightsMismatch, match="'architecture' is 'efficientnet_lite99'"):
        load(METADATA | {"architecture": "efficientnet_lite99"})
    for temperature in ("0", "-1", "nan", "inf", "warm"):
        with pytest.raises(WeightsMismatch, match="'temperature' must be a number above 0"):
            load(METADATA | {"temperature": temperature})
    with pytest.raises(WeightsMismatch, match="'architecture' is ''"):
        load({"temperature": "1"})
    path = tmp_path / "effnet.safetensors"
    torch.save(state, path)
    register(path, sha256_file(path))
    with pytest.raises(WeightsCorrupt, match="not a safetensors file"):
        EffNetDetector.load(Weights.at(tmp_path), "cpu")

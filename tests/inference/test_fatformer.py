"""FatFormer as a detector: its preprocessing, and its checkpoint through the real path."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from inference import fatformer
from inference.fatformer import FatFormerDetector
from inference.registry import DETECTORS
from models.fatformer_net import TINY, FatFormer
from models.loaders import Weights
from tests.models.test_fatformer_net import official_state
from tests.pictures import sample_of
from utils.contracts import Sample
from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing
from utils.persistence import sha256_file


def probability(detector: FatFormerDetector, sample: Sample) -> float:
    return detector.score([sample])[0].features["fatformer_prob"]


# --- preprocessing


def test_preprocessing_is_upstreams(photograph: np.ndarray) -> None:
    upstream = transforms.Compose(
        [
            transforms.Resize((256, 256)),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    for pixels in (photograph, photograph[:100, :37], photograph[:300]):
        expected = upstream(Image.fromarray(pixels))
        torch.testing.assert_close(FatFormerDetector.tiny().preprocess(sample_of(pixels))[0], expected)


def test_the_image_is_seen_as_a_person_sees_it(photograph: np.ndarray) -> None:
    detector = FatFormerDetector.tiny()
    stored_sideways = sample_of(np.rot90(photograph), orientation=6)  # 6: turn clockwise to view
    torch.testing.assert_close(detector.preprocess(stored_sideways), detector.preprocess(sample_of(photograph)))


# --- scores


@pytest.mark.parametrize("shape", [(1, 1, 3), (31, 4000, 3), (4000, 1, 3), (64, 64, 3)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_odd_and_flat_images_get_a_probability(shape: tuple[int, ...], value: int) -> None:
    assert 0 <= probability(FatFormerDetector.tiny(), sample_of(np.full(shape, value))) <= 1


def test_a_batch_gives_what_single_images_give_and_again(photograph: np.ndarray) -> None:
    detector = FatFormerDetector.tiny()
    samples = [sample_of(photograph[:, start : start + 200]) for start in (0, 200, 400)]
    together = [measured.features["fatformer_prob"] for measured in detector.score(samples)]
    assert together == pytest.approx([probability(detector, sample) for sample in samples], abs=1e-5)
    assert together == [measured.features["fatformer_prob"] for measured in detector.score(samples)]
    assert len(set(together)) == 3


def test_the_second_class_is_fake(photograph: np.ndarray) -> None:
    detector = FatFormerDetector.tiny()

    class Fixed(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.0, 3.0]]).expand(len(images), 2)

    detector.network = Fixed()
    assert probability(detector, sample_of(photograph)) == pytest.approx(1 / (1 + np.exp(-3)))


def test_the_table_of_detectors_says_the_same() -> None:
    assert dict(DETECTORS[FatFormerDetector.name].features) == dict(FatFormerDetector.features)


# --- the published checkpoint, small, through card, hash and strict loading


def installed(folder: Path, state: dict[str, Tensor], sha256: str = "") -> Weights:
    path = folder / "fatformer_4class_ckpt.pth"
    torch.save({"model": state, "args": argparse.Namespace(num_vit_adapter=3), "epoch": 1}, path)
    (folder / "weights.toml").write_text(f'[fatformer]\nsha256 = "{sha256 or sha256_file(path)}"\n')
    return Weights.at(folder)


@pytest.fixture
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    monkeypatch.setattr(fatformer, "FatFormer", partial(FatFormer, TINY))


@pytest.mark.usefixtures("_small_network")
def test_the_published_layout_loads_and_scores(tmp_path: Path, photograph: np.ndarray) -> None:
    ddp = {f"module.{key}": value for key, value in official_state(TINY).items()}
    weights = installed(tmp_path, ddp)
    detector = FatFormerDetector.load(weights, "cpu")
    score = probability(detector, sample_of(photograph))
    assert 0 < score < 1
    assert detector.version == f"fatformer@sha256:{weights.card('fatformer').sha256[:12]}"
    half = FatFormerDetector.load(weights, "cpu", torch.bfloat16)
    assert probability(half, sample_of(photograph)) == pytest.approx(score, abs=0.1)


@pytest.mark.usefixtures("_small_network")
def test_each_thing_wrong_with_the_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"scripts\.download_weights fatformer"):
        FatFormerDetector.load(Weights.at(tmp_path), "cpu")
    with pytest.raises(WeightsCorrupt, match=r"fatformer_4class_ckpt\.pth: expected sha256 0{64}, found"):
        FatFormerDetector.load(installed(tmp_path, official_state(TINY), "0" * 64), "cpu")
    state = official_state(TINY)
    state["image_encoder.ln_pre.wait"] = state.pop("image_encoder.ln_pre.weight")
    with pytest.raises(WeightsMismatch, match=r"1 unexpected: image_encoder\.ln_pre\.wait"):
        FatFormerDetector.load(installed(tmp_path, state), "cpu")
    state = official_state(TINY) | {"norm1.weight": torch.ones(5)}
    with pytest.raises(
        WeightsMismatch, match=r"text_guided_interactor\.norm1\.weight \(file \(5,\), network \(24,\)\)"
    ):
        FatFormerDetector.load(installed(tmp_path, state), "cpu")

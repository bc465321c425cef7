"""A head on a frozen backbone, DINOv2 for all: embedding against transformers, views, and heads that are refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)

from fusion.calibration import Platt
from inference import embedding
from inference.embedding import Embedder
from inference.frozen import ClipHeadDetector, DinoDetector, Head
from inference.heads import Linear
from models.backbones import backbone
from models.loaders import Weights, record_card
from tests.inference.installing import install
from tests.pictures import sample_of
from utils.contracts import Sample
from utils.errors import BackboneMismatch, WeightsCorrupt, WeightsMismatch, WeightsMissing
from utils.persistence import read_arrays, save_model, sha256_file

WIDTH = 128  # two attention heads
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 70}
CONFIGS = {
    "plain": Dinov2Config(**SIZES, layerscale_value=0.7),
    "registers": Dinov2WithRegistersConfig(**SIZES, layerscale_value=0.7, num_register_tokens=4),
}


DINO = backbone("dinov2_base")


def load_backbone(weights: Weights, name: str) -> torch.nn.Module:
    return Embedder.load(weights, name).network


def views(sample: Sample) -> Tensor:
    return embedding.views(sample, DINO)


@pytest.fixture(params=CONFIGS, scope="module")
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the publisher offers it: config.json and model.safetensors, random weights."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    config = CONFIGS[request.param]
    model = (Dinov2WithRegistersModel if request.param == "registers" else Dinov2Model)(config)
    for parameter in model.parameters():  # zeros and ones at the start would hide a wrong place
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


# --- the embedding


def test_the_published_layout_is_the_one_the_facts_name(published: Path) -> None:
    keys = load_file(published / "model.safetensors").keys()
    assert {"embeddings.mask_token", "encoder.layer.1.attention.attention.query.weight", "layernorm.bias"} <= keys
    assert "encoder.layer.0.attention.output.dense.weight" in keys


@pytest.mark.parametrize("side", [70, 224])
def test_the_embedding_is_what_transformers_gives(published: Path, tmp_path: Path, side: int) -> None:
    weights = install(tmp_path, "dinov2_base", load_file(published / "model.safetensors"))
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    reference = AutoModel.from_pretrained(published, local_files_only=True).eval()
    with torch.inference_mode():
        tokens = reference(pixel_values=images).last_hidden_state
        found = load_backbone(weights, "dinov2_base")(images)
    registers = getattr(reference.config, "num_register_tokens", 0)
    assert tokens.shape[1] == 1 + registers + (side // 14) ** 2
    expected = torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(1)], dim=1)
    assert found.shape == (3, 2 * WIDTH)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_embedding_is_the_input_of_transformers_own_linear_classifier(published: Path, tmp_path: Path) -> None:
    weights = install(tmp_path, "dinov2_base", load_file(published / "model.safetensors"))
    classes = {"plain": Dinov2ForImageClassification, "registers": Dinov2WithRegistersForImageClassification}
    kind = "registers" if "registers" in published.name else "plain"
    classifier = classes[kind](CONFIGS[kind]).eval()
    backbone = load_backbone(weights, "dinov2_base")
    getattr(classifier, classifier.base_model_prefix).load_state_dict(backbone.model.state_dict())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(classifier.classifier(backbone(images)), classifier(images).logits)


# --- views


def test_a_small_image_is_one_view_and_a_large_one_adds_native_pixels(photograph: np.ndarray) -> None:
    assert views(sample_of(photograph)).shape == (1, 3, 224, 224)
    large = np.random.default_rng(0).integers(0, 256, (448, 900, 3), np.uint8)
    found = views(sample_of(large))
    assert found.shape == (6, 3, 224, 224)
    for index, (top, left) in {1: (112, 338), 3: (56, 507), 4: (168, 169)}.items():
        native = torch.from_numpy(large[top : top + 224, left : left + 224, 0]) / 255
        torch.testing.assert_close(found[index, 0], (native - 0.485) / 0.229)


def test_the_image_is_seen_as_a_person_sees_it(photograph: np.ndarray) -> None:
    torch.testing.assert_close(views(sample_of(np.rot90(photograph), 6)), views(sample_of(photograph)))


# --- scores


def probabilities(detector: DinoDetector, *samples: Sample) -> list[float]:
    return [measured.features["dino_prob"] for measured in detector.score(samples)]


@pytest.mark.parametrize("shape", [(1, 1, 3), (31, 4000, 3), (4000, 1, 3), (500, 500, 3)])
@pytest.mark.parametrize("value", [0, 255])
def test_odd_and_flat_images_get_a_probability(shape: tuple[int, ...], value: int) -> None:
    assert 0 <= probabilities(DinoDetector.tiny(), sample_of(np.full(shape, value)))[0] <= 1


def test_a_batch_gives_what_single_images_give_and_again(photograph: np.ndarray) -> None:
    detector = DinoDetector.tiny()
    samples = [sample_of(photograph[:, :200]), sample_of(np.tile(photograph, (2, 1, 1))), sample_of(photograph[:90])]
    together = probabilities(detector, *samples)
    assert together == pytest.approx([probabilities(detector, sample)[0] for sample in samples], abs=1e-6)
    assert together == probabilities(detector, *samples)
    assert len(set(together)) == 3


# --- the head


def line(size: int) -> Linear:
    weights = np.random.default_rng(0).normal(size=size)
    return Linear(np.full(size, 0.1), np.full(size, 2.0), weights, np.array([0.3]))


def head_for(weights: Weights, **changes: str) -> Head:
    fields = {"backbone": "dinov2_base", "backbone_sha256": weights.card("dinov2_base").sha256}
    fields["embedding"] = DINO.embedding
    return Head(**(fields | changes), classifier=line(2 * WIDTH), calibration=Platt(2, 0.5), settings="by hand")


def install_head(folder: Path, head: Head) -> Weights:
    head.save(folder / "dino_svm", {})
    return Weights.at(folder)


@pytest.fixture
def installed(published: Path, tmp_path: Path) -> Weights:
    return install(tmp_path, "dinov2_base", load_file(published / "model.safetensors"))


def test_an_installed_detector_loads_and_scores(installed: Weights, photograph: np.ndarray) -> None:
    head = head_for(installed)
    weights = install_head(installed.folders[0], head)
    detector = DinoDetector.load(weights, "cpu")
    large = sample_of(np.tile(photograph, (2, 1, 1)))
    each_view = detector.network(views(large)).double().numpy()
    assert probabilities(detector, large) == pytest.approx([head.probability(each_view.mean(axis=0))])
    (score,) = probabilities(detector, sample_of(photograph))
    assert weights.card("dino_svm").sha256[:12] in detector.version
    assert weights.card("dinov2_base").sha256[:12] in detector.version
    (half,) = probabilities(DinoDetector.load(weights, "cpu", torch.bfloat16), sample_of(photograph))
    assert half == pytest.approx(score, abs=0.1)


def test_a_head_on_another_backbone_is_refused_and_both_are_named(installed: Weights) -> None:
    other = "ab" * 32
    weights = install_head(installed.folders[0], head_for(installed, backbone_sha256=other))
    with pytest.raises(BackboneMismatch, match=rf"{other}.*{weights.card('dinov2_base').sha256}"):
        DinoDetector.load(weights, "cpu")


def test_a_head_on_a_backbone_without_a_card_is_refused(installed: Weights) -> None:
    weights = install_head(installed.folders[0], head_for(installed, backbone="dinov3_huge"))
    with pytest.raises(
        BackboneMismatch, match=r"trained on dinov3_huge.*here are dinov2_small, dinov2_base, dinov2_large"
    ):
        DinoDetector.load(weights, "cpu")


def test_a_missing_head_or_backbone_names_the_command(installed: Weights) -> None:
    with pytest.raises(WeightsMissing, match=r"scripts\.build_profile full"):
        DinoDetector.load(installed, "cpu")
    small = {"backbone": "dinov2_small", "backbone_sha256": installed.card("dinov2_small").sha256}
    weights = install_head(installed.folders[0], head_for(installed, **small))
    with pytest.raises(WeightsMissing, match=r"scripts\.download_weights dinov2_small"):
        DinoDetector.load(weights, "cpu")


def test_a_pickle_of_an_earlier_version_is_refused_unopened_with_the_command_that_replaces_it(
    installed: Weights, tmp_path: Path
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = installed.folders[0] / "dino_svm"
    folder.mkdir()
    path = folder / "head.json"
    path.write_text('{"kind": "svm"}')
    (folder / "head.joblib").write_bytes(pickle.dumps(Bomb()))
    record_card("dino_svm", {"file": "dino_svm/head.json", "sha256": sha256_file(path)}, installed.folders[0])
    with pytest.raises(WeightsMismatch, match=r"earlier version.*scripts\.train_head"):
        DinoDetector.load(Weights.at(installed.folders[0]), "cpu")
    assert not (tmp_path / "ran").exists()


def test_a_changed_head_is_refused_before_it_is_read(installed: Weights) -> None:
    weights = install_head(installed.folders[0], head_for(installed))
    path = installed.folders[0] / "dino_svm" / "weights.safetensors"
    path.write_bytes(path.read_bytes().replace(b"by hand", b"by fool"))
    with pytest.raises(WeightsCorrupt, match=r"weights\.safetensors: expected sha256"):
        DinoDetector.load(weights, "cpu")


def test_a_head_made_for_another_embedding_says_which(installed: Weights) -> None:
    weights = install_head(installed.folders[0], head_for(installed, embedding="0: CLS"))
    with pytest.raises(WeightsMismatch, match=r"embedding '0: CLS'.*train_head"):
        DinoDetector.load(weights, "cpu")


@pytest.mark.parametrize(
    "head",
    ["", "[]", "{}", {"kind": "spline"}, {"calibration": {"kind": "spline"}}, {"kind": "rbf"}, {"backbone": None}],
)
def test_a_malformed_head_is_refused(tmp_path: Path, head: str | dict[str, object]) -> None:
    if isinstance(head, dict):
        Head("dinov2_base", "ab", DINO.embedding, line(4), Platt(1, 0), "by hand").save(tmp_path / "good", {})
        _, metadata = read_arrays(tmp_path / "good" / "weights.safetensors")
        head = json.dumps({key: value for key, value in (json.loads(metadata["head"]) | head).items() if value})
    save_model(tmp_path / "bad", line(4).arrays(), {"head": head})
    with pytest.raises(WeightsCorrupt, match=r"weights\.safetensors is not a complete head.*train_head"):
        Head.load(tmp_path / "bad" / "weights.safetensors")


def test_a_head_survives_the_disk(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(20, 4))
    head = Head("dinov2_base", "ab", DINO.embedding, line(4), Platt(1.5, -0.2), "by hand")
    head.save(tmp_path / "head", {"metrics": {}})
    again = Head.load(tmp_path / "head" / "weights.safetensors")
    assert (again.backbone, again.backbone_sha256, again.settings) == ("dinov2_base", "ab", "by hand")
    assert [again.probability(row) for row in embeddings] == [head.probability(row) for row in embeddings]


# --- the backbone's checkpoint


def test_each_thing_wrong_with_the_checkpoint_is_named(published: Path, tmp_path: Path) -> None:
    state = load_file(published / "model.safetensors")
    with pytest.raises(WeightsCorrupt, match=r"dinov2_base\.safetensors: expected sha256 0{64}"):
        load_backbone(install(tmp_path, "dinov2_base", state, sha256="0" * 64), "dinov2_base")
    wrong = dict(state)
    wrong["layernorm.wait"] = wrong.pop("layernorm.weight")
    with pytest.raises(WeightsMismatch, match=r"1 missing: model\.layernorm\.weight; 1 unexpected: model.layernorm\.w"):
        load_backbone(install(tmp_path, "dinov2_base", wrong), "dinov2_base")
    wrong = state | {"encoder.layer.1.attention.attention.key.bias": torch.ones(3)}
    with pytest.raises(WeightsMismatch, match=r"layer\.1\.attention\.k_proj\.bias \(file \(3,\), network \(128,\)\)"):
        load_backbone(install(tmp_path, "dinov2_base", wrong), "dinov2_base")
    with pytest.raises(WeightsMismatch, match="not a DINOv2 checkpoint"):
        load_backbone(install(tmp_path, "dinov2_base", {"conv.weight": torch.ones(3)}), "dinov2_base")


def test_a_head_of_another_family_is_refused(installed: Weights) -> None:
    with pytest.raises(BackboneMismatch, match="dino's and not clip's"):
        ClipHeadDetector.with_head(head_for(installed), "by hand", installed, "cpu")


def test_a_head_alone_is_a_fusion_model_of_its_own_probability(installed: Weights) -> None:
    fusion = head_for(installed).alone("head-x")
    for value in (0.001, 0.2, 0.5, 0.999):
        assert fusion.probability({"dino_prob": value}) == pytest.approx(value, rel=1e-4)
    assert fusion.inputs == ("dino_prob",)


def test_each_fit_shows_what_upstream_shows(photograph: np.ndarray) -> None:
    squashed = backbone("pe_core_base")
    found = embedding.views(sample_of(photograph), squashed)
    small = Image.fromarray(photograph).resize((224, 224), Image.Resampling.BILINEAR)
    torch.testing.assert_close(found[0], torch.from_numpy(np.asarray(small) / 127.5 - 1).permute(2, 0, 1).float())
    whole = embedding.views(sample_of(photograph), backbone("clip_b16"))
    assert whole.shape == (1, 3, 224, 224)
    assert whole.max() > 200, "its network normalises"

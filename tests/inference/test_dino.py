"""The DINOv2 detector: its embedding against transformers, its views, and a head that is refused where it must be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
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
from inference.dino import DinoDetector, Head, load_backbone, log_odds, views
from inference.registry import DETECTORS
from models.loaders import Weights
from utils.contracts import Sample
from utils.errors import BackboneMismatch, WeightsCorrupt, WeightsMismatch, WeightsMissing
from utils.persistence import sha256_file

WIDTH = 128  # two attention heads
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 70}
CONFIGS = {
    "plain": Dinov2Config(**SIZES, layerscale_value=0.7),
    "registers": Dinov2WithRegistersConfig(**SIZES, layerscale_value=0.7, num_register_tokens=4),
}


def sample_of(rgb: np.ndarray, orientation: int = 1) -> Sample:
    return Sample("x", b"", np.ascontiguousarray(rgb, dtype=np.uint8), "JPEG", orientation=orientation)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return load_sample_image("china.jpg")


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


def install(folder: Path, state: dict[str, Tensor], sha256: str = "") -> Weights:
    path = folder / "dinov2_base.safetensors"
    save_file(state, path)
    card = f'[dinov2_base]\nsize = {path.stat().st_size}\nsha256 = "{sha256 or sha256_file(path)}"\n'
    (folder / "weights.toml").write_text(card)
    return Weights.at(folder)


# --- the embedding


def test_the_published_layout_is_the_one_the_facts_name(published: Path) -> None:
    keys = load_file(published / "model.safetensors").keys()
    assert {"embeddings.mask_token", "encoder.layer.1.attention.attention.query.weight", "layernorm.bias"} <= keys
    assert "encoder.layer.0.attention.output.dense.weight" in keys


@pytest.mark.parametrize("side", [70, 224])
def test_the_embedding_is_what_transformers_gives(published: Path, tmp_path: Path, side: int) -> None:
    weights = install(tmp_path, load_file(published / "model.safetensors"))
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
    weights = install(tmp_path, load_file(published / "model.safetensors"))
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


def test_a_forests_votes_become_finite_log_odds() -> None:
    class Votes:
        def predict_proba(self, embeddings: np.ndarray) -> np.ndarray:
            return np.array([[1.0, 0.0], [0.2, 0.8], [0.0, 1.0]])

    found = log_odds(Votes(), np.zeros((3, 2)))
    assert found[1] == pytest.approx(np.log(4))
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(-found[2])


# --- the head


def head_for(weights: Weights, **changes: str) -> Head:
    embeddings = np.random.default_rng(0).normal(size=(40, 2 * WIDTH))
    labels = (embeddings[:, 0] > 0).astype(int)
    fields = {"kind": "svm", "backbone": "dinov2_base", "backbone_sha256": weights.card("dinov2_base").sha256}
    return Head(
        **(fields | changes), estimator=LinearSVC(dual=False).fit(embeddings, labels), calibration=Platt(2, 0.5)
    )


def install_head(folder: Path, head: Head, **changes: str) -> Weights:
    path = head.save(folder / "dino_svm", {})
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    own = (folder / "weights.toml").read_text()
    (folder / "weights.toml").write_text(
        f'{own}\n[dino_svm]\nfile = "dino_svm/head.json"\nsha256 = "{sha256_file(path)}"\n'
    )
    return Weights.at(folder)


@pytest.fixture
def installed(published: Path, tmp_path: Path) -> Weights:
    return install(tmp_path, load_file(published / "model.safetensors"))


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
    with pytest.raises(BackboneMismatch, match=r"trained on dinov3_huge.*here are dinov2_small, dinov2_base"):
        DinoDetector.load(weights, "cpu")


def test_a_missing_head_or_backbone_names_the_command(installed: Weights) -> None:
    with pytest.raises(WeightsMissing, match=r"scripts\.train_dino_svm"):
        DinoDetector.load(installed, "cpu")
    small = {"backbone": "dinov2_small", "backbone_sha256": installed.card("dinov2_small").sha256}
    weights = install_head(installed.folders[0], head_for(installed, **small))
    with pytest.raises(WeightsMissing, match=r"scripts\.download_weights dinov2_small"):
        DinoDetector.load(weights, "cpu")


def test_a_pickle_that_is_not_the_trained_one_is_never_opened(
    installed: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = install_head(installed.folders[0], head_for(installed))
    (installed.folders[0] / "dino_svm" / "head.joblib").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setattr("inference.dino.joblib.load", lambda _: pytest.fail("opened"))
    with pytest.raises(WeightsCorrupt, match=r"head\.joblib: expected sha256"):
        DinoDetector.load(weights, "cpu")


def test_a_changed_manifest_is_refused_before_the_pickle_is_read(installed: Weights) -> None:
    weights = install_head(installed.folders[0], head_for(installed))
    path = installed.folders[0] / "dino_svm" / "head.json"
    path.write_text(path.read_text().replace("svm", "SVM"))
    with pytest.raises(WeightsCorrupt, match=r"head\.json: expected sha256"):
        DinoDetector.load(weights, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"embedding": "0: CLS"}, "embedding '0: CLS'"), ({"scikit_learn": "0.24.2"}, r"scikit-learn '0\.24'")],
)
def test_a_head_made_for_something_else_says_what(installed: Weights, changes: dict[str, str], message: str) -> None:
    weights = install_head(installed.folders[0], head_for(installed), **changes)
    with pytest.raises(WeightsMismatch, match=f"{message}.*train_dino_svm"):
        DinoDetector.load(weights, "cpu")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"calibration": {"kind": "spline"}}'])
def test_a_malformed_head_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "head.json").write_text(text)
    (tmp_path / "head.joblib").write_bytes(b"")
    with pytest.raises(WeightsCorrupt, match=r"head\.json is not a complete DINOv2 head"):
        Head.load(tmp_path / "head.json")


def test_a_head_survives_the_disk(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(20, 4))
    estimator = LogisticRegression().fit(embeddings, np.arange(20) % 2)
    head = Head("logistic", "dinov2_base", "ab", estimator, Platt(1.5, -0.2))
    again = Head.load(head.save(tmp_path / "head", {"metrics": {}}))
    assert (again.kind, again.backbone, again.backbone_sha256) == ("logistic", "dinov2_base", "ab")
    assert [again.probability(row) for row in embeddings] == [head.probability(row) for row in embeddings]


# --- the backbone's checkpoint


def test_each_thing_wrong_with_the_checkpoint_is_named(published: Path, tmp_path: Path) -> None:
    state = load_file(published / "model.safetensors")
    with pytest.raises(WeightsCorrupt, match=r"dinov2_base\.safetensors: expected sha256 0{64}"):
        load_backbone(install(tmp_path, state, "0" * 64), "dinov2_base")
    wrong = dict(state)
    wrong["layernorm.wait"] = wrong.pop("layernorm.weight")
    with pytest.raises(WeightsMismatch, match=r"1 missing: model\.layernorm\.weight; 1 unexpected: model.layernorm\.w"):
        load_backbone(install(tmp_path, wrong), "dinov2_base")
    wrong = state | {"encoder.layer.1.attention.attention.key.bias": torch.ones(3)}
    with pytest.raises(WeightsMismatch, match=r"layer\.1\.attention\.k_proj\.bias \(file \(3,\), network \(128,\)\)"):
        load_backbone(install(tmp_path, wrong), "dinov2_base")
    with pytest.raises(WeightsMismatch, match="not a DINOv2 checkpoint"):
        load_backbone(install(tmp_path, {"conv.weight": torch.ones(3)}), "dinov2_base")


def test_the_table_of_detectors_says_the_same() -> None:
    assert dict(DETECTORS["dino"].features) == dict(DinoDetector.tiny().features)

"""The CLIP detectors: both towers against open_clip's own, and every mismatch named."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from inference import clip_models
from inference.clip_models import (
    CLIP_DETECTORS,
    TINY,
    ClipBigGDetector,
    ClipDetector,
    ClipH14Detector,
    Prompts,
    TextEmbeddings,
)
from inference.registry import DETECTORS
from models.loaders import Weights, cards
from scripts.embed_clip_prompts import main as embed_clip_prompts
from tests.inference.installing import install
from tests.pictures import sample_of
from utils.contracts import Sample
from utils.errors import BackboneMismatch, WeightsCorrupt, WeightsMismatch, WeightsMissing


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    torch.manual_seed(2)
    return open_clip.CLIP(**TINY).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def installation(clip: open_clip.CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published key layout, small, with text embeddings made by the script that a user runs."""
    folder = tmp_path_factory.mktemp("weights")
    install(folder, "clip_h14", clip.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipH14Detector, "CONFIG", TINY)
        patch.setenv("IMGV_WEIGHTS_DIR", str(folder))
        assert embed_clip_prompts(["clip_h14"]) == 0
    return folder


@pytest.fixture
def installed(installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    monkeypatch.setattr(ClipH14Detector, "CONFIG", TINY)
    shutil.copytree(installation, tmp_path, dirs_exist_ok=True)
    return Weights.at(tmp_path)


# --- against open_clip


def test_the_configurations_are_open_clips_own() -> None:
    assert ClipH14Detector.CONFIG["vision_cfg"]["layers"] == 32
    assert ClipBigGDetector.CONFIG["vision_cfg"]["width"] == 1664
    assert {each.CONFIG["vision_cfg"]["image_size"] for each in CLIP_DETECTORS.values()} == {clip_models.SIDE}


def test_image_features_are_what_open_clip_encodes(
    installed: Weights, clip: open_clip.CLIP, photograph: np.ndarray
) -> None:
    detector = ClipH14Detector.load(installed, "cpu")
    transform = open_clip.image_transform(224, is_train=False)
    for pixels in (photograph, np.ascontiguousarray(photograph[:100, :37])):
        with torch.inference_mode():
            prepared = transform(Image.fromarray(pixels))[None]
            expected = clip.encode_image(prepared, normalize=True)[0]
            given_the_same_view = detector.forward(prepared)[0][0]
        torch.testing.assert_close(given_the_same_view, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(detector.embed(sample_of(pixels)), expected, rtol=0, atol=1e-3)
        view = detector.preprocess(sample_of(pixels))
        assert (view - prepared).abs().mean() < 0.005  # less than a third of a grey level


def test_text_embeddings_are_what_open_clip_encodes(installed: Weights, clip: open_clip.CLIP) -> None:
    text = TextEmbeddings.load(installed.path("clip_h14_text"))
    prompts = Prompts.read()
    assert len(text.real) == len(prompts.real)
    tokenizer = open_clip.get_tokenizer("ViT-H-14")
    for row, texts in ((text.real[0], prompts.real[0]), (text.generated[-1], prompts.generated[-1])):
        with torch.inference_mode():
            mean = clip.encode_text(tokenizer(list(texts)), normalize=True).mean(dim=0)
        torch.testing.assert_close(row, mean / mean.norm(), rtol=0, atol=1e-6)
    assert text.temperature == pytest.approx(float(clip.logit_scale.exp()))


def test_the_score_is_clips_zero_shot_softmax(installed: Weights, clip: open_clip.CLIP, photograph: np.ndarray) -> None:
    detector = ClipH14Detector.load(installed, "cpu")
    classes = torch.stack(
        [functional.normalize(rows.mean(0), dim=0) for rows in (detector.text.real, detector.text.generated)]
    )
    with torch.inference_mode():
        image = clip.encode_image(detector.preprocess(sample_of(photograph)), normalize=True)
        expected = (clip.logit_scale.exp() * image @ classes.T).softmax(dim=-1)[0, 1]
    assert probability(detector, sample_of(photograph)) == pytest.approx(float(expected), abs=1e-6)


def test_only_the_vision_tower_is_loaded(installed: Weights) -> None:
    detector = ClipH14Detector.load(installed, "cpu")
    names = dict(detector.network.named_parameters()).keys()
    assert "conv1.weight" in names
    assert not any("token_embedding" in name for name in names)


# --- scores


def probability(detector: ClipDetector, sample: Sample) -> float:
    return detector.score([sample])[0].features[f"{detector.name}_prob"]


@pytest.mark.parametrize("detector", CLIP_DETECTORS.values())
@pytest.mark.parametrize("shape", [(1, 1, 3), (31, 4000, 3), (4000, 1, 3)])
@pytest.mark.parametrize("value", [0, 255])
def test_odd_and_flat_images_get_a_probability(
    detector: type[ClipDetector], shape: tuple[int, ...], value: int
) -> None:
    assert 0 <= probability(detector.tiny(), sample_of(np.full(shape, value))) <= 1


def test_a_batch_gives_what_single_images_give_and_again(photograph: np.ndarray) -> None:
    detector = ClipH14Detector.tiny()
    samples = [sample_of(photograph[:, start : start + 200]) for start in (0, 200, 400)]
    together = [measured.features["clip_h14_prob"] for measured in detector.score(samples)]
    assert together == pytest.approx([probability(detector, sample) for sample in samples], abs=1e-6)
    assert together == [measured.features["clip_h14_prob"] for measured in detector.score(samples)]
    assert len(set(together)) == 3


def test_the_image_is_seen_as_a_person_sees_it(photograph: np.ndarray) -> None:
    detector = ClipH14Detector.tiny()
    turned = detector.preprocess(sample_of(np.rot90(photograph), orientation=6))
    torch.testing.assert_close(turned, detector.preprocess(sample_of(photograph)))


def test_half_precision_on_request_stays_near(installed: Weights, photograph: np.ndarray) -> None:
    half = ClipH14Detector.load(installed, "cpu", torch.bfloat16)
    assert next(half.network.parameters()).dtype == torch.bfloat16
    whole = ClipH14Detector.load(installed, "cpu")
    assert probability(half, sample_of(photograph)) == pytest.approx(
        probability(whole, sample_of(photograph)), abs=0.02
    )


# --- text embeddings


def embeddings() -> TextEmbeddings:
    rows = functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    return TextEmbeddings(rows[:2], rows[2:], torch.full((2,), 0.5), torch.full((3,), 1 / 3), 50.0, 0.5, "a", "b", "c")


def test_log_odds_rise_towards_the_generated_prompts() -> None:
    text = embeddings()
    generated = clip_models.class_embedding(text.generated, text.generated_weights)
    real = clip_models.class_embedding(text.real, text.real_weights)
    assert generated.norm() == pytest.approx(1)
    odds = text.log_odds(torch.stack([real, generated]))
    cosine = float(real @ generated)
    assert odds.tolist() == pytest.approx([50 * (cosine - 1) + 0.5, 50 * (1 - cosine) + 0.5], rel=1e-4)


def test_text_embeddings_survive_the_disk(tmp_path: Path) -> None:
    text = replace(embeddings(), temperature=math.pi, bias=-1 / 3)
    text.save(tmp_path / "text.safetensors")
    again = TextEmbeddings.load(tmp_path / "text.safetensors")
    assert (again.temperature, again.bias) == (math.pi, -1 / 3)
    assert (again.checkpoint_sha256, again.prompts_sha256, again.fitted) == ("a", "b", "c")
    torch.testing.assert_close(again.direction, text.direction, rtol=0, atol=0)


def test_another_file_is_not_taken_for_text_embeddings(tmp_path: Path) -> None:
    save_file({"real": torch.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\0" * 20)
    for name in ("other", "damaged"):
        with pytest.raises(WeightsCorrupt, match=rf"{name}\.safetensors is not a file of CLIP text embeddings"):
            TextEmbeddings.load(tmp_path / f"{name}.safetensors")


def test_the_prompts_of_both_classes_share_their_templates() -> None:
    prompts = Prompts.read()
    counts = {len(texts) for texts in (*prompts.real, *prompts.generated)}
    assert len(counts) == 1
    assert counts.pop() >= 5
    texts = [text for side in (prompts.real, prompts.generated) for each in side for text in each]
    assert len(set(texts)) == len(texts)
    assert not any("{" in text for text in texts)
    tokens = open_clip.tokenize(texts)
    assert (tokens[:, -1] == 0).all(), "a text is cut off at CLIP's 77 tokens"


# --- what is refused


def test_missing_parts_name_their_commands(
    tmp_path: Path, clip: open_clip.CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipH14Detector, "CONFIG", TINY)
    with pytest.raises(WeightsMissing, match=r"python -m scripts\.embed_clip_prompts clip_h14"):
        ClipH14Detector.load(install(tmp_path, "clip_h14", clip.state_dict()), "cpu")
    with pytest.raises(WeightsMissing, match=r"python -m scripts\.embed_clip_prompts clip_bigg"):
        ClipBigGDetector.load(Weights.at(tmp_path), "cpu")
    with pytest.raises(WeightsMissing, match=r"python -m scripts\.download_weights clip_bigg"):
        ClipBigGDetector.text_tower(Weights.at(tmp_path))


def test_text_embeddings_of_another_checkpoint_are_refused(installed: Weights, clip: open_clip.CLIP) -> None:
    before = installed.card("clip_h14").sha256
    folder = installed.folders[0]
    other = install(folder, "clip_h14", {key: value + 1 for key, value in clip.state_dict().items()})
    after = other.card("clip_h14").sha256
    with pytest.raises(BackboneMismatch, match=rf"{before}.*{after}.*embed_clip_prompts clip_h14"):
        ClipH14Detector.load(Weights.at(folder), "cpu")


def test_text_embeddings_of_other_prompts_are_refused(
    installed: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = clip_models.PROMPTS.read_text().replace("a deepfake", "a deep fake")
    (tmp_path / "prompts.toml").write_text(changed)
    other = Prompts.read(tmp_path / "prompts.toml")
    assert other.sha256 != Prompts.read().sha256
    monkeypatch.setattr(Prompts, "read", lambda: other)
    with pytest.raises(WeightsMismatch, match=rf"other prompts.*{other.sha256}.*embed_clip_prompts clip_h14"):
        ClipH14Detector.load(installed, "cpu")


def test_each_thing_wrong_with_the_checkpoint_is_named(
    tmp_path: Path, clip: open_clip.CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipH14Detector, "CONFIG", TINY)

    def load(state: dict[str, Tensor], sha256: str = "") -> None:
        checkpoint = install(tmp_path, "clip_h14", state, sha256=sha256).card("clip_h14").sha256
        text = replace(embeddings(), checkpoint_sha256=checkpoint, prompts_sha256=Prompts.read().sha256)
        text.install("clip_h14_text", tmp_path)
        ClipH14Detector.load(Weights.at(tmp_path), "cpu")

    with pytest.raises(WeightsCorrupt, match=r"clip_h14\.safetensors: expected sha256 0{64}"):
        load(clip.state_dict(), "0" * 64)
    wrong = clip.state_dict()
    wrong["visual.ln_pre.wait"] = wrong.pop("visual.ln_pre.weight")
    with pytest.raises(WeightsMismatch, match=r"1 missing: ln_pre\.weight; 1 unexpected: ln_pre\.wait"):
        load(wrong)
    with pytest.raises(WeightsMismatch, match=r"proj \(file \(5,\), network \(32, 16\)\)"):
        load(clip.state_dict() | {"visual.proj": torch.ones(5)})
    wrong = clip.state_dict()
    del wrong["ln_final.bias"]
    with pytest.raises(WeightsMismatch, match=r"1 missing: ln_final\.bias"):
        ClipH14Detector.text_tower(install(tmp_path, "clip_h14", wrong))


def test_a_command_without_the_checkpoint_names_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMGV_WEIGHTS_DIR", str(tmp_path))
    assert embed_clip_prompts(["clip_bigg"]) == 4
    assert "weights_missing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_table_of_detectors_says_the_same() -> None:
    for name, detector in CLIP_DETECTORS.items():
        assert dict(DETECTORS[name].features) == dict(detector.tiny().features) == dict(detector.features)
        files = [card.name for card in Weights(cards(), ()).of(DETECTORS[name].model)]
        assert files == [detector.text_card(), name]

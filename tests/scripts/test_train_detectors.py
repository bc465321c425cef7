"""The trainers of networks, from files on disk to weights that the detectors load, with architectures of a toy size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image

from inference import fatformer
from inference.edit_map import EditMap
from inference.effnet import EffNetDetector
from inference.fatformer import FatFormerDetector
from inference.ghostnet import GhostNetDetector
from inference.mantranet_compact import CompactManTraNetDetector
from inference.views import IMAGENET
from models.fatformer_net import TINY, FatFormer
from models.loaders import Weights, record_card
from scripts import train_edit_map, train_effnet, train_fatformer, train_ghostnet, train_mantranet
from tests.models.test_fatformer_net import official_state
from training import detectors as shared
from training.loop import Picture
from utils.contracts import Sample
from utils.errors import WeightsMismatch
from utils.exits import Exit
from utils.persistence import sha256_file

PHOTOGRAPHS = [np.asarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Crops of photographs; the "generated" ones are smeared, which any network finds."""
    rng = np.random.default_rng(0)
    lines = ["filepath,label,source,split"]
    for label in ("real", "ai"):
        for index in range(8):
            top, left = int(rng.integers(0, 150)), int(rng.integers(0, 300))
            pixels = PHOTOGRAPHS[index % 2][top : top + 270, left : left + 300]
            if label == "ai":
                pixels = np.asarray(cv2.medianBlur(np.ascontiguousarray(pixels), 9), dtype=np.uint8)
            name = f"{label}{index}.{'jpg' if index % 3 else 'png'}"
            Image.fromarray(pixels).save(tmp_path / name)
            lines.append(f"{name},{label},{label}-{index},{'val' if index > 5 else 'train'}")
    (tmp_path / "broken.png").write_bytes(b"no image")
    lines.append("broken.png,real,real-0,train")
    (tmp_path / "dataset.csv").write_text("\n".join(lines))
    return tmp_path / "dataset.csv"


def arguments(dataset: Path, steps: int, batch: int = 4) -> list[str]:
    folder = dataset.parent
    given = ["--dataset", str(dataset), "--out", str(folder / "out"), "--cache", str(folder / "cache")]
    return [*given, "--steps", str(steps), "--batch", str(batch), "--workers", "0", "--jobs", "1"]


def photograph() -> Sample:
    return Sample("china.jpg", b"", PHOTOGRAPHS[0], "JPEG")


def test_effnet_is_trained_measured_and_loaded(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_effnet.main([*arguments(dataset, 2), "--architecture", "test_efficientnet"]) == 0
    out = dataset.parent / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"clean, all", "web, all", "hard, all"}
    assert f"cp -r {out / 'effnet'} " in capsys.readouterr().out
    assert {each.name for each in (out / "effnet").iterdir()} == {"card.toml", "weights.safetensors", "graph.onnx"}
    detector = EffNetDetector.load(Weights.at(out))
    found = detector.measure(photograph())
    assert 0 < found.features["effnet_prob"] < 1
    state = load_file(out / "effnet" / "weights.safetensors")
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}


def test_ghostnet_is_trained_measured_and_loaded(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_ghostnet, "DELIVERIES", ("clean",))
    assert train_ghostnet.main(arguments(dataset, 1, batch=2)) == 0
    detector = GhostNetDetector.load(Weights.at(dataset.parent / "out"))
    found = detector.measure(photograph())
    assert 0 < found.features["ghostnet_score"] < 1


def test_mantranet_is_trained_measured_and_loaded(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_mantranet, "MEASURED", 4)
    rows = dataset.read_text().splitlines()
    dataset.write_text("\n".join(row for row in rows if ",ai," not in row))  # photographs are all it needs
    assert train_mantranet.main(arguments(dataset, 1, batch=2)) == 0
    metrics = json.loads((dataset.parent / "out" / "metrics.json").read_text())
    assert 0 <= metrics["pixel_auroc"] <= 1
    detector = CompactManTraNetDetector.load(Weights.at(dataset.parent / "out"))
    found = detector.measure(photograph())
    assert 0 <= found.features["mantra_anomaly"] <= 1


def test_the_edit_map_is_trained_measured_and_loaded(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_edit_map, "SIDE", 128)
    monkeypatch.setattr(train_edit_map, "HELD_OUT", 2)
    given = arguments(dataset, 1, batch=2)
    rows = dataset.read_text().splitlines()
    dataset.write_text("\n".join(row for row in rows if ",ai," not in row))
    assert train_edit_map.main([*given, "--samples", "8"]) == 0
    metrics = json.loads((dataset.parent / "out" / "metrics.json").read_text())
    assert metrics["all"]["images"] + metrics.get("untouched", {"images": 0})["images"] == 2
    drawn = EditMap(Weights.at(dataset.parent / "out")).draw(photograph())["edit_map"]
    assert drawn.shape == (54, 80)
    assert ((drawn > 0) & (drawn < 1)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("label", "lable", 1), "no column label"),
        (lambda text: text.replace("ai-6", "ai-0"), "in train and in val, such as ai-0"),
        (lambda text: text.replace("real", "nature"), "needs real and ai images"),
    ],
)
def test_a_dataset_that_nobody_can_learn_from_is_told_in_one_line(
    dataset: Path, capsys: pytest.CaptureFixture[str], change: Callable[[str], str], message: str
) -> None:
    dataset.write_text(change(dataset.read_text()))
    assert train_effnet.main([*arguments(dataset, 1), "--architecture", "test_efficientnet"]) == Exit.FAILED
    assert message in capsys.readouterr().err


def test_images_of_one_label_that_cannot_be_read_are_no_dataset(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in dataset.parent.glob("ai*.*"):
        path.write_bytes(b"no image")
    assert train_ghostnet.main(arguments(dataset, 1)) == Exit.FAILED
    assert "that can be read" in capsys.readouterr().err


def test_a_run_with_more_steps_goes_on(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_effnet, "DELIVERIES", ("clean",))
    for steps in (1, 2):
        train_effnet.main([*arguments(dataset, steps), "--architecture", "test_efficientnet", "--resume"])
    saved = torch.load(dataset.parent / "out" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 2


def test_random_views_have_one_size_and_range_whatever_the_picture(tmp_path: Path) -> None:
    for index, shape in enumerate([(1, 1), (1, 4000), (200, 90), (700, 768)]):
        np.save(tmp_path / f"{index}.npy", np.full((*shape, 3), 90, np.uint8))
        for seed in range(3):
            picture = Picture(tmp_path / f"{index}.npy", 1, "s", "train")
            view, label = train_effnet.random_view(picture, np.random.default_rng(seed))
            assert view.shape == (3, train_effnet.CROP, train_effnet.CROP)
            assert torch.isfinite(view).all()
            assert label == 1
            assert train_effnet.target(replace(picture, teacher=0.4)) == pytest.approx(0.7)
            crops, labels = train_ghostnet.random_crops(picture, np.random.default_rng(seed))
            assert crops.shape == (train_ghostnet.CROPS, 3, train_ghostnet.CROP, train_ghostnet.CROP)
            assert 0 <= float(crops.min()) <= float(crops.max()) <= 255
            assert labels.tolist() == [1] * train_ghostnet.CROPS


def test_a_mixed_view_is_labelled_by_the_share_of_its_generated_pixels() -> None:
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0])
    for seed in range(20):
        torch.manual_seed(seed)
        views, shares = train_effnet.CUTMIX(labels.view(4, 1, 1, 1).expand(4, 3, 32, 32), labels[:, None])
        assert torch.allclose(views.mean(dim=(1, 2, 3)), shares[:, 0])


def test_a_retouched_view_has_other_colours_and_the_same_structure() -> None:
    photograph = PHOTOGRAPHS[0][:224, :224]
    retouched = train_effnet.retouched(photograph, np.random.default_rng(1))
    assert retouched.dtype == np.uint8
    assert np.abs(retouched.mean(axis=(0, 1)) - photograph.mean(axis=(0, 1))).max() > 2
    assert np.corrcoef(retouched.mean(axis=2).ravel(), photograph.mean(axis=2).ravel())[0, 1] > 0.97


def test_folding_keeps_the_networks_function() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=3).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = train_effnet.WHEEL_EPS
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]  # it has one
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    grey = torch.full((1, 3, 64, 64), 140.0)  # flat inside, so that only the padded border differs
    state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    theirs = network.conv_stem((grey - train_effnet.WHEEL_MEAN) / train_effnet.WHEEL_STD)
    expected = torch.nn.functional.batch_norm(
        theirs, network.bn1.running_mean, network.bn1.running_var, network.bn1.weight, network.bn1.bias, False, 0, 1e-3
    )
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET.mean, IMAGENET.std))
    network.load_state_dict(train_effnet.folded(state), strict=False)
    ours = network.conv_stem((grey / 255 - mean) / std)
    found = torch.nn.functional.batch_norm(
        ours, network.bn1.running_mean, network.bn1.running_var, network.bn1.weight, network.bn1.bias, False, 0, 1e-5
    )
    assert torch.allclose(expected[..., 2:-2, 2:-2], found[..., 2:-2, 2:-2], atol=1e-4)


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"conv_stem.weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(RuntimeError, match="size mismatch"):
        train_effnet.start("test_efficientnet", tmp_path / "w.pt")
    torch.save({"stem": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(WeightsMismatch, match="not weights of"):
        train_effnet.start("test_efficientnet", tmp_path / "w.pt")


def test_the_temperature_undoes_an_overconfident_scale() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, 4000)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-odds))).astype(int)
    given = [Picture(Path("x"), int(label), "s", "val") for label in labels]
    assert shared.fit_temperature({"clean": odds * 4}, given) == pytest.approx(4, rel=0.15)
    assert shared.fit_temperature({"clean": odds[:1]}, given[:1]) == 1


def test_matched_contents_are_measured_apart() -> None:
    given = [
        Picture(Path(f"{label}{content}{index}"), label, f"{label}{content}{index}", "val", content)
        for label in (0, 1)
        for content in ("photo", "art")
        for index in range(3)
    ]
    logits = {"clean": np.array([each.label * (4.0 if each.content == "art" else -4.0) - 1 for each in given])}
    measured = shared.measure(logits, given, temperature=1.0)
    assert set(measured) == {"clean, all", "clean, art", "clean, photo"}
    assert measured["clean, art"]["auroc"][0] == 1
    assert measured["clean, photo"]["auroc"][0] == 0


def test_fatformer_is_fine_tuned_goes_on_and_stops_on_held_out_sources(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    torch.manual_seed(0)
    torch.save({"model": official_state(TINY)}, weights / "fatformer_4class_ckpt.pth")
    record_card("fatformer", {"sha256": sha256_file(weights / "fatformer_4class_ckpt.pth")}, weights)
    monkeypatch.setenv("IMGV_WEIGHTS_DIR", str(weights))
    for module in (train_fatformer, fatformer):
        monkeypatch.setattr(module, "FatFormer", lambda: FatFormer(TINY))
    before = train_fatformer.start().state_dict()
    more = ["--check-steps", "1", "--patience", "1", "--resume", "--rate", "1"]  # far enough for half precision
    assert train_fatformer.main([*arguments(dataset, 1, batch=2), *more]) == 0
    assert train_fatformer.main([*arguments(dataset, 2, batch=2), *more]) == 0
    shown = capsys.readouterr().out
    assert "step 1: validation loss" in shown
    assert "step 2: validation loss" in shown
    out = dataset.parent / "out"
    assert set(json.loads((out / "metrics.json").read_text())) == {"clean, all", "web, all", "hard, all"}
    shutil.copytree(out / "fatformer", weights / "fatformer")  # as the command says, beside the checkpoint's own record
    detector = FatFormerDetector.load(Weights.at(weights), "cpu")
    assert detector.version == Weights.at(out).card("fatformer").version
    assert 0 <= detector.score([photograph()])[0].features["fatformer_prob"] <= 1
    after = detector.network.state_dict()
    moved = {name for name in before if not torch.allclose(before[name], after[name].float(), atol=1e-3, rtol=1e-3)}
    assert moved, "it learnt"
    assert all(any(part in name for part in train_fatformer.LEARNT) for name in moved), "CLIP stays as it is"

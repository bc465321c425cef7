"""The evaluation of a feature table, and of images measured by the product itself."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from fusion.meta_model import FusionModel
from inference.detector import FUSION_OF_PROFILE
from models.loaders import SHIPPED
from scripts.evaluate import judge, main, measure, shares

MODEL = FusionModel.load(SHIPPED / FUSION_OF_PROFILE["embedded"])


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Crops of two photographs under invented labels, a few sources each."""
    lines = ["filepath,label,source,split,generator,kind,content"]
    for index in range(6):
        pixels = np.asarray(load_sample_image("china.jpg"))[20 * index : 20 * index + 100, :120]
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        label = "ai" if index % 2 else "real"
        generator, kind = ("sd|x", "") if index % 2 else ("", "photo")
        lines.append(f"{index}.png,{label},{label}{index // 2},val,{generator},{kind},photo")
    (tmp_path / "dataset.csv").write_text("\n".join(lines))
    return tmp_path / "dataset.csv"


@pytest.fixture
def features(manifest: Path) -> Path:
    """A table for it in which ``effnet_prob`` knows the label and everything else is noise."""
    rng = np.random.default_rng(0)
    names = list(dict.fromkeys([*MODEL.inputs, "effnet_prob", "dino_prob"]))
    path = manifest.with_name("features.csv")
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "delivery", "label", "source", "split", *names])
        for delivery in ("hard", "clean"):
            with manifest.open() as rows:
                for row in csv.DictReader(rows):
                    values = {name: f"{rng.random():.4f}" for name in names}
                    values |= {"effnet_prob": "0.9" if row["label"] == "ai" else "0.1", "dino_prob": ""}
                    table.writerow([row["filepath"], delivery, row["label"], row["source"], "val", *values.values()])
    return path


def test_probabilities_are_the_artifacts_own(features: Path, manifest: Path) -> None:
    judged = judge(features, manifest, "", "val")
    with features.open() as file:
        first = next(csv.DictReader(file))
    given = {name: float(first[name]) for name in MODEL.inputs if first[name]}
    assert judged.probabilities[0] == pytest.approx(MODEL.probability(given))
    assert judged.threshold == MODEL.thresholds.label


def test_every_delivery_detector_and_family_has_its_row(features: Path, manifest: Path) -> None:
    sections = measure(judge(features, manifest, "", "val"))
    assert list(sections["By delivery"]) == ["clean", "hard"]
    alone = sections["Each detector alone"]
    assert set(alone) == {f"{name}, {each}" for name in ("clean", "hard") for each in ("effnet_prob", "fusion")}
    assert alone["clean, effnet_prob"]["auroc"][0] == 1
    assert any(name.startswith("clean, noise") for name in sections["Fusion without"])
    assert set(sections["Content matched"]) == {"clean, photo", "hard, photo"}


def test_shares_are_by_generator_and_kind(features: Path, manifest: Path) -> None:
    judged = judge(features, manifest, "", "val")
    ((name, images, sources, right),) = shares(judged, 1, "generator")
    assert (name, images, sources, set(right)) == ("sd|x", 3, 3, {"clean", "hard"})
    assert shares(judged, 0, "kind")[0][0] == "photo"


def test_the_report_is_written_and_shows_mistakes(
    features: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMGV_THRESHOLD", "0")  # everything is called AI
    out = manifest.parent / "report"
    assert main(["--table", str(features), "--manifest", str(manifest), "--out", str(out)]) == 0
    text = (out / "evaluation.md").read_text()
    assert text in capsys.readouterr().out
    assert "| real | 0 | 3 |" in text
    assert "sd/x" in text
    assert "precision" in text
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 3
    assert "data:image/png" in page
    assert set(json.loads((out / "metrics.json").read_text())) >= {"By delivery", "Fusion without"}


def test_images_are_measured_when_there_is_no_table(manifest: Path) -> None:
    out = manifest.parent / "report"
    assert main(["--manifest", str(manifest), "--out", str(out), "--jobs", "1"]) == 0
    assert "3 real images of 3 sources and 3 AI images of 3 sources" in (out / "evaluation.md").read_text()


def test_a_table_that_lacks_an_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["filepath,label,source,split,effnet_prob", "a,real,a,val,0.1", "b,ai,b,val,0.9"]
    (tmp_path / "f.csv").write_text("\n".join(lines))
    assert main(["--table", str(tmp_path / "f.csv"), "--out", str(tmp_path)]) == 1
    assert "has no column" in capsys.readouterr().err


def test_a_split_that_is_not_there_is_refused(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--table", str(features), "--out", str(tmp_path / "r"), "--split", "train"]) == 1
    assert "no rows of split train" in capsys.readouterr().err

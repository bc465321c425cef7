"""The evaluation of a feature table, of images measured by the product itself, and of heatmaps against masks."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from fusion.meta_model import FusionModel
from inference.ensemble import Ensemble
from models.loaders import SHIPPED
from scripts.evaluate import main
from tests.fakes import fusion_model
from training import evaluation, localisation
from training.evaluation import judge, measure, rarity, shares, tiers
from utils.contracts import Measurement, Sample
from utils.exits import Exit
from utils.profiles import DEFAULT_PROFILE, PROFILES
from utils.settings import load_settings

ARTIFACT = SHIPPED / PROFILES[DEFAULT_PROFILE].fusion
MODEL = FusionModel.load(ARTIFACT)


@pytest.fixture(autouse=True)
def few_images_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "FEWEST", 1)


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
    judged = judge(features, manifest, ARTIFACT, "val")
    with features.open() as file:
        first = next(csv.DictReader(file))
    given = {name: float(first[name]) for name in MODEL.inputs if first[name]}
    assert judged.probabilities[0] == pytest.approx(MODEL.probability(given))
    assert judged.threshold == MODEL.thresholds.label


def test_every_delivery_detector_and_family_has_its_row(features: Path, manifest: Path) -> None:
    sections = measure(judge(features, manifest, ARTIFACT, "val"))
    assert list(sections["By delivery"]) == ["clean", "hard"]
    alone = sections["Each detector alone"]
    opinions = ("clip_b16_prob", "effnet_prob", "fusion")
    assert set(alone) == {f"{name}, {each}" for name in ("clean", "hard") for each in opinions}
    assert alone["clean, effnet_prob"]["auroc"][0] == 1
    assert "Fusion without" not in sections  # it reads one family: without it nothing is fused
    assert set(sections["Content matched"]) == {"clean, photo", "hard, photo"}


def test_fusion_is_measured_without_each_family_that_it_reads_and_that_measured_anything(
    features: Path, manifest: Path
) -> None:
    model = fusion_model("clip_b16_prob", "effnet_prob", "dino_prob")
    sections = measure(replace(judge(features, manifest, ARTIFACT, "val"), model=model))
    families = ("clip_b16", "effnet")  # dino measured nothing
    assert set(sections["Fusion without"]) == {f"{name}, {each}" for name in ("clean", "hard") for each in families}


def test_what_a_reference_tells_is_counted_on_these_images(features: Path, manifest: Path) -> None:
    judged = judge(features, manifest, ARTIFACT, "val")
    assert MODEL.reference is not None
    told = [MODEL.reference.look_up(each, "hard").real_as_high for each in judged.probabilities]
    hard = judged.rows(judged.table.deliveries == "hard")
    for named, (real, ai) in rarity(hard).items():
        rows = (judged.table.deliveries == "hard") & (judged.table.labels == 0)
        assert real[0] == pytest.approx(np.mean([told[row] <= named for row in np.flatnonzero(rows)]))
        assert all(low <= high for _, low, high in (real, ai))
    assert rarity(replace(judged, model=fusion_model(*MODEL.inputs))) == {}  # an artifact without a table


def test_detectors_are_compared_at_the_share_of_real_images_that_fusion_calls_real(
    features: Path, manifest: Path
) -> None:
    judged = judge(features, manifest, ARTIFACT, "val")
    real = judged.probabilities[(judged.table.labels == 0) & (judged.table.deliveries == "clean")]
    strict = judge(features, manifest, ARTIFACT, "val", threshold=float(np.sort(real)[1]))  # one real image of three
    alone = measure(strict)["Each detector alone"]
    assert alone["clean, fusion"]["real_called_real"][0] == pytest.approx(1 / 3, abs=1e-5)
    assert alone["clean, effnet_prob"]["real_called_real"][0] == 1  # its real images are tied: all, rather than none
    assert alone["clean, effnet_prob"]["ai_called_ai"][0] == 1
    everything = judge(features, manifest, ARTIFACT, "val", threshold=1.0)
    assert measure(everything)["Each detector alone"]["clean, effnet_prob"]["ai_called_ai"][0] == 1


def test_tiers_cover_all_images_of_a_delivery(features: Path, manifest: Path) -> None:
    for table in tiers(judge(features, manifest, ARTIFACT, "val")).values():
        shares_of_tiers = [row["coverage"] for name, row in table.items() if name != "outside_inconclusive"]
        assert sum(shares_of_tiers) == pytest.approx(1)
        assert table["inconclusive"]["coverage"] + table["outside_inconclusive"]["coverage"] == pytest.approx(1)


def test_shares_are_by_generator_and_kind(features: Path, manifest: Path) -> None:
    judged = judge(features, manifest, ARTIFACT, "val")
    ((name, images, sources, right),) = shares(judged, 1, "generator")
    assert (name, images, sources, set(right)) == ("sd|x", 3, 3, {"clean", "hard"})
    assert shares(judged, 0, "kind")[0][0] == "photo"


def test_generators_of_few_images_share_a_row(features: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "FEWEST", 4)
    ((name, images, *_),) = shares(judge(features, manifest, ARTIFACT, "val"), 1, "generator")
    assert (name, images) == ("1 with fewer than 4 images", 3)


def test_the_report_is_written_and_shows_mistakes(
    features: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMGV_THRESHOLD", "0")  # everything is called AI
    out, page = manifest.parent / "report", manifest.parent / "page.md"
    command = ["--table", str(features), "--manifest", str(manifest), "--out", str(out), "--markdown", str(page)]
    assert main(command) == 0
    text = page.read_text()
    assert not (out / "evaluation.md").exists()
    assert text in capsys.readouterr().out
    assert "| real | 0 | 3 |" in text
    assert "| sd-x | 3 | 3 |" in text
    assert "precision" in text
    assert "| inconclusive | " in text
    assert f"`{MODEL.name}`" in text
    assert "python -m scripts.evaluate --table features.csv --manifest dataset.csv" in text
    for private in (str(manifest.parent), ".png", "data:"):
        assert private not in text
    assert text.index("Real images called real") < text.index("AI images called AI")
    assert "fusion does not beat `effnet_prob` in AUROC" in text or "it does not beat `effnet_prob` in AUROC" in text
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 3
    assert "data:image/png" in page
    assert set(json.loads((out / "metrics.json").read_text())) >= {"By delivery", "Each detector alone"}


def test_images_are_measured_when_there_is_no_table(manifest: Path) -> None:
    out = manifest.parent / "report"
    assert main(["--manifest", str(manifest), "--out", str(out), "--jobs", "1"]) == 0
    assert "3 real images of 3 sources and 3 AI images of 3 sources" in (out / "evaluation.md").read_text()


def write_forgery(folder: Path, name: str, mask: np.ndarray) -> str:
    Image.fromarray(np.asarray(load_sample_image("flower.jpg"))[:96, :128]).save(folder / f"{name}.png")
    Image.fromarray(mask).save(folder / f"{name}.mask.png")
    return f"{name}.png,manipulated,{name},{name}.mask.png"


class Map:
    """A detector whose heatmap is what it was given, at a quarter of the image's size."""

    name = "mantranet_compact"
    version = "map@1"
    reads = "pixels"
    features: ClassVar = {"mantra_anomaly": "a number"}

    def __init__(self, heatmap: np.ndarray) -> None:
        self.heatmap = heatmap.astype(np.float32)

    def measure(self, sample: Sample) -> Measurement:
        return Measurement({"mantra_anomaly": 0.5}, heatmaps={"mantranet": self.heatmap})


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Two images whose left half was changed, and one without a changed region."""
    half = np.zeros((96, 128), np.uint8)
    half[:, :64] = 1  # some datasets mark with 1, not 255
    rows = [write_forgery(tmp_path, "a", half), write_forgery(tmp_path, "b", half * 255)]
    rows += [write_forgery(tmp_path, "empty", half * 0), "a.png,real,a,"]
    (tmp_path / "masks.csv").write_text("\n".join(["filepath,label,source,mask", *rows]))
    return tmp_path / "masks.csv"


def left(value: float, rest: float) -> np.ndarray:
    return np.where(np.arange(32) < 16, value, rest) * np.ones((24, 1))


@pytest.mark.parametrize(
    ("heatmap", "auroc", "f1", "best"),
    [
        (left(0.9, 0.0), 1.0, 1.0, 1.0),
        (left(0.0, 0.9), 0.0, 0.0, 2 / 3),  # turned round: marking everything is the best that a cut can do
        (left(0.1, 0.05), 1.0, 0.0, 1.0),  # right, but below the detector's own cut
        (np.full((24, 32), 0.5), 0.5, 2 / 3, 2 / 3),
        (left(np.nan, 0.9), 0.0, 0.0, 2 / 3),  # where it did not look it found nothing
    ],
)
def test_heatmaps_are_measured_against_masks(
    masks: Path, monkeypatch: pytest.MonkeyPatch, heatmap: np.ndarray, auroc: float, f1: float, best: float
) -> None:
    ensemble = Ensemble([Map(heatmap)], [], {"ghostnet_score": "no weights yet"})
    monkeypatch.setattr(localisation, "build_ensemble", lambda settings: ensemble)
    settings = load_settings()
    found = localisation.locate(masks, settings.models, settings.decode)
    drawn = [each.heatmap for each in found.located]
    assert (drawn, found.images, found.without_region) == (["edit_map", "mantranet"] * 2, 3, 1)
    row = localisation.summarise(found.located)["mantranet"]
    assert row["images"] == [2]
    assert row["pixel_auroc"][0] == pytest.approx(auroc, abs=0.01)
    assert row["pixel_f1"][0] == pytest.approx(f1, abs=0.05)
    assert row["best_f1"][0] == pytest.approx(best, abs=0.05)
    text = localisation.markdown(found)
    assert "No `ghostnet` heatmap: no weights yet." in text
    assert "| mantranet, a | 1 | 1 |" in text


def test_the_mean_over_images_has_an_interval_over_sources() -> None:
    values, sources = np.array([0.0, 0.0, 0.0, 1.0]), np.array(["a", "a", "a", "b"])
    mean = localisation.mean_over_images(values, sources)
    assert (mean.value, mean.low, mean.high) == (0.25, 0.0, 1.0)
    assert localisation.mean_over_images(values[:3], sources[:3]).high == 0


def test_localisation_is_part_of_the_page_and_says_what_is_not_installed(
    features: Path, manifest: Path, masks: Path
) -> None:
    out = manifest.parent / "report"
    assert main(["--table", str(features), "--masks", str(masks), "--out", str(out)]) == 0
    text = (out / "evaluation.md").read_text()
    assert "## Localisation" in text
    assert "3 manipulated images with masks, as they are; 1 left out" in text
    numbers = json.loads((out / "metrics.json").read_text())
    for name, feature in localisation.FEATURES.items():
        assert (name in numbers["Localisation"]) != (f"No `{name}` heatmap" in text), feature


def test_a_manifest_without_masks_is_refused(
    features: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--table", str(features), "--masks", str(manifest), "--out", str(manifest.parent)]) == Exit.FAILED
    assert "no row of label manipulated" in capsys.readouterr().err


def test_a_table_that_lacks_an_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["filepath,label,source,split,effnet_prob", "a,real,a,val,0.1", "b,ai,b,val,0.9"]
    (tmp_path / "f.csv").write_text("\n".join(lines))
    assert main(["--table", str(tmp_path / "f.csv"), "--out", str(tmp_path)]) == Exit.FAILED
    assert "has no column" in capsys.readouterr().err


def test_a_split_that_is_not_there_is_refused(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--table", str(features), "--out", str(tmp_path / "r"), "--split", "train"]) == Exit.FAILED
    assert "no rows of split train" in capsys.readouterr().err

from __future__ import annotations

import builtins
import json
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from fusion import train_fusion
from fusion.calibration import Isotonic, Platt
from fusion.meta_model import FusionModel
from fusion.train_fusion import assign_folds, main
from tests.fusion.synthetic import INPUTS, KINDS, write_table
from training.extraction import Task
from training.feature_table import Table, family, parts, read_table, source_weights
from training.meta_models import drop_families, fit_calibration, fit_isotonic, without
from training.metrics import expected_calibration_error
from utils.exits import Exit


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_writes_an_artifact_of_each_kind(folders: dict[str, Path], kind: str) -> None:
    stored = json.loads((folders[kind] / "model.json").read_text())
    assert (stored["kind"], stored["name"], stored["profile"]) == (kind, f"{kind}-test", "embedded")
    assert set(stored["metrics"]["comparison"]) == set(KINDS)
    assert set(stored["metrics"]["validation"]) == {"clean", "hard", "all"}
    assert set(stored["metrics"]["without"]) == {family(name) for name in INPUTS}
    assert stored["metrics"]["validation"]["all"]["auroc"][0] > 0.9
    called_real = [stored["metrics"]["out_of_fold"][delivery]["real_called_real"][0] for delivery in ("clean", "hard")]
    assert min(called_real) > 0.9
    readme = (folders[kind] / "README.md").read_text()
    for expected in ("| train | real | 180 | 9 |", "ECE", "inconclusive", "bootstrap"):
        assert expected in readme
    assert str(folders[kind].parent) not in readme


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_table_and_seed_give_the_same_bytes(
    folders: dict[str, Path], table_path: Path, tmp_path: Path, kind: str
) -> None:
    again = tmp_path / f"{kind}-test"
    assert main(["--table", str(table_path), "--out", str(again), "--model", kind]) == 0
    for file in sorted(folders[kind].iterdir()):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_best_is_the_kind_with_the_lowest_log_loss_and_draws_its_plot(table_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen"
    arguments = ["--table", str(table_path), "--out", str(out), "--report", str(tmp_path / "report"), "--seed", "3"]
    assert main(arguments) == 0
    model = FusionModel.load(out)
    brier = {kind: metrics["brier"][0] for kind, metrics in model.metrics["comparison"].items()}
    assert brier[model.estimator.kind] <= min(brier.values()) + 0.01
    assert (tmp_path / "report" / "chosen.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments[:4], "--inputs", "noise.*"]) == 0  # replaces the old artifact
    assert FusionModel.load(out).inputs == ("noise.level", "noise.spread")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chosen", "report"]


def test_without_xgboost_the_other_kinds_are_compared(
    table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("meta_models", "fusion_card"):
        monkeypatch.setattr(f"training.{module}.find_spec", lambda name: None)
    assert main(["--table", str(table_path), "--out", str(tmp_path / "chosen")]) == 0
    assert set(FusionModel.load(tmp_path / "chosen").metrics["comparison"]) == set(KINDS) - {"xgboost"}
    assert "XGBoost" not in (tmp_path / "chosen" / "README.md").read_text()
    assert "xgboost is not tried: pip install xgboost" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--table", str(table_path), "--out", str(tmp_path / "other"), "--model", "xgboost"])
    assert stop.value.code == Exit.SETUP


def test_without_matplotlib_only_the_plot_is_missing(
    table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name="matplotlib")
        return real_import(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    arguments = ["--inputs", "dino_prob", "--out", str(tmp_path / "a"), "--report", str(tmp_path / "report")]
    assert main(["--table", str(table_path), *arguments]) == 0
    assert "pip install matplotlib" in capsys.readouterr().err
    FusionModel.load(tmp_path / "a")


def test_without_validation_rows_the_report_is_out_of_fold(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv")
    path.write_text(path.read_text().replace(",val,", ",train,"))
    assert main(["--table", str(path), "--out", str(tmp_path / "a"), "--exclude", "jpeg.*", "exif_score"]) == 0
    model = FusionModel.load(tmp_path / "a")
    assert model.metrics["tiers_measured_on"] == "training"
    assert model.metrics["validation"] == {}
    assert model.inputs == ("dino_prob", "noise.level", "noise.spread", "spectrum.slope")


def test_columns_without_information_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = write_table(tmp_path / "t.csv").read_text().splitlines()
    path = tmp_path / "wide.csv"
    path.write_text("\n".join([lines[0] + ",clip.a,clip.b", *(line + ",,7" for line in lines[1:])]))
    assert main(["--table", str(path), "--out", str(tmp_path / "a"), "--inputs", "dino_prob", "clip.*"]) == 0
    assert "clip.a, clip.b" in capsys.readouterr().err
    assert FusionModel.load(tmp_path / "a").inputs == ("dino_prob",)


def test_what_a_file_says_of_its_origin_is_no_input(tmp_path: Path) -> None:
    """It tells the labels apart perfectly, as in a data set that was labelled by it."""
    lines = write_table(tmp_path / "t.csv").read_text().splitlines()
    marked = [line + (",1,1" if ",ai," in line else ",0,0") for line in lines[1:]]
    path = tmp_path / "marked.csv"
    path.write_text("\n".join([lines[0] + ",provenance.generator,watermark.known", *marked]))
    assert main(["--table", str(path), "--out", str(tmp_path / "a"), "--inputs", "dino_prob", "prov*", "water*"]) == 0
    assert FusionModel.load(tmp_path / "a").inputs == ("dino_prob",)


def test_inputs_without_signal_train_and_stay_near_the_prior(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", signal=0.0)
    assert main(["--table", str(path), "--out", str(tmp_path / "a"), "--inputs", "noise.spread", "exif_score"]) == 0
    model = FusionModel.load(tmp_path / "a")
    assert 0.2 < model.probability({"noise.spread": 1.0, "exif_score": 1.0}) < 0.8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",source,", ",origin,", "no column source"),
        (",train,", ",test,", "splits other than"),
        (",ai,", ",fake,", "both labels"),
        ("spectrum.slope", "noise.level", "twice"),
        ("s0,train,clean,", "s0,train,clean,high", "'dino_prob' is not a feature"),
        ("0/0.png,", "0/0.png,,", "line 2 has another number of cells"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    path = write_table(tmp_path / "t.csv", images=2)
    path.write_text(path.read_text().replace(old, new))
    assert main(["--table", str(path), "--out", str(tmp_path / "a")]) == Exit.FAILED
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_too_few_sources_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_table(tmp_path / "t.csv", sources=3)
    assert main(["--table", str(path), "--out", str(tmp_path / "a")]) == Exit.FAILED
    assert "val split holds one label only" in capsys.readouterr().err
    path.write_text(path.read_text().replace(",val,", ",train,"))
    assert main(["--table", str(path), "--out", str(tmp_path / "a")]) == Exit.FAILED
    assert "at least two training sources" in capsys.readouterr().err


def test_a_missing_table_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table", str(tmp_path / "none.csv"), "--out", str(tmp_path / "a")]) == Exit.FAILED
    assert "python -m scripts.extract_features" in capsys.readouterr().err


def test_a_folder_with_other_files_is_never_replaced(table_path: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["--table", str(table_path), "--out", str(tmp_path)]) == Exit.FAILED
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_no_source_is_on_both_sides_of_a_fold(table_path: Path) -> None:
    table = read_table(table_path)
    folds = assign_folds(table, seed=0)
    assert all(len(np.unique(folds[table.sources == source])) == 1 for source in np.unique(table.sources))
    assert len(np.unique(folds)) == 5


def test_families_go_missing_together() -> None:
    matrix = np.ones((4000, len(INPUTS)))
    lost = np.isnan(drop_families(INPUTS, matrix, 0.3, np.random.default_rng(0)))
    assert (lost[:, INPUTS.index("noise.level")] == lost[:, INPUTS.index("noise.spread")]).all()
    assert lost[:, 0].mean() == pytest.approx(0.335, abs=0.03)  # 0.3, and 0.05 of the rest lose everything
    assert 0.03 < lost.all(axis=1).mean() < 0.08
    assert not np.isnan(matrix).any()
    assert not np.isnan(drop_families(INPUTS, matrix, 0.0, np.random.default_rng(0))).any()


def test_public_and_dotted_names_share_their_detectors_family() -> None:
    assert family("mantra_anomaly") == family("mantra.spread") == "mantra"
    assert family("clip_h14_prob") != family("clip_bigg_prob")


def miscalibrated(bend: bool, rows: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    truth = random.normal(0, 2, rows)
    labels = (random.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.int64)
    return (np.where(truth > 0, truth**3, truth / 3) if bend else 3 * truth + 1), labels, truth


@pytest.mark.parametrize(("bend", "kind"), [(False, Platt), (True, Isotonic)])
def test_the_calibration_that_fits_held_out_sources_is_chosen(bend: bool, kind: type[Platt] | type[Isotonic]) -> None:
    log_odds, labels, truth = miscalibrated(bend)
    weights = source_weights(labels, np.arange(len(labels)).astype(str))
    calibration, held_out = fit_calibration(log_odds, labels, weights, len(labels), np.arange(len(labels)) % 5)
    assert isinstance(calibration, kind)
    assert np.abs(calibration(log_odds) - 1 / (1 + np.exp(-truth))).mean() < 0.03
    assert not np.array_equal(held_out, calibration(log_odds))


def test_isotonic_claims_no_more_than_its_sources_support() -> None:
    log_odds = np.linspace(-3, 3, 50)
    labels = (log_odds > 0).astype(np.int64)
    calibration = fit_isotonic(log_odds, labels, np.full(50, 0.02), sources=8)
    probabilities = calibration(log_odds)
    assert probabilities[0] == pytest.approx(0.1)
    assert probabilities[-1] == pytest.approx(0.9)


def strong_and_weak(sources: int, seed: int = 3, images: int = 5) -> Table:
    """Two detectors, one much better than the other, and forensics that hardly know anything."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(sources) % 2, images)
    side = 2.0 * labels - 1
    strong, weak = (1 / (1 + np.exp(-side * reach - random.normal(0, 1, len(side)))) for reach in (1.6, 0.5))
    inputs = ("clip_b16_prob", "effnet_prob", "noise.level", "noise.cfa")
    noise = random.normal(side[:, None] * (0.1, 0.0), 1)
    names = np.repeat(np.arange(sources), images)
    matrix = np.column_stack([strong, weak, noise])
    of_all = (np.full(len(labels), each) for each in ("train", "web"))
    return Table(inputs, matrix, labels, names.astype(str), *of_all)


@pytest.mark.parametrize("kind", KINDS)
def test_every_subset_of_detectors_is_calibrated_where_that_is_asked_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_fusion, "trainable", lambda: [kind])
    table, found = strong_and_weak(400), strong_and_weak(4000, seed=4)  # of few rows even the truth has an error of .03
    columns = parts(table.inputs)
    assert list(columns) == ["clip_b16", "effnet", "forensics"]
    weights = source_weights(found.labels, found.sources)[None]

    def errors(model: FusionModel) -> dict[str, float]:
        """By the parts that are left."""
        measured = {}
        for size in (3, 2, 1):
            for kept in combinations(columns, size):
                probabilities = model.probabilities(without(found.matrix, columns, kept))
                measured[" ".join(kept)] = expected_calibration_error(found.labels, probabilities, weights)[0]
        return measured

    shared, _, _ = train_fusion.train(table, "shared")
    apart, _, _ = train_fusion.train(table, "apart", subsets=True)
    apart.save(tmp_path, "")
    loaded = FusionModel.load(tmp_path)
    assert apart.subsets is not None
    assert len(apart.subsets.maps) == 6, "all but the full one"
    before, after = errors(shared), errors(loaded)
    assert after["clip_b16 effnet forensics"] == before["clip_b16 effnet forensics"], "with all parts nothing changes"
    assert all(after[kept] < before[kept] + 0.006 for kept in before)
    assert max(after.values()) < 0.05
    if kind == "logistic":  # its weights stay as they are when the part that they were beside is missing
        assert before["effnet"] > 2 * after["effnet"]
    matrix = without(found.matrix, columns, ["effnet"])
    np.testing.assert_array_equal(apart.probabilities(matrix), loaded.probabilities(matrix))


def test_a_subset_that_the_table_cannot_show_is_answered_by_the_calibration_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_fusion, "trainable", lambda: ["logistic"])
    table = strong_and_weak(20)
    table.matrix[table.labels == 1, 1] = np.nan  # no AI image was ever seen by it
    model, _, _ = train_fusion.train(table, "few", subsets=True)
    assert model.subsets is not None
    assert {frozenset(["effnet"]), frozenset(["effnet", "forensics"])}.isdisjoint(model.subsets.maps)
    row = np.array([[np.nan, 0.9, np.nan, np.nan]])
    np.testing.assert_array_equal(model.probabilities(row), model.calibration(model.log_odds(row)))
    nothing = np.full((1, 4), np.nan)
    np.testing.assert_array_equal(model.probabilities(nothing), model.calibration(model.log_odds(nothing)))


class PlantedMeasurer:
    """Stands for every detector: two numbers that know the label, since it stands in the file's name."""

    versions = "planted@1"
    measured: ClassVar[list[str]] = []

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, task: Task, _: bytes | None = None) -> str:
        self.measured.append(task.filepath)
        random = np.random.default_rng(len(self.measured))
        side = 1 if task.filepath.startswith("ai") else -1
        found = {"effnet_prob": 1 / (1 + np.exp(-2 * side - random.normal())), "noise.level": random.normal()}
        return json.dumps(
            {"filepath": task.filepath, "delivery": task.delivery, "models": self.versions, "features": found}
        )


def write_dataset(folder: Path, images: int, source: str) -> None:
    lines = ["filepath,label,source,split"]
    for label in ("real", "ai"):
        for number in range(images):
            name = f"{label}/{number}.png"
            lines.append(f"{name},{label},{source.format(name)},{'val' if number % 5 == 0 else 'train'}")
    (folder / "dataset.csv").write_text("\n".join(lines))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where models are saved too, and no image is really measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_fusion, "SAVED_MODELS", tmp_path / "models")
    monkeypatch.setattr(train_fusion, "trainable", lambda: ["logistic"])  # the quickest
    monkeypatch.setattr("training.extraction.Measurer", PlantedMeasurer)
    monkeypatch.setattr(PlantedMeasurer, "measured", [])
    return tmp_path


def test_without_arguments_images_are_measured_and_the_model_gets_a_new_name(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(checkout, 40, "image:{}")
    assert main(["--jobs", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    name = f"own-{date.today()}"
    assert last.startswith("read dataset.csv (80 images, measured as 240 rows of dataset.features.csv); wrote models/")
    assert last.endswith(f"; next: IMGV_FUSION={name} python img_ml_verify.py photo.jpg")
    assert "by image flatter" in last
    assert (
        "192 rows" not in last
        and "240 rows are of images without a source" in (checkout / "models" / name / "README.md").read_text()
    )
    model = FusionModel.load(checkout / "models" / name)
    assert model.name == name
    assert set(model.metrics["out_of_fold"]) == {
        "web",
        "hard",
        "random1",
        "all",
    }  # as published, files teach containers
    assert set(model.metrics["validation"]) == {"clean", "web", "hard", "all"}
    write_dataset(checkout, 30, "image:{}")  # others are gone, and nothing is measured again
    before = (checkout / "models" / name / "model.json").read_bytes()
    assert main(["--jobs", "1"]) == 0
    assert len(PlantedMeasurer.measured) == 240
    assert FusionModel.load(checkout / "models" / f"{name}-2").metrics["data"]["by_image"] == 180
    assert (checkout / "models" / name / "model.json").read_bytes() == before


def test_named_sources_are_not_called_flattering(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(checkout, 40, "{}")
    assert main(["--jobs", "1"]) == 0
    assert "flatter" not in capsys.readouterr().out


def test_where_a_split_trains_the_fusion_what_trained_the_networks_is_not_measured(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(checkout, 80, "{}")
    path = checkout / "dataset.csv"
    rows = [row.split(",") for row in path.read_text().splitlines()]
    place = rows[0].index("split")
    trains = [row for row in rows[1:] if row[place] == "train"]
    for row in trains[::2]:
        row[place] = "fusion"
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    assert main(["--jobs", "1"]) == 0
    assert len(PlantedMeasurer.measured) == 3 * (len(trains[::2]) + len(rows) - 1 - len(trains))


def test_a_table_that_is_there_is_taken_before_the_images(
    checkout: Path, table_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(checkout, 40, "{}")
    (checkout / "features.csv").write_bytes(table_path.read_bytes())
    assert main([]) == 0
    assert "read features.csv; wrote " in capsys.readouterr().out
    assert PlantedMeasurer.measured == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (0, "dataset_missing: no table features.csv and no dataset.csv: put images into data/real"),
        (24, "too_few_images: 19 images of 19 sources are labelled real in train, and it takes 20 of 2: add images"),
    ],
)
def test_too_little_to_train_from_is_told_before_anything_is_measured(
    checkout: Path, capsys: pytest.CaptureFixture[str], images: int, message: str
) -> None:
    if images:
        write_dataset(checkout, images, "{}")
    assert main([]) == Exit.FAILED
    assert message in capsys.readouterr().err
    assert PlantedMeasurer.measured == []
    assert not (checkout / "models").exists()

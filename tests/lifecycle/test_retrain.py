"""Retraining: refused data, a killed run that goes on, one version, the registry. No image is measured."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lifecycle import golden, registry, retrain
from lifecycle.golden import Facts
from lifecycle.golden import Judged as Shown
from lifecycle.reference import Reference
from lifecycle.registry import Registry
from lifecycle.retrain import STEPS, Params, open_run, run_steps
from lifecycle.validate import validate
from models.loaders import Weights
from tests.fusion.synthetic import INPUTS
from utils.errors import DataRefused, ReleaseUnusable, TableError
from utils.persistence import sha256_file
from utils.releases import REFERENCE, Store
from utils.settings import Settings

SOURCES, IMAGES = 12, 6
FACTS = Facts({"china": Shown("real", ("real",), 0.1)}, 0.5, 0.0, 1.0, 300.0)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Pictures unlike each other, of sources that alternate between real and AI."""
    folder = tmp_path / "data"
    with_columns = ("filepath", "label", "split", "source", "kind", "licence")
    folder.mkdir()
    with (folder / "dataset.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(with_columns)
        for source in range(SOURCES):
            for image in range(IMAGES):
                pixels = np.random.default_rng([source, image]).integers(0, 256, (8, 8, 3), np.uint8)
                name = f"{source}-{image}.{'png' if image % 2 else 'jpg'}"
                Image.fromarray(pixels).resize((160, 144), Image.Resampling.BICUBIC).save(folder / name)
                label = "ai" if source % 2 else "real"
                split = "val" if source >= SOURCES * 2 // 3 else "train"
                table.writerow([name, label, split, f"s{source}", "photo", "CC0"])
    return folder / "dataset.csv"


@pytest.fixture
def settings(lifecycle_dir: Path, tmp_path: Path) -> Settings:
    return Settings.of(
        lifecycle_dir=lifecycle_dir, profile="light", min_images_per_class=20, release=str(tmp_path / "published")
    )


@pytest.fixture
def quick(monkeypatch) -> None:
    """Features are drawn, not measured; models are not copied; the golden set was judged before."""

    def extract(
        dataset: Path, out: Path, models: object, decode: object, **given: object
    ) -> tuple[list[object], list[str]]:
        rng = np.random.default_rng(0)
        with dataset.open(newline="") as file, out.with_suffix(".csv").open("w", newline="") as written:
            table = csv.writer(written)
            table.writerow(["filepath", "label", "source", "split", "delivery", *INPUTS])
            for row in csv.DictReader(file):
                side = 1 if row["label"] == "ai" else -1
                for delivery in ("clean", "web"):
                    dino, level, slope = side * np.array([1.2, 0.8, -0.8]) + rng.normal(0, 1, 3)
                    numbers = (1 / (1 + np.exp(-2 * dino)), rng.random(), np.exp(level), rng.normal(), slope, 80.0)
                    known = [row["filepath"], row["label"], row["source"], row["split"], delivery]
                    table.writerow([*known, *map(float, numbers)])
        from pyarrow import csv as reader
        from pyarrow import parquet

        parquet.write_table(reader.read_csv(out.with_suffix(".csv")), out)
        return [], []

    monkeypatch.setattr(retrain, "extract", extract)
    monkeypatch.setattr(retrain, "plot", lambda judged, path: path.write_bytes(b"png"))
    monkeypatch.setattr(golden, "measure", lambda folder, settings, rounds: FACTS)
    monkeypatch.setattr("lifecycle.release.copy_models", lambda folder, weights, settings: {})
    monkeypatch.setattr(retrain, "copy_models", lambda folder, weights, settings: {})
    monkeypatch.setattr("training.train_clip_b16.main", lambda argv: 0)
    monkeypatch.setattr("fusion.train_fusion.KINDS", {"logistic": None})


PARAMS = {
    "profile": "light",
    "model": "logistic",
    "inputs": ["*"],
    "jobs": 1,
    "gate": {"real": 0.5, "real_kind": 0.5, "calibration": 0.5},
}


def params_file(dataset: Path) -> Path:
    path = dataset.with_name("params.yaml")
    path.write_text(json.dumps({**PARAMS, "dataset": str(dataset)}))
    return path


def params_of(dataset: Path, **changed: object) -> Params:
    return Params(**{**PARAMS, "dataset": str(dataset), **changed})


@pytest.fixture
def shipped(monkeypatch, settings: Settings, dataset: Path, quick: None, tmp_path: Path) -> None:
    """The artifact that the code ships reads other inputs than these; one that was trained on them stands in for it."""
    run = open_run(settings, params_of(dataset, seed=5), tmp_path / "first")
    run_steps(run, ("validate", "models", "extract", "fusion"))
    monkeypatch.setattr(retrain, "fusion_folder", lambda models: run.artifact)


def test_a_run_trains_registers_compares_and_promotes(settings, dataset, shipped, tmp_path, monkeypatch) -> None:
    run = open_run(settings, params_of(dataset))
    run_steps(run)
    decision = json.loads(run.path("decision.json").read_text())
    assert decision["promote"], decision["reasons"]
    store = Store(tmp_path / "published")
    assert store.pointer().release == run.release.name
    assert store.pointer().previous == (decision["champion"],)
    reference = Reference.load(store.current().folder / REFERENCE)
    assert set(reference.deliveries) == {"clean", "web"}
    assert len(reference.values) == SOURCES // 3 * IMAGES  # each once
    assert set(reference.signals) == set(INPUTS)

    entries = run.registry.entries()
    assert [each.aliases for each in entries] == [(), ("champion",)]
    known = run.registry.known(run.release.name)
    assert known["parameters"]["seed"] == "0"
    assert {"By delivery.web.real_called_real", "By delivery.web.real_called_real.low"} <= known["metrics"].keys()
    lines = [json.loads(line) for line in run.path("log.jsonl").read_text().splitlines()]
    assert {each["run"] for each in lines} == {run.name}
    assert [each["step"] for each in lines if each["event"] == "done"] == list(STEPS)
    monkeypatch.setattr(retrain, "load_settings", lambda: settings)
    assert retrain.main(["--params", str(params_file(dataset)), "--run", str(run.folder)]) == 0  # all was done before
    assert "imgv_retrain_failed 0.0" in (settings.lifecycle.folder / "lifecycle.prom").read_text()

    fresh = Registry(settings)
    assert fresh.rollback().release == decision["champion"]
    assert fresh.entries()[0].aliases == ("champion",)
    assert fresh.promote(run.release.name).release == run.release.name
    with pytest.raises(ReleaseUnusable, match="no release 'other'"):
        fresh.promote("other")


def test_the_registrys_commands_show_and_move_what_judges(monkeypatch, settings, dataset, shipped, capsys) -> None:
    monkeypatch.setattr(registry, "load_settings", lambda: settings)
    run = open_run(settings, params_of(dataset))
    run_steps(run)
    capsys.readouterr()
    assert registry.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert f"{run.release.name}  passed the gate  [champion]" in shown
    assert registry.main(["rollback"]) == 0
    assert registry.main(["promote", run.release.name]) == 0
    assert registry.main(["show", run.release.name]) == 0
    assert registry.main(["promote", "../x"]) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of this process; needs a POSIX system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_any_step_the_run_goes_on_and_registers_one_version(settings, dataset, shipped) -> None:
    params, folder = params_of(dataset), settings.lifecycle.folder / "runs" / "2026-12-01-000000"
    for name in STEPS:
        child = os.fork()
        if child == 0:
            _be_killed_in(name, settings, params, folder)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    run = open_run(settings, params)
    assert run.folder == folder
    run_steps(run)
    assert len([each for each in run.registry.entries() if each.release == run.release.name]) == 1
    assert len(run.registry.entries()) == 2  # with what the code ships
    assert run.registry.champion().name == run.release.name


def _be_killed_in(step: str, settings: Settings, params: Params, folder: Path) -> Iterator[None]:
    """The step's work is done and what marks it as done is not, or has just been."""
    do = STEPS[step].do

    def killed(run: retrain.Run) -> None:
        write = retrain.Run.say
        retrain.Run.say = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        do(run)
        retrain.Run.say = write
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        STEPS[step] = replace(STEPS[step], do=killed)
        run_steps(open_run(settings, params, folder))
    finally:
        os._exit(9)


def test_a_run_goes_on_only_with_the_parameters_and_the_data_that_it_began_with(settings, dataset, quick) -> None:
    params = params_of(dataset)
    begun = open_run(settings, params, settings.lifecycle.folder / "runs" / "2026-12-01-000000")
    assert open_run(settings, params).folder == begun.folder
    assert open_run(settings, params_of(dataset, seed=1)).folder != begun.folder
    dataset.write_text(dataset.read_text().replace("s0", "s00"))
    assert open_run(settings, params).folder != begun.folder


def test_a_named_run_does_again_what_changed_inputs_reach_and_nothing_else(settings, dataset, shipped) -> None:
    folder = settings.lifecycle.folder / "runs" / "mine"

    def done(params: Params) -> list[str]:
        run = open_run(settings, params, folder)
        before = len(log.read_text().splitlines()) if (log := run.path("log.jsonl")).exists() else 0
        run_steps(run)
        lines = [json.loads(line) for line in log.read_text().splitlines()[before:]]
        return [each["step"] for each in lines if each["event"] == "done"]

    params = params_of(dataset)
    assert done(params) == list(STEPS)
    assert done(params) == []
    assert done(replace(params, gate={**params.gate, "real": 0.4})) == ["compare", "promote"]
    params = replace(params, drop=0.1)
    assert done(params) == ["fusion", "evaluate", "release", "compare", "promote"]
    os.utime(dataset.parent / "0-0.jpg", (0, 0))  # another file of the same size, as far as anybody can tell
    assert done(params) == list(STEPS)


def test_rows_of_an_image_that_was_replaced_are_measured_again(settings, dataset, quick) -> None:
    import pyarrow
    from pyarrow import parquet

    runs = settings.lifecycle.folder / "runs"
    (runs / "earlier").mkdir(parents=True)
    run = open_run(settings, params_of(dataset), runs / "now")
    table = pyarrow.table(
        {"filepath": ["a.jpg", "a.jpg", "b.jpg", "c.jpg"], "delivery": ["clean", "web", "web", "web"]}
    )
    parquet.write_table(table, runs / "earlier" / "features.parquet")
    (runs / "earlier" / "images.json").write_text(json.dumps({"a.jpg": "1", "b.jpg": "2", "c.jpg": "3"}))
    run.say("images.json", {"a.jpg": "1", "b.jpg": "other"})
    retrain._take_over(runs / "earlier" / "features.parquet", run)
    assert parquet.read_table(run.path("measuring-features.parquet"))["filepath"].to_pylist() == ["a.jpg", "a.jpg"]


def test_a_champion_that_came_after_the_comparison_is_compared_with(settings, dataset, shipped) -> None:
    run = open_run(settings, params_of(dataset))
    run_steps(run, list(STEPS)[:-1])
    other = open_run(settings, params_of(dataset, drop=0.1), run.folder.with_name("other"))
    run_steps(other)
    run_steps(run, ["promote"])
    assert json.loads(run.path("decision.json").read_text())["champion"] == other.release.name


def test_a_failure_before_the_first_step_is_told_too(monkeypatch, settings, dataset, tmp_path, capsys) -> None:
    told = []
    monkeypatch.setattr(retrain, "notify", lambda settings, event: told.append(event))
    monkeypatch.setattr(retrain, "load_settings", lambda: settings)
    path = tmp_path / "params.yaml"
    path.write_text("sped: 2\n")
    assert retrain.main(["--params", str(path)]) == 3
    assert told == [{"event": "retrain_failed", "run": "", "step": "", "error": told[0]["error"]}]
    assert "sped" in told[0]["error"]
    assert "imgv_retrain_failed 1.0" in (settings.lifecycle.folder / "lifecycle.prom").read_text()


def test_without_a_file_of_parameters_here_the_shipped_one_holds(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert retrain.default_params() == Path(retrain.__file__).parents[1] / "params.yaml"
    (tmp_path / "params.yaml").touch()
    assert retrain.default_params() == Path("params.yaml")


def test_a_releases_name_follows_every_file_in_it(settings, dataset, shipped, tmp_path) -> None:
    from lifecycle.release import make_release

    run = open_run(settings, params_of(dataset), tmp_path / "first")
    whole = Reference.of(retrain.FusionModel.load(run.artifact), retrain.read_table(run.path("features.parquet")))
    names = set()
    for number, values in enumerate((whole.values, whole.values + 1, whole.values)):
        folder = tmp_path / f"release{number}"
        folder.mkdir()
        reference = replace(whole, values=values)
        names.add(make_release(folder, "2026-12-01", run.artifact, settings.models, reference=reference).name)
    assert len(names) == 2


def test_data_that_fails_is_refused_with_its_lines_and_told(monkeypatch, settings, dataset, quick) -> None:
    told = []
    monkeypatch.setattr(retrain, "notify", lambda settings, event: told.append(event))
    monkeypatch.setattr(retrain, "load_settings", lambda: settings)
    rows = dataset.read_text().splitlines()
    rows[3] = rows[3].replace("real", "unreal")
    dataset.write_text("\n".join(rows))
    run = open_run(settings, params_of(dataset))
    with pytest.raises(DataRefused, match=r"label .*unreal.*\(line 4\)"):
        run_steps(run)
    assert retrain.main(["--params", str(params_file(dataset))]) == 3
    assert told[0]["event"] == "retrain_failed"
    assert told[0]["step"] == "validate"
    assert "imgv_retrain_failed 1.0" in (settings.lifecycle.folder / "lifecycle.prom").read_text()
    assert "must not be trained on" in run.path("refused.md").read_text()


def test_validation_finds_what_is_wrong_and_names_the_lines(settings, dataset) -> None:
    folder = dataset.parent
    findings, _, images = validate(dataset, settings.lifecycle, jobs=1)
    assert images["0-0.jpg"] == sha256_file(folder / "0-0.jpg")
    assert not [each for each in findings if each.level == "error"]
    (folder / "0-0.jpg").write_bytes(b"text")
    (folder / "9-0.jpg").write_bytes((folder / "1-0.jpg").read_bytes())  # train and val
    (folder / "2-0.jpg").write_bytes((folder / "3-0.jpg").read_bytes())  # real and AI
    found = {each.check: each for each in validate(dataset, settings.lifecycle, jobs=1)[0] if each.level == "error"}
    assert found["files"].lines == (2,)
    assert set(found["copies"].lines) == {2 + 3 * IMAGES, 2 + 9 * IMAGES}
    few = Settings.of(min_images_per_class=1000, min_sources_per_class=7).lifecycle
    texts = [each.text for each in validate(dataset, few, jobs=1)[0] if each.check == "amounts"]
    assert len(texts) == 4
    assert "IMGV_MIN_IMAGES_PER_CLASS asks 1000" in texts[0]


def test_a_data_set_whose_files_give_the_label_away_is_refused(settings, dataset) -> None:
    folder = dataset.parent
    text = dataset.read_text()
    for path in sorted(folder.glob("*-*.*")):
        wanted = ".png" if int(path.stem.partition("-")[0]) % 2 else ".jpg"
        if path.suffix != wanted:
            with Image.open(path) as image:
                image.save(path.with_name(f"{path.stem}{wanted}"))
            path.unlink()
            text = text.replace(f"{path.name},", f"{path.stem}{wanted},")
    dataset.write_text(text)
    findings, _, _ = validate(dataset, settings.lifecycle, jobs=1)
    assert any(each.check == "container" and each.level == "error" for each in findings)


def test_labels_that_scores_contradict_are_named(settings, dataset, quick, tmp_path) -> None:
    from lifecycle.validate import doubtful

    def table(flipped: int) -> Path:
        rows = dataset.read_text().splitlines()
        for line in range(1, 1 + flipped):
            rows[line * 2] = rows[line * 2].replace(",real,", ",x,").replace(",ai,", ",real,").replace(",x,", ",ai,")
        changed = tmp_path / f"{flipped}.csv"
        changed.write_text("\n".join(rows))
        out = tmp_path / f"{flipped}.parquet"
        retrain.extract(dataset, out, None, None)
        from pyarrow import parquet

        read = parquet.read_table(out).to_pandas()
        labels = {row.split(",")[0]: row.split(",")[1] for row in rows[1:]}
        read["label"] = read["filepath"].map(labels)
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pandas(read), out)
        return out

    few = list(doubtful(table(2)))
    assert [each.level for each in few] in ([], ["warning"])
    many = list(doubtful(table(24)))
    assert [each.level for each in many] == ["error"]
    assert "beyond noise" in many[0].text and "AUROC" in many[0].text


def test_labels_are_refused_beyond_noise_over_sources_only() -> None:
    from lifecycle.validate import DOUBTED, _lower_end

    sources = np.repeat([f"s{number}" for number in range(24)], 4)
    in_few = np.isin(sources, ["s0", "s5", "s9", "s13"]).astype(float)  # a network that errs does so by source
    everywhere = (np.arange(96) % 4 == 0).astype(float)
    assert in_few.mean() > DOUBTED > _lower_end(in_few, sources)
    assert _lower_end(everywhere, sources) == everywhere.mean() > DOUBTED


def test_parameters_are_checked(tmp_path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("profile: light\nsped: 2\n")
    with pytest.raises(TableError, match="sped"):
        Params.read(path)
    path.write_text("profile: huge\n")
    with pytest.raises(TableError, match="light"):
        Params.read(path)
    shipped = Params.read(Path(__file__).parents[2] / "params.yaml")
    assert shipped == Params(gate=shipped.gate, deliveries=shipped.deliveries)
    assert shipped.deliveries == {key: list(value) for key, value in Params().deliveries.items()}


def test_models_of_a_release_are_found_before_the_installed_ones(tmp_path) -> None:
    from lifecycle.release import copy_models

    installed = Weights.at(tmp_path / "none")
    hashes = copy_models(tmp_path / "models", installed, Settings.of(profile="light").models)
    assert {"clip_b16", "clip_b16_graph", "clip_b16_head"} <= hashes.keys()
    found = Weights.at(tmp_path / "none", tmp_path / "models")
    assert found.path("clip_b16") == tmp_path / "models" / "clip_b16" / "weights.safetensors"
    assert found.card("clip_b16").licence == installed.card("clip_b16").licence

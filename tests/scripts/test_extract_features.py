"""The feature table: the same bytes however it was made, and nothing measured twice."""

from __future__ import annotations

import csv
import json
import os
import secrets
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from inference.ensemble import build_ensemble
from ingress.sources import Ingress
from scripts.extract_features import main
from training.extraction import KEYS, Measurer, Task
from training.feature_table import read_table
from utils.exits import Exit
from utils.settings import load_settings

DELIVERIES = "clean,random1"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four crops of a photograph under invented labels, a file that is no image, and a label that is not asked for."""
    folder = tmp_path_factory.mktemp("images")
    lines = ["filepath,label,source,split,generator_or_camera"]
    pixels = np.asarray(load_sample_image("china.jpg"))
    for index in range(4):
        name = f"{index}.{'jpg' if index == 3 else 'png'}"
        Image.fromarray(pixels[40 * index : 40 * index + 160, :192]).save(folder / name)
        lines.append(f"{name},{'ai' if index % 2 else 'real'},source{index},{'val' if index > 1 else 'train'},gen")
    (folder / "broken.png").write_bytes(b"no image")
    lines += ["broken.png,real,source0,train,", "0.png,manipulated,source0,train,"]
    (folder / "dataset.csv").write_text("\n".join(lines))
    return folder / "dataset.csv"


def extract(manifest: Path, out: Path, *more: str) -> Path:
    command = ["--manifest", str(manifest), "--out", str(out), "--deliveries", DELIVERIES, "--jobs", "1"]
    assert main([*command, *more]) == 0
    assert not out.with_name(f"{out.name}.journal").exists()
    return out


@pytest.fixture(scope="module")
def table(manifest: Path) -> Path:
    return extract(manifest, manifest.parent / "scratch.csv")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What gets measured in this process from here on."""
    seen: list[tuple[str, str]] = []
    measure = Measurer.__call__

    def spy(self: Measurer, task: Task, raw: bytes | None = None) -> str:
        seen.append((task.filepath, task.delivery))
        return measure(self, task, raw)

    monkeypatch.setattr(Measurer, "__call__", spy)
    return seen


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_holds_what_the_conductor_measures_in_the_manifests_order(manifest: Path, table: Path) -> None:
    found = rows(table)
    images = [name for name in ("0.png", "1.png", "2.png", "3.jpg") for _ in range(2)]
    assert [(row["filepath"], row["delivery"]) for row in found] == list(
        zip(images, ["clean", "random1"] * 4, strict=True)
    )
    settings = load_settings()
    with Ingress(settings.decode) as ingress:
        sample = ingress.load(str(manifest.parent / "3.jpg"))
    (findings,) = build_ensemble(settings.models).measure([sample])
    last = found[6]
    assert (last["label"], last["source"], last["split"], last["generator"]) == ("ai", "source3", "val", "gen")
    assert "clip_b16_head@sha256:" in last["models"]
    for name in ("clip_b16_prob", "compression_level", "jpeg.quality", "noise.level"):
        assert float(last[name]) == pytest.approx(findings.features[name], rel=1e-5)
    assert found[0]["jpeg.quality"] == ""  # a PNG has none


def test_an_unreadable_image_is_reported_and_left_out(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset.csv").write_text("filepath,label,source\nbroken.png,real,a\n")
    (tmp_path / "broken.png").write_bytes(b"no image")
    out = extract(tmp_path / "dataset.csv", tmp_path / "t.csv", "--deliveries", "clean")
    shown = capsys.readouterr()
    assert rows(out) == []
    assert "0 rows" in shown.out
    assert "1 images could not be read" in shown.out
    assert "broken.png (clean): not_an_image" in shown.err


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(manifest: Path, table: Path, tmp_path: Path) -> None:
    assert extract(manifest, tmp_path / "t.csv", "--jobs", "2").read_bytes() == table.read_bytes()


def test_parquet_holds_the_same_table_and_is_extended_like_csv(
    manifest: Path, table: Path, tmp_path: Path, measured: list[tuple[str, str]]
) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pip install pyarrow")
    out = extract(manifest, tmp_path / "t.parquet")
    parquet, text = read_table(out), read_table(table)
    assert parquet.inputs == text.inputs
    np.testing.assert_array_equal(parquet.matrix, text.matrix)
    for column in ("labels", "sources", "splits", "deliveries"):
        np.testing.assert_array_equal(getattr(parquet, column), getattr(text, column))
    before = out.read_bytes()
    measured.clear()
    assert extract(manifest, out).read_bytes() == before
    assert measured == [("broken.png", "clean"), ("broken.png", "random1")]


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(
    manifest: Path,
    table: Path,
    tmp_path: Path,
    measured: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "t.csv"
    spied = Measurer.__call__

    def stop(self: Measurer, task: Task, raw: bytes | None = None) -> str:
        if len(measured) == 3:
            raise KeyboardInterrupt
        return spied(self, task, raw)

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="INTERRUPTED"):
        patch.setattr(Measurer, "__call__", stop)
        extract(manifest, out)
    assert not out.exists()
    journal = tmp_path / "t.csv.journal"
    journal.write_bytes(journal.read_bytes()[:-40])  # as a killed run may leave it
    measured.clear()
    assert extract(manifest, out).read_bytes() == table.read_bytes()
    assert measured[0] == ("1.png", "clean")  # the line that was cut
    assert len(measured) == 8 - 2 + 2  # and the unreadable file again


def test_an_earlier_table_is_extended_and_takes_the_manifests_word(
    manifest: Path, table: Path, tmp_path: Path, measured: list[tuple[str, str]]
) -> None:
    out = tmp_path / "t.csv"
    out.write_bytes(table.read_bytes())
    changed = manifest.with_name("changed.csv")
    changed.write_text("filepath,label,source,split\n2.png,ai,moved,train\n")
    extract(changed, out, "--deliveries", "clean,hard")
    assert measured == [("2.png", "hard")]
    found = rows(out)
    assert len(found) == 9
    assert [(row["label"], row["source"], row["delivery"]) for row in found[-2:]] == [
        ("ai", "moved", "clean"),
        ("ai", "moved", "hard"),
    ]


def test_one_split_can_be_measured_alone(manifest: Path, tmp_path: Path, measured: list[tuple[str, str]]) -> None:
    extract(manifest, tmp_path / "t.csv", "--split", "val", "--deliveries", "clean")
    assert measured == [("2.png", "clean"), ("3.jpg", "clean")]


def test_skipped_modules_leave_their_columns_empty(manifest: Path, table: Path, tmp_path: Path) -> None:
    found = rows(extract(manifest, tmp_path / "t.csv", "--deliveries", "clean", "--skip", "noise,ela"))[0]
    full = rows(table)[0]
    assert {name for name in full if full[name] != found[name]} == {
        name for name in full if name.startswith(("noise.", "ela.")) and full[name]
    }
    assert found["noise.level"] == ""


def test_rows_of_other_weights_are_measured_again(
    manifest: Path, table: Path, tmp_path: Path, measured: list[tuple[str, str]]
) -> None:
    out = tmp_path / "t.csv"
    out.write_text(table.read_text().replace("clip_b16_head@sha256:", "clip_b16_head@sha256:0"))
    extract(manifest, out, "--split", "val")
    assert {name for name, _ in measured} == {"2.png", "3.jpg"}
    assert extract(manifest, out).read_bytes() == table.read_bytes()


def test_rows_of_other_weights_that_were_not_asked_for_are_pointed_out(
    manifest: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.csv"
    out.write_text(table.read_text().replace("clip_b16_head@sha256:", "clip_b16_head@sha256:0"))
    extract(manifest, out, "--split", "val")
    assert "different weights" in capsys.readouterr().err


def test_a_manifest_without_split_is_for_training_and_one_without_a_label_is_refused(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split(",") for line in manifest.read_text().splitlines()]
    bare = manifest.with_name("bare.csv")
    bare.write_text("\n".join(",".join(row[:3]) for row in rows))
    assert set(read_table(extract(bare, tmp_path / "bare.csv")).splits) == {"train"}
    bare.write_text("\n".join(row[0] for row in rows))
    assert main(["--manifest", str(bare), "--out", str(tmp_path / "t.csv")]) == Exit.FAILED
    assert "no column label, source" in capsys.readouterr().err


def test_a_table_from_before_there_was_a_detector_keeps_its_rows(
    manifest: Path, table: Path, tmp_path: Path, measured: list[tuple[str, str]]
) -> None:
    earlier = rows(table)
    out = tmp_path / "t.csv"
    with out.open("w", newline="") as file:
        columns = [name for name in earlier[0] if name not in ("dinov3_prob", "clip_prob")]
        written = csv.DictWriter(file, columns, extrasaction="ignore")
        written.writeheader()
        written.writerows(earlier)
    assert rows(extract(manifest, out)) == earlier
    assert not [name for name, _ in measured if name != "broken.png"], "nothing is measured again"


def test_a_table_of_another_version_is_refused(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.csv"
    out.write_text("filepath,delivery,label,old.feature\n")
    assert main(["--manifest", str(manifest), "--out", str(out)]) == Exit.FAILED
    assert "other columns" in capsys.readouterr().err
    out.unlink()
    line = {"filepath": "a", "delivery": "clean", "models": "", "features": {"old.feature": 1.0}}
    out.with_name("t.csv.journal").write_text(json.dumps(line))
    assert main(["--manifest", str(manifest), "--out", str(out)]) == Exit.FAILED
    assert "delete it" in capsys.readouterr().err


def test_a_wrong_setting_is_told_in_one_line(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMGV_DETECTORS", "efnet")
    assert main(["--manifest", str(manifest), "--out", str(tmp_path / "t.csv")]) == Exit.SETUP
    assert "did you mean 'effnet'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "option", "command"),
    [("ray", "--engine=ray", "pip install 'ray[data]'"), ("pyarrow", "--out=t.parquet", "pip install pyarrow")],
)
def test_a_missing_package_is_named_before_anything_is_measured(
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    option: str,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["--manifest", str(manifest), "--out", "t.csv", option]) == Exit.SETUP
    assert command in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ray_gives_the_same_bytes_and_takes_up_a_stopped_run(manifest: Path, table: Path, tmp_path: Path) -> None:
    if find_spec("ray") is None:  # not imported here: Ray changes the log records of the whole process
        pytest.skip("needs pip install 'ray[data]'")
    out = tmp_path / "t.csv"
    first = rows(table)[0]
    features = {name: float(value) for name, value in first.items() if value and name not in KEYS}
    line = {key: first[key] for key in ("filepath", "delivery", "models")} | {"features": features}
    (tmp_path / "t.csv.journal").write_text(json.dumps(line))
    command = [sys.executable, "-m", "scripts.extract_features", "--engine", "ray", "--jobs", "2"]
    command += ["--manifest", str(manifest), "--out", str(out), "--deliveries", DELIVERIES]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }  # else Ray leaves one in the home folder
    # A process of its own: Ray changes the signal handlers and the environment of the one that it runs in.
    done = subprocess.run(
        command, env=inherited | token, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "8 rows" in done.stdout
    assert out.read_bytes() == table.read_bytes()

"""Copies, broken files and give-aways, on real photographs and what becomes of them."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from scripts.clean_dataset import main
from training.cleaning import Seen, clean, fingerprint, look_at
from training.confounds import confounds, held_out_accuracy
from utils.exits import Exit

CHINA = np.asarray(load_sample_image("china.jpg"))
FLOWER = np.asarray(load_sample_image("flower.jpg"))


def row(name: str, label: str = "real", split: str = "train", source: str = "") -> dict[str, str]:
    return {"filepath": name, "label": label, "split": split, "source": source or name}


def seen(name: str, bits: int = 0, **changes: object) -> Seen:
    """A usable file; ``bits`` of its fingerprint are turned over."""
    flat = np.zeros(256, np.uint8)
    flat[:bits] = 1
    given = {"sha256": name, "pixels_sha256": name, "fingerprint": np.packbits(flat), "width": 500, "height": 500}
    return Seen(**(given | changes))  # type: ignore[arg-type]


def test_unreadable_and_tiny_files_are_dropped() -> None:
    rows = [row("a"), row("b"), row("c")]
    kept, log = clean(rows, [Seen(problem="not_an_image"), seen("b", height=20), seen("c")])
    assert list(kept) == [2]
    assert [(each.filepath, each.reason) for each in log] == [("a", "not_an_image"), ("b", "tiny")]


@pytest.mark.parametrize(
    ("second", "how"),
    [
        (seen("a"), "the same file"),
        (seen("b", 128, pixels_sha256="a"), "the same pixels"),
        (seen("b", 10), "nearly the same picture"),
    ],
)
def test_of_copies_the_one_in_val_stays(second: Seen, how: str) -> None:
    kept, log = clean([row("a"), row("b", split="val")], [seen("a"), second])
    assert kept == {1: "val"}
    assert [(each.filepath, each.reason, each.other) for each in log] == [("a", how, "b")]


def test_copies_under_both_labels_are_all_dropped() -> None:
    rows = [row("a"), row("b", label="ai"), row("c"), row("d")]
    kept, log = clean(rows, [seen("a"), seen("b", 3), seen("a"), seen("d", 128)])
    assert list(kept) == [3]
    assert sorted(each.filepath for each in log) == ["a", "b", "c"]


def test_a_copy_of_a_near_copy_under_the_other_label_drops_the_original_too() -> None:
    kept, _ = clean([row("a"), row("b"), row("c", label="ai")], [seen("a"), seen("b", 3), seen("b", 3)])
    assert kept == {}


def test_a_forgery_is_no_copy_of_its_original() -> None:
    kept, log = clean([row("a"), row("b", label="manipulated")], [seen("a"), seen("b", 3)])
    assert (list(kept), log) == ([0, 1], [])


def test_different_pictures_stay() -> None:
    kept, log = clean([row("a"), row("b")], [seen("a"), seen("b", 11)])
    assert (list(kept), log) == ([0, 1], [])


def test_a_source_on_both_sides_is_moved_to_val() -> None:
    rows = [row("a", source="s"), row("b", source="s", split="val")]
    kept, log = clean(rows, [seen("a"), seen("b", 99)])
    assert kept == {0: "val", 1: "val"}
    assert [(each.filepath, each.action) for each in log] == [("a", "moved")]


def test_the_fingerprint_survives_scaling_and_compression_and_tells_pictures_apart(tmp_path: Path) -> None:
    small = cv2.resize(CHINA, (200, 133), interpolation=cv2.INTER_AREA)
    Image.fromarray(small).save(tmp_path / "copy.jpg", quality=40)
    copy = look_at(str(tmp_path / "copy.jpg")).fingerprint
    original, other = fingerprint(CHINA), fingerprint(FLOWER)
    assert original is not None and copy is not None and other is not None
    assert np.bitwise_count(original ^ copy).sum() <= 10
    assert np.bitwise_count(original ^ other).sum() > 60


def test_flat_images_and_gradients_have_no_fingerprint() -> None:
    assert fingerprint(np.full((300, 300, 3), 9, np.uint8)) is None
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    assert fingerprint(np.ascontiguousarray(ramp)) is None


def test_a_format_that_follows_the_label_is_reported() -> None:
    rows = [row(f"{label}{i}", label, source=f"{label}{i % 6}") for label in ("real", "ai") for i in range(36)]
    formats = [
        Seen(format="JPEG" if each["label"] == "real" else "PNG", width=640, height=480, size=9) for each in rows
    ]
    text = confounds(rows, formats)
    assert "| jpeg | 1.00 | 0.00 |" in text
    assert "held-out sources: 100.0%" in text
    same = confounds(rows, [Seen(format="JPEG", width=640, height=480, size=9) for _ in rows])
    assert float(same.split("held-out sources: ")[1].partition("%")[0]) <= 60


def test_facts_of_one_group_are_held_out_together() -> None:
    """Every site stores its images alike, whatever their label: only another image of the same site gives it away."""
    rows, files = [], []
    for site in range(8):
        for label in ("real", "ai"):
            side = 300 + 50 * site + (7 if (label == "ai") == (site % 2 == 0) else 0)
            rows += [
                row(f"{site}{label}{i}", label, source=f"{site}{label}{i % 2}") | {"group": f"{site}"}
                for i in range(12)
            ]
            files += [Seen(format="JPEG", width=side, height=side + 1, size=9_000)] * 12
    by_group = held_out_accuracy(rows, files)
    by_source = held_out_accuracy([each | {"group": ""} for each in rows], files)
    assert by_group is not None and by_source is not None
    assert by_group < 0.7 < 0.9 < by_source


def test_the_command_writes_what_stays_a_log_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(CHINA).save(tmp_path / "china.png")
    Image.fromarray(CHINA).save(tmp_path / "china.jpg", quality=70)
    Image.fromarray(FLOWER).save(tmp_path / "flower.png")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "china.jpg").read_bytes()[:9000])
    lines = ["filepath,label,split,source", "china.png,real,train,a", "china.jpg,real,train,b"]
    lines += ["flower.png,ai,train,c", "half.jpg,real,train,d", "absent.png,ai,train,e"]
    (tmp_path / "dataset.csv").write_text("\n".join(lines))
    assert main([str(tmp_path / "dataset.csv"), "--out", str(tmp_path / "clean.csv"), "--jobs", "1"]) == 0
    with (tmp_path / "clean.csv").open() as file:
        assert [each["filepath"] for each in csv.DictReader(file)] == ["china.png", "flower.png"]
    with (tmp_path / "clean.log.csv").open() as file:
        reasons = {each["filepath"]: each["reason"] for each in csv.DictReader(file)}
    assert reasons == {
        "china.jpg": "nearly the same picture",
        "half.jpg": "truncated",
        "absent.png": "file_not_found",
    }
    assert "| jpeg | 0.00 | 0.00 |" in (tmp_path / "clean.report.md").read_text()
    assert "2 of 5 rows" in capsys.readouterr().out


def test_without_arguments_the_table_is_cleaned_in_its_place_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(CHINA).save("china.png")
    Image.fromarray(CHINA).save("china.jpg", quality=70)
    Image.fromarray(FLOWER).save("flower.png")
    lines = ["filepath,label,split,source", "china.png,real,train,a", "china.jpg,real,train,b", "flower.png,ai,train,c"]
    Path("dataset.csv").write_text("\n".join(lines))
    assert main(["--jobs", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "read dataset.csv: 2 of 3 rows stay; wrote dataset.csv, why in dataset.log.csv, dataset.report.md (as it was: "
        "dataset.before.csv); next: python -m fusion.train_fusion"
    )
    assert Path("dataset.before.csv").read_text() == "\n".join(lines)
    cleaned, log = Path("dataset.csv").read_text(), Path("dataset.log.csv").read_text()
    assert "china.jpg" not in cleaned and "china.jpg" in log
    assert main(["--jobs", "1"]) == 0
    assert "2 of 2 rows stay; wrote dataset.report.md alone;" in capsys.readouterr().out
    assert (Path("dataset.csv").read_text(), Path("dataset.log.csv").read_text()) == (cleaned, log)
    assert Path("dataset.before.csv").read_text() == "\n".join(lines)


def test_no_table_and_a_label_that_is_lost_are_told_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == Exit.FAILED
    assert capsys.readouterr().err == (
        "dataset_missing: no table dataset.csv: make one: python -m scripts.make_dataset_csv\n"
    )
    Image.fromarray(CHINA).save("china.png")
    text = "filepath,label,split,source\nchina.png,real,train,a\nabsent.png,ai,train,b"
    Path("dataset.csv").write_text(text)
    assert main(["--jobs", "1"]) == Exit.FAILED
    assert "too_few_images: no image labelled ai stays: see dataset.log.csv" in capsys.readouterr().err
    assert Path("dataset.csv").read_text() == text

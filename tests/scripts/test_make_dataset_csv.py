"""Folders in the layouts people have, to one CSV split by source."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from scripts.make_dataset_csv import main
from training.folders import COLUMNS, Found, find, group_the_loose, split_sources
from utils.exits import Exit


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "label", "source"),
    [
        ("real/flickr/1.jpg", "real", "flickr"),
        ("ai/sdxl/a/1.PNG", "ai", "sdxl"),
        ("progan/cat/0_real/1.png", "real", "progan"),
        ("Midjourney/train/ai/1.png", "ai", "Midjourney"),
        ("Midjourney/train/nature/1.jpeg", "real", "Midjourney"),
        ("fake/1.webp", "ai", ""),
    ],
)
def test_a_folders_name_gives_label_and_source(tmp_path: Path, name: str, label: str, source: str) -> None:
    touch(tmp_path / "set", name, "notes.txt", "unlabelled/1.png")
    assert find(tmp_path / "set") == [Found(tmp_path / "set" / name, label, source)]


def test_of_several_folders_each_is_the_source_of_what_lies_loose_in_it(tmp_path: Path) -> None:
    touch(tmp_path, "sdxl/fake/1.png", "fake/1.png", "fake/flux/1.png")
    assert [each.source for each in find(tmp_path / "sdxl", "sdxl")] == ["sdxl"]
    assert [each.source for each in find(tmp_path / "fake", "fake")] == ["", "flux"]  # a label names no source


def test_a_label_may_be_the_folder_that_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "fake", "sdxl/1.png")
    assert [(each.label, each.source) for each in find(tmp_path / "fake")] == [("ai", "sdxl")]


def images(sizes: dict[tuple[str, str], int]) -> list[Found]:
    return [Found(Path(f"{i}"), label, source) for (label, source), count in sizes.items() for i in range(count)]


def test_no_source_is_on_both_sides_and_both_labels_are_on_each() -> None:
    sizes = {(label, f"{label}{i}"): 1 + i for label in ("real", "ai") for i in range(100)}
    splits = split_sources(images(sizes), 0.2, seed=1)
    for label in ("real", "ai"):
        assert 10 <= sum(splits[source] == "val" for each, source in sizes if each == label) <= 30


@pytest.mark.parametrize("seed", range(20))
def test_a_label_is_on_both_sides_at_the_cost_of_its_smallest_source(seed: int) -> None:
    for share in (1e-9, 1 - 1e-9):
        sizes = {("real", "a"): 3, ("real", "b"): 9, ("ai", "c"): 9, ("ai", "d"): 3}
        splits = split_sources(images(sizes), share, seed)
        few, many = ("val", "train") if share < 0.5 else ("train", "val")
        assert splits == {"a": few, "b": many, "c": many, "d": few}


def test_a_source_of_both_labels_stays_whole() -> None:
    sizes = {("real", "x"): 5, ("ai", "x"): 5, ("real", "y"): 5, ("ai", "y"): 5, ("ai", "z"): 1}
    splits = split_sources(images(sizes), 0.5, seed=0)
    assert {splits["x"], splits["y"]} == {"train", "val"}


@pytest.mark.parametrize("seed", range(20))
def test_a_new_source_moves_no_other(seed: int) -> None:
    sizes = {(label, f"{label}{i}"): 1 + i * i for label in ("real", "ai") for i in range(20)}
    before = split_sources(images(sizes), 0.2, seed)
    after = split_sources(images(sizes | {("ai", "new"): 10}), 0.2, seed)
    assert {source: after[source] for source in before} == before


def test_a_single_source_is_trained_on() -> None:
    assert split_sources(images({("real", "a"): 3, ("ai", "b"): 3}), 0.2, seed=0) == {"a": "train", "b": "train"}


def test_the_table_is_written_with_paths_from_its_own_folder(tmp_path: Path) -> None:
    touch(tmp_path / "set", *(f"real/{name}/1.jpg" for name in "abx"), *(f"ai/{name}/1.png" for name in "cdy"))
    assert main([str(tmp_path / "set"), "--out", str(tmp_path / "out" / "dataset.csv")]) == 0
    with (tmp_path / "out" / "dataset.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert all((tmp_path / "out" / row["filepath"]).exists() for row in rows)
    assert {(row["label"], row["generator"]) for row in rows} == {("real", ""), ("ai", "c"), ("ai", "d"), ("ai", "y")}


def draw(folder: Path, *names: str) -> None:
    """A crop of a photograph for each name, no two of which show the same."""
    pixels = np.asarray(load_sample_image("china.jpg"))
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        top, left = 140 + 40 * (number // 6), 80 * (number % 6)  # below the sky, which shows nothing to compare
        Image.fromarray(pixels[top : top + 200, left : left + 200]).save(folder / name)


def test_a_plain_folder_is_split_by_image_with_what_nearly_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data", *(f"{label}/{number}.png" for label in ("real", "ai") for number in range(6)))
    with Image.open(tmp_path / "data/real/0.png") as image:
        image.resize((150, 150)).save(tmp_path / "data/real/smaller.jpg", quality=50)
    (tmp_path / "data/ai/broken.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    assert main(["--jobs", "1"]) == 0
    with Path("dataset.csv").open() as file:
        rows = {row["filepath"]: row for row in csv.DictReader(file)}
    assert rows["data/real/smaller.jpg"]["source"] == rows["data/real/0.png"]["source"] == "image:data/real/0.png"
    assert len({row["source"] for row in rows.values()}) == len(rows) - 1 == 13
    assert {(row["label"], row["split"]) for row in rows.values()} == {
        (label, split) for label in ("real", "ai") for split in ("train", "val")
    }
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "read 14 images in data; wrote dataset.csv; next: python -m scripts.clean_dataset"


def test_a_label_of_too_few_sources_is_split_by_image_and_keeps_its_generators(tmp_path: Path) -> None:
    draw(tmp_path, "real/a/1.png", "real/b/1.png", "real/c/1.png", "ai/sdxl/1.png", "ai/flux/1.png")
    images = group_the_loose(find(tmp_path), tmp_path)
    assert [each.source for each in images if each.label == "real"] == ["a", "b", "c"]
    assert [each.source for each in images if each.label == "ai"] == ["image:ai/flux/1.png", "image:ai/sdxl/1.png"]
    assert main([str(tmp_path), "--out", str(tmp_path / "d.csv"), "--jobs", "1"]) == 0
    with (tmp_path / "d.csv").open() as file:
        assert {row["generator"] for row in csv.DictReader(file) if row["label"] == "ai"} == {"sdxl", "flux"}


def test_a_folder_that_is_not_there_or_has_one_label_says_where_images_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == Exit.FAILED
    assert capsys.readouterr().err.startswith("dataset_missing: no folder data: put the real images into data/real")
    touch(tmp_path, "data/real/a/1.jpg")
    assert main([]) == Exit.FAILED
    error = capsys.readouterr().err
    assert error.startswith("dataset_missing: 1 real and 0 AI images in data: put the real images into data/real")
    assert error.count("\n") == 1
    assert not Path("dataset.csv").exists()

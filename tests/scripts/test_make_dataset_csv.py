"""Folders in the layouts people have, to one CSV split by source."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from scripts.make_dataset_csv import COLUMNS, Found, find, main, split_sources
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
        ("fake/1.webp", "ai", "set"),
    ],
)
def test_a_folders_name_gives_label_and_source(tmp_path: Path, name: str, label: str, source: str) -> None:
    touch(tmp_path / "set", name, "notes.txt", "unlabelled/1.png")
    assert find(tmp_path / "set") == [Found(tmp_path / "set" / name, label, source)]


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
    touch(tmp_path / "set", "real/a/1.jpg", "real/b/1.jpg", "ai/c/1.png", "ai/d/1.png")
    assert main([str(tmp_path / "set"), "--out", str(tmp_path / "out" / "dataset.csv")]) == 0
    with (tmp_path / "out" / "dataset.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert all((tmp_path / "out" / row["filepath"]).exists() for row in rows)
    assert {(row["label"], row["generator"]) for row in rows} == {("real", ""), ("ai", "c"), ("ai", "d")}


def test_one_label_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "real/a/1.jpg")
    assert main([str(tmp_path), "--out", str(tmp_path / "d.csv")]) == Exit.FAILED
    assert "no images of one of the labels" in capsys.readouterr().err

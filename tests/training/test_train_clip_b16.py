"""From a data set to a head: the same one for the same seed, and one that the detector can use."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import training.train_clip_b16 as trainer
from inference.clip_b16 import BLOCKS, WIDTH
from training.clip_tokens import Look
from training.datasets import write_rows
from training.loop import read_datasets
from training.token_shards import write_shard
from utils.contracts import RgbArray
from utils.exits import Exit
from utils.persistence import load_arrays, read_tables, sha256_file

TOWER = "ab" * 32


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card without its file: what sees pixels is replaced."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "weights.toml").write_text(f'[clip_b16]\nfile = "x"\nsha256 = "{TOWER}"\n')
    monkeypatch.setenv("IMGV_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.setitem(trainer.LOOKERS, "installed", looker)


def looker() -> Look:
    """Sees how bright an image is, dimly."""
    direction = np.random.default_rng(0).standard_normal((BLOCKS, WIDTH)).astype(np.float32)

    def look(rgb: RgbArray) -> np.ndarray:
        noise = np.random.default_rng(int(rgb.sum())).standard_normal((BLOCKS, WIDTH)).astype(np.float32)
        return direction * (rgb.mean() / 255) + noise

    return look


def dataset(folder: Path, splits: Sequence[str] = ("train", "val"), name: str = "dataset.csv") -> Path:
    """Bright images are AI: six sources of each label for training, two for validation."""
    rng = np.random.default_rng(1)
    rows = [["filepath", "label", "source", "split", "content"]]
    for split, label, number in product(splits, ("real", "ai"), range(18)):
        if split == "val" and number >= 6:
            continue
        path = folder / f"{name[:-4]}-{split}-{label}-{number}.png"
        middle = 170 if label == "ai" else 80
        Image.fromarray(rng.integers(middle - 60, middle + 60, (48, 64, 3), np.uint8)).save(path)
        rows.append([path.name, label, f"{split}-{label}-{number // 3}", split, "photo"])
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / name


def same(one: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def trained(data: Path, out: Path, *more: str) -> Path:
    where = ["--dataset", str(data), "--out", str(out), "--cache", str(data.parent / "cache")]
    assert trainer.main([*where, "--jobs", "1", *more]) == 0
    return out / trainer.FILE


def test_a_data_set_and_a_seed_make_one_head(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    first = trained(data, tmp_path / "a")
    head, metadata = load_arrays(first)
    assert same(load_arrays(trained(data, tmp_path / "b"))[0], head)
    assert not same(load_arrays(trained(data, tmp_path / "c", "--seed", "1"))[0], head)
    assert head["weight"].shape == (BLOCKS, WIDTH)
    assert head["bias"].shape == (1,)
    assert metadata["tower"] == TOWER
    measured = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert len(measured["tried"]) == len(trainer.RIDGES)
    assert measured["chosen"] == min(measured["tried"], key=lambda each: each["log loss"])
    for delivery in ("clean", "web", "hard"):
        for rows in ("all", "photo"):
            assert measured["validation"][f"{delivery}, {rows}"]["auroc"][0] > 0.7
    assert read_tables(first.parent / "card.toml")["head"]["sha256"] == sha256_file(first)


def test_validation_sources_teach_the_head_and_choose_nothing(tmp_path: Path) -> None:
    """Held out they leave another head, and what is searched finds the same heads as in a data set without them."""
    data, without = dataset(tmp_path), dataset(tmp_path, ("train",), "fewer.csv")
    everything, held, fewer = (
        trained(*each)
        for each in ((data, tmp_path / "a"), (data, tmp_path / "b", "--hold-out", "val"), (without, tmp_path / "c"))
    )
    assert not same(load_arrays(everything)[0], load_arrays(held)[0])
    sources = [json.loads((path.parent / "metrics.json").read_text())["sources"] for path in (everything, held, fewer)]
    assert sources == [16, 12, 12]
    taught = read_datasets([everything.parent / "teacher.csv"])
    assert [each.path for each in taught] == [each.path.resolve() for each in read_datasets([data])]
    means = [np.mean([each.teacher for each in taught if each.label == label]) for label in (0, 1)]
    assert 0 < means[0] < means[1] < 1
    untaught = [each for each in read_datasets([held.parent / "teacher.csv"]) if each.split == "val"]
    assert all(np.isnan(each.teacher) for each in untaught)


def test_what_was_kept_makes_the_same_head_without_an_image(tmp_path: Path) -> None:
    data, shards = dataset(tmp_path), tmp_path / "shards"
    with data.open(newline="") as file:
        rows = [row | {"sha256": sha256_file(tmp_path / row["filepath"])} for row in csv.DictReader(file)]
    write_rows(data, rows)
    seen = load_arrays(trained(data, tmp_path / "a", "--keep", str(shards / "first.safetensors")))[0]
    again = ("--tokens", str(shards), "--keep", str(tmp_path / "nothing.safetensors"))
    kept = load_arrays(trained(data, tmp_path / "b", *again))[0]
    for row in rows:
        (tmp_path / row["filepath"]).unlink()
    shutil.rmtree(tmp_path / "cache")
    assert same(load_arrays(trained(data, tmp_path / "c", "--tokens", str(shards)))[0], kept)
    assert np.corrcoef(seen["weight"].ravel(), kept["weight"].ravel())[0, 1] > 0.99
    assert not (tmp_path / "nothing.safetensors").exists(), "nothing was new"


def test_tokens_are_kept_only_of_images_that_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--dataset", str(dataset(tmp_path)), "--out", str(tmp_path), "--cache", str(tmp_path)]
    assert trainer.main([*where, "--keep", str(tmp_path / "first.safetensors")]) == Exit.FAILED
    assert "column sha256" in capsys.readouterr().err


def test_tokens_of_another_tower_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = {"ab-clean": np.ones((BLOCKS, WIDTH), np.float16)}
    write_shard(tmp_path / "shards" / "first.safetensors", tokens, (7, 8), "cd" * 32)
    where = ["--dataset", str(dataset(tmp_path)), "--out", str(tmp_path), "--cache", str(tmp_path)]
    assert trainer.main([*where, "--tokens", str(tmp_path / "shards")]) == Exit.FAILED
    assert "bad_table: " in capsys.readouterr().err


def test_a_data_set_of_one_label_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.csv"
    path.write_text("filepath,label,source\nx.png,real,a\n")
    where = ["--dataset", str(path), "--out", str(tmp_path), "--cache", str(tmp_path)]
    assert trainer.main(where) == Exit.FAILED
    assert "bad_table: training needs real and ai images" in capsys.readouterr().err


def test_kinds_and_families_are_learnt_where_the_data_set_names_them(tmp_path: Path) -> None:
    """Their heads stand in the file, and what held-out ones say of the kind in every row of a table."""
    data = dataset(tmp_path)
    with data.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["content"] = ("photo", "art")[number // 3 % 2]
        row["family"] = ("flux", "gan")[number // 3 % 2] if row["label"] == "ai" else ""
    with data.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "family"])
        writer.writeheader()
        writer.writerows(rows)
    head, metadata = load_arrays(trained(data, tmp_path / "a"))
    assert (metadata["kinds"], metadata["families"]) == ("art photo", "flux gan")
    assert head["kinds_weight"].shape == head["families_weight"].shape == (2, BLOCKS, WIDTH)
    measured = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert set(measured["kinds"]["right"]) == {"art", "photo"}
    assert set(measured["families"]["right"]) == {"flux", "gan"}
    assert 0 <= float(metadata["named_from"]) <= 1

"""Pairs of a photograph and itself through an auto-encoder: which ones, what is the same, what differs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn

from training.reconstruct import CODE, decoder, encoder, main, prepared, reconstructed


@pytest.fixture
def weights(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    arguments = []
    for name, build in (("encoder", encoder), ("decoder", decoder)):
        torch.save(build().state_dict(), tmp_path / f"{name}.pth")
        arguments += [f"--{name}", str(tmp_path / f"{name}.pth")]
    return arguments


def dataset(folder: Path) -> Path:
    photograph = load_sample_image("china.jpg")
    rows = ["filepath,label,source,split,content"]
    for number, (label, source, split) in enumerate(
        [("real", "a", "train")] * 3 + [("real", "b", "train"), ("real", "c", "val"), ("ai", "d", "train")]
    ):
        Image.fromarray(photograph[number : number + 60, :90]).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{label},{source},{split},photo")
    (folder / "data.csv").write_text("\n".join(rows))
    return folder / "data.csv"


def test_real_training_images_get_a_twin_that_shares_their_source_and_size(tmp_path: Path, weights: list[str]) -> None:
    out = tmp_path / "pairs"
    command = ["--dataset", str(dataset(tmp_path)), "--out", str(out), "--per-source", "2", *weights]
    assert main(command) == 0
    rows = list(csv.DictReader((out / "dataset.csv").read_text().splitlines()))
    assert [(row["label"], row["source"]) for row in rows] == [
        ("real", "a"), ("ai", "a"), ("real", "a"), ("ai", "a"), ("real", "b"), ("ai", "b"),
    ]  # fmt: skip
    assert {(row["split"], row["content"]) for row in rows} == {("train", "photo")}
    for real, twin in zip(rows[::2], rows[1::2], strict=True):
        pixels = [np.asarray(Image.open(out / row["filepath"])) for row in (real, twin)]
        assert pixels[0].shape == pixels[1].shape == (56, 88, 3)
        assert not np.array_equal(*pixels)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert main(command) == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")} == before, "made once"


def test_a_code_is_an_eighth_of_the_image_and_the_way_back_as_large_as_it() -> None:
    code = encoder()(torch.zeros(1, 3, 64, 96))
    assert code.shape == (1, CODE, 8, 12)
    assert decoder()(code).shape == (1, 3, 64, 96)


def test_a_photograph_is_reduced_to_640_px_and_cut_to_the_grid() -> None:
    photograph = load_sample_image("china.jpg")
    assert prepared(photograph).shape == (424, 640, 3)
    np.testing.assert_array_equal(prepared(photograph), photograph[1:425])
    assert prepared(np.tile(photograph, (2, 2, 1))).shape == (424, 640, 3)
    assert prepared(photograph[:5, :13]).shape[1] == 8


def test_what_leaves_0_to_255_is_clipped() -> None:
    network = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        network.weight.copy_(torch.eye(3)[..., None, None] * 3)
        network.bias.fill_(-1)
    found = reconstructed(network, np.array([[[0, 100, 255]]], np.uint8))
    np.testing.assert_array_equal(found, [[[0, 45, 255]]])

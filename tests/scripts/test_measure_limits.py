"""The study that sets inference/limits.py: which copies it makes, and what its tables count."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from scripts.measure_limits import main
from training.limits_study import Copy, by_content, by_size, draw


def copy(label: str, side: int, unlimited: str, tier: str = "", flat: float = 0.1) -> Copy:
    called = "AI" if unlimited in ("likely_ai", "ai") else "NON-AI"
    return Copy("x.jpg", label, side, 0.5, called, unlimited, tier or unlimited, flat, 7.0)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_counts_what_each_label_was_called_and_what_the_limits_change():
    copies = [
        copy("real", 64, "ai", "inconclusive"),
        copy("real", 64, "likely_real", "inconclusive"),
        copy("ai", 64, "likely_ai", "inconclusive"),
        copy("ai", 64, "real", "inconclusive"),
        copy("real", 512, "real"),
    ]
    small, large = by_size(copies).splitlines()[2:]
    assert cells(small) == ["64", "2", "50%", "50%", "0%", "0%", "100%", "2", "50%", "50%", "0%", "50%"]
    assert cells(large) == ["512", "1", "0%", "0%", "0%", "0%", "0%", "0", "–", "–", "–", "–"]


def test_content_is_told_by_large_copies_only_and_the_last_bin_has_its_end():
    copies = [copy("real", 64, "ai"), copy("real", 512, "real", flat=1.0), copy("real", 512, "ai", flat=math.nan)]
    (row,) = by_content(copies, "flat", (0.0, 0.5, 1.0)).splitlines()[2:]
    assert cells(row)[:3] == ["0.5 to 1", "1", "0%"]


def test_images_are_drawn_from_every_source_in_turn(tmp_path: Path):
    rows = ["filepath,label,source,split", *(f"a{i}.png,real,a,val" for i in range(5)), "b.png,real,b,val"]
    rows += ["c.png,ai,c,val", "d.png,ai,d,train"]
    (tmp_path / "dataset.csv").write_text("\n".join(rows))
    drawn = draw(tmp_path / "dataset.csv", "val", 3)
    assert [row["filepath"] for row in drawn] == ["a0.png", "b.png", "a1.png", "c.png"]


def test_the_command_measures_each_size_that_an_image_has_the_pixels_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    Image.fromarray(np.asarray(load_sample_image("china.jpg"))[:80, :100]).save(tmp_path / "a.png")
    (tmp_path / "dataset.csv").write_text("filepath,label,source,split\na.png,real,a,val\nnone.png,ai,b,val\n")
    out = tmp_path / "copies.csv"
    assert main(["--manifest", str(tmp_path / "dataset.csv"), "--images", "1", "--out", str(out)]) == 0
    with out.open() as file:
        found = list(csv.DictReader(file))
    assert [row["side"] for row in found] == ["64", "96"]
    assert {row["tier"] for row in found} == {"inconclusive"}
    assert all(0 <= float(row["flat"]) <= 1 < float(row["entropy"]) for row in found)
    printed = capsys.readouterr()
    assert "none.png" in printed.err
    assert "| 96 | 1 |" in printed.out

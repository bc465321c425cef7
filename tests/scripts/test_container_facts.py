"""A format that follows the label gives it away as published, and no more after the deliveries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from scripts.container_facts import choose, main
from utils.exits import Exit


def test_the_deliveries_hide_what_the_published_files_give_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.asarray(load_sample_image("china.jpg"))
    lines = ["filepath,label,source,split"]
    for number in range(40):
        label = "ai" if number % 2 else "real"
        name = f"{number}.{'png' if number % 2 else 'jpg'}"
        crop = pixels[number : number + 200, 7 * number : 7 * number + 200]
        Image.fromarray(crop).save(tmp_path / name)
        lines.append(f"{name},{label},source{number},train")
    (tmp_path / "broken.png").write_bytes(b"no image")
    lines.append("broken.png,ai,broken,train")
    (tmp_path / "dataset.csv").write_text("\n".join(lines))
    assert main([str(tmp_path / "dataset.csv"), "--jobs", "1"]) == 0
    printed = capsys.readouterr()
    assert "40 images of 40 sources" in printed.out
    assert "left out: broken.png: not_an_image" in printed.err
    rows = [line.split(" | ") for line in printed.out.splitlines() if "%" in line]
    accuracy = {cells[0].strip("| "): float(cells[1].partition("%")[0]) for cells in rows}
    assert accuracy["clean"] == 100
    assert max(accuracy[delivery] for delivery in ("web", "hard", "random1")) < 80


def test_every_source_gives_as_many_images_at_most() -> None:
    rows = [
        {"label": label, "source": source} for source, label in [("a", "ai"), ("a", "ai"), ("b", "real"), ("c", "x")]
    ]
    assert choose(rows, 1) == [rows[0], rows[2]]


def test_one_label_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dataset.csv").write_text("filepath,label,source\na.png,ai,a")
    assert main([str(tmp_path / "dataset.csv")]) == Exit.FAILED
    assert capsys.readouterr().err.startswith("dataset_missing: ")

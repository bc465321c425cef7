"""The study of pictures in pictures: what it draws, finds and counts."""

from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from scripts.measure_regions import main, overlap


def test_drawn_screens_and_photographs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "real.png")
    Image.fromarray(load_sample_image("flower.jpg")).save(tmp_path / "ai.png")
    (tmp_path / "dataset.csv").write_text("filepath,label,source,split\nreal.png,real,a,val\nai.png,ai,b,val\n")
    assert main(["--manifest", str(tmp_path / "dataset.csv"), "--screens", "2", "--photographs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "of 2 |" in printed.splitlines()[-2]
    assert printed.splitlines()[-1] == "real images searched: 1; with a picture inside: 0; like a screenshot: 0"


@pytest.mark.parametrize(
    ("other", "expected"), [((0, 0, 10, 10), 1.0), ((5, 0, 10, 10), 1 / 3), ((20, 20, 5, 5), 0.0), ((0, 0, 5, 10), 0.5)]
)
def test_overlap_is_intersection_over_union(other, expected):
    assert overlap((0, 0, 10, 10), other) == pytest.approx(expected)

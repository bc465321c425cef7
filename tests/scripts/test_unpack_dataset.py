"""Public data sets in their published layouts become folders that make_dataset_csv understands."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from scripts.unpack_dataset import main
from training.folders import find
from utils.exits import Exit


def png(grey: int) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(stream, "PNG")
    return stream.getvalue()


def test_a_parquet_file_of_the_hub_becomes_labelled_folders(tmp_path: Path) -> None:
    images = [{"bytes": png(grey), "path": f"../{grey}.png"} for grey in range(6)]
    table = pa.table({"image": images, "label": [0, 1, 0, 1, 1, 7]})
    parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    command = ["parquet", str(tmp_path / "train-00000-of-00001.parquet"), "--out", str(tmp_path / "data")]
    assert main([*command, "--name", "genimage", "--real", "0", "--most", "2"]) == 0
    found = find(tmp_path / "data")
    assert [(each.label, each.source) for each in found] == [("ai", "genimage")] * 2 + [("real", "genimage")] * 2
    assert {each.path.read_bytes() for each in found} == {png(grey) for grey in (0, 1, 2, 3)}
    assert {each.path.parent.parent.parent for each in found} == {tmp_path / "data"}, "a path inside leads nowhere else"


def test_parts_of_diffusiondb_lose_what_their_metadata_calls_unsafe(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "part-000001.zip", "w") as part:
        for grey in range(4):
            part.writestr(f"{grey}.png", png(grey))
        part.writestr("part-000001.json", "{}")
    metadata = pa.table({"image_name": [f"{grey}.png" for grey in range(4)], "image_nsfw": [0.1, 0.9, 2.0, None]})
    parquet.write_table(metadata, tmp_path / "metadata.parquet")
    command = ["diffusiondb", str(tmp_path / "part-000001.zip"), "--out", str(tmp_path / "data")]
    assert main([*command, "--metadata", str(tmp_path / "metadata.parquet")]) == 0
    assert [each.path.name for each in find(tmp_path / "data")] == ["0.png", "3.png"]


def test_the_folders_of_kaggle_are_understood_as_they_are(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("REAL", "FAKE"):
            folder = tmp_path / "cifake" / split / label
            folder.mkdir(parents=True)
            (folder / "0001.png").write_bytes(png(1))
    assert [each.label for each in find(tmp_path / "cifake")] == ["ai", "real", "ai", "real"]


@pytest.mark.parametrize("layout", ["parquet", "diffusiondb"])
def test_a_file_of_another_layout_is_told(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_bytes(b"nothing")
    assert main([layout, str(tmp_path / "x"), "--out", str(tmp_path / "data")]) == Exit.FAILED
    assert "bad_table" in capsys.readouterr().err
    parquet.write_table(pa.table({"picture": [b""]}), tmp_path / "y.parquet")
    assert main(["parquet", str(tmp_path / "y.parquet"), "--out", str(tmp_path / "data")]) == Exit.FAILED
    assert "it has picture" in capsys.readouterr().err

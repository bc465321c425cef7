"""From images to a fusion artifact, twice from scratch: the same table, the same predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from fusion import train_fusion
from fusion.meta_model import FusionModel
from scripts import extract_features
from utils.contracts import Json

SIDE = 160  # px of a crop


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of two photographs under invented labels: three sources of each for training, one to validate on."""
    folder = tmp_path_factory.mktemp("images")
    lines = ["filepath,label,source,split"]
    rng = np.random.default_rng(0)
    for number, photograph in enumerate(load_sample_images().images):
        for index in range(12):
            top, left = (int(rng.integers(0, side - SIDE)) for side in photograph.shape[:2])
            name = f"{number}-{index}.{'jpg' if index % 2 else 'png'}"
            Image.fromarray(photograph[top : top + SIDE, left : left + SIDE]).save(folder / name)
            split = "val" if index >= 9 else "train"
            lines.append(f"{name},{('real', 'ai')[number]},{number}-{index // 3},{split}")
    (folder / "dataset.csv").write_text("\n".join(lines))
    return folder / "dataset.csv"


def build(manifest: Path, folder: Path, seed: str = "0") -> dict[str, Json]:
    """What the artifact made from scratch says about itself."""
    table, artifact = folder / "features.parquet", folder / "artifact"
    folder.mkdir()
    command = ["--manifest", str(manifest), "--out", str(table), "--deliveries", "clean,random1", "--jobs", "1"]
    assert extract_features.main([*command, "--seed", seed]) == 0
    train = ["--table", str(table), "--out", str(artifact), "--seed", seed]
    assert train_fusion.main([*train, "--exclude", "exif*"]) == 0
    return dict(FusionModel.load(artifact).metrics)


def test_the_table_rebuilt_from_scratch_gives_the_same_artifact(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGV_PROFILE", "light")  # the tower would look at 144 views
    pytest.importorskip("pyarrow", reason="Parquet needs pip install pyarrow")
    first, again = build(manifest, tmp_path / "first"), build(manifest, tmp_path / "again")
    assert first["data"]["table_sha256"] == again["data"]["table_sha256"]
    assert first["predictions_sha256"] == again["predictions_sha256"]
    assert (tmp_path / "first/artifact/model.json").read_bytes() == (
        tmp_path / "again/artifact/model.json"
    ).read_bytes()
    other = build(manifest, tmp_path / "other", seed="1")
    assert other["data"]["table_sha256"] != first["data"]["table_sha256"]  # other random deliveries
    assert other["predictions_sha256"] != first["predictions_sha256"]

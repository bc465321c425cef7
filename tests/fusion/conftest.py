"""One artifact of each kind, trained by the command itself from a synthetic table."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion.meta_model import FusionModel
from fusion.train_fusion import main
from tests.fusion.synthetic import KINDS, write_table


@pytest.fixture(scope="session")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("fusion") / "features.csv")


@pytest.fixture(scope="session")
def folders(table_path: Path) -> dict[str, Path]:
    """Artifact folders by kind; read only."""
    made = {kind: table_path.parent / f"{kind}-test" for kind in KINDS}
    for kind, folder in made.items():
        assert main(["--table", str(table_path), "--out", str(folder), "--model", kind]) == 0
    return made


@pytest.fixture(scope="session")
def models(folders: dict[str, Path]) -> dict[str, FusionModel]:
    return {kind: FusionModel.load(folder) for kind, folder in folders.items()}

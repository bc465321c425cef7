"""An empty registry for each test: MLflow makes its tables once, which takes seconds."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from lifecycle.registry import Registry
from utils.settings import Settings


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    assert Registry(Settings.of(lifecycle_dir=folder)).entries() == []
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return folder / "mlflow.db"


@pytest.fixture
def lifecycle_dir(empty_registry: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "lifecycle"
    folder.mkdir()
    shutil.copyfile(empty_registry, folder / "mlflow.db")
    return folder

"""Weights & Biases beside MLflow: the same release, by one setting, offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.registry import Registry
from utils.releases import seal
from utils.settings import Settings


@pytest.mark.timeout(300)
def test_a_registered_release_is_shown_there_too(lifecycle_dir: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="pip install wandb un-skips it")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "made" / "fusion").mkdir(parents=True)
    (tmp_path / "made" / "fusion" / "model.json").write_text("{}")
    release = seal(tmp_path / "made", "2026-12-01-aa", profile="light", code="", data="", weights={})
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "card.md").write_text("# A card")
    settings = Settings.of(lifecycle_dir=lifecycle_dir, wandb_project="verify")
    entry = Registry(settings).register(release, {"seed": 3}, {"auroc": 0.9}, tmp_path / "evaluation")
    assert entry.release == "2026-12-01-aa"
    (kept,) = (lifecycle_dir / "wandb").glob("offline-run-*/run-2026-12-01-aa.wandb")
    raw = kept.read_bytes()
    assert all(word in raw for word in (b"seed", b"auroc", b"verify"))

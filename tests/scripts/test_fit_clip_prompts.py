"""Fitting a CLIP detector's temperature, bias and prompt weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from inference.clip_models import TINY, ClipH14Detector, TextEmbeddings
from models.loaders import Weights
from scripts.embed_clip_prompts import main as embed_clip_prompts
from scripts.fit_clip_prompts import fit, fit_at, main
from training.feature_table import Table, source_weights
from training.meta_models import fit_platt
from utils.exits import Exit
from utils.persistence import sha256_file

WIDTH = 16


def text_embeddings() -> TextEmbeddings:
    rows = functional.normalize(torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1)
    third = torch.full((3,), 1 / 3)
    return TextEmbeddings(rows[:3], rows[3:], third, third, 100.0, 0.0, "checkpoint", "prompts", "nothing")


def table_along(direction: torch.Tensor, strength: float, seed: int = 0, sources: int = 8) -> Table:
    """Unit features of generated images lean towards ``direction``, those of real ones away from it."""
    rng = np.random.default_rng(seed)
    unit = functional.normalize(direction, dim=0).numpy()
    labels = np.repeat([0, 1], 6 * sources)
    features = rng.normal(0, 1, (len(labels), WIDTH)) + np.outer(strength * (2 * labels - 1), unit)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = np.array([f"{label}-{index // 6}" for index, label in enumerate(labels)])
    count = len(labels)
    return Table((), features, labels, names, np.array(["train"] * count), np.array(["clean"] * count))


def test_temperature_and_bias_are_those_of_a_logistic_regression_on_the_cosine_difference() -> None:
    text = text_embeddings()
    table = table_along(text.direction, 1.0)
    fitted = fit_at(text, table, math.inf)
    difference = table.matrix @ text.direction.double().numpy()
    reference = fit_platt(difference, table.labels, source_weights(table.labels, table.sources))
    assert fitted.temperature == pytest.approx(reference.slope, rel=0.05)  # the pull is weak
    assert fitted.bias == pytest.approx(reference.intercept, abs=0.05)
    torch.testing.assert_close(fitted.direction, text.direction)


def test_the_prompt_that_tells_the_classes_apart_gains_weight() -> None:
    text = text_embeddings()
    fitted, losses = fit(text, table_along(text.generated[2] - text.real[0], 2.0), 0)
    assert fitted.generated_weights.argmax() == 2
    assert fitted.real_weights.argmax() == 0
    assert min(losses, key=losses.__getitem__) < math.inf
    assert float(fitted.generated_weights.sum()) == pytest.approx(1)
    assert fitted.fitted == "96 rows of 16 sources"


def test_the_penalty_holds_prompt_weights_near_the_even_ensemble() -> None:
    text = text_embeddings()
    table = table_along(text.generated[2] - text.real[0], 2.0)
    largest = [float(fit_at(text, table, penalty).generated_weights.max()) for penalty in (math.inf, 10.0, 0.1, 0.001)]
    assert largest[0] == pytest.approx(1 / 3)
    assert largest == sorted(largest)
    assert largest[1] < 0.36 < 0.6 < largest[3]


def test_images_that_lean_the_wrong_way_give_no_inverted_score() -> None:
    text = text_embeddings()
    table = table_along(-text.direction, 2.0)
    fitted = fit_at(text, table, math.inf)
    assert 0 < fitted.temperature < 0.1
    odds = fitted.log_odds(torch.from_numpy(table.matrix).float())
    assert odds.abs().max() < 0.5


def test_what_binds_the_embeddings_to_their_checkpoint_is_kept() -> None:
    text = replace(text_embeddings(), checkpoint_sha256="ab", prompts_sha256="cd")
    fitted, _ = fit(text, table_along(text.direction, 1.0), 0)
    assert (fitted.checkpoint_sha256, fitted.prompts_sha256) == ("ab", "cd")
    torch.testing.assert_close(fitted.real, text.real)


def test_a_manifest_becomes_the_installed_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ClipH14Detector, "CONFIG", TINY)
    monkeypatch.setenv("IMGV_WEIGHTS_DIR", str(tmp_path))
    torch.manual_seed(0)
    path = tmp_path / "clip_h14.safetensors"
    save_file(open_clip.CLIP(**TINY).state_dict(), path)
    card = f'[clip_h14]\nsize = {path.stat().st_size}\nsha256 = "{sha256_file(path)}"\n'
    (tmp_path / "weights.toml").write_text(card)
    assert embed_clip_prompts(["clip_h14"]) == 0

    rng = np.random.default_rng(0)
    lines = ["filepath,label,source"]
    for label, level in (("real", 40), ("ai", 200)):
        for index in range(8):
            pixels = rng.integers(level, level + 50, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{label}{index}.png")
            lines.append(f"{label}{index}.png,{label},{label}-{index // 2}")
    (tmp_path / "dataset.csv").write_text("\n".join(lines))
    assert main(["clip_h14", "--manifest", str(tmp_path / "dataset.csv")]) == 0
    shown = capsys.readouterr().out
    assert "measured on the train split" in shown
    assert shown.index("before: real called real") < shown.index("after: real called real")
    detector = ClipH14Detector.load(Weights.at(tmp_path), "cpu")
    assert detector.text.fitted == "48 rows of 8 sources", "three deliveries of sixteen images"

    (tmp_path / "dataset.csv").write_text("\n".join(lines[:3]))
    assert main(["clip_h14", "--manifest", str(tmp_path / "dataset.csv")]) == Exit.FAILED
    assert "one of the labels" in capsys.readouterr().err

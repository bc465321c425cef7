"""From a folder of images to embeddings, a head and a verdict by it; every kind of head; what embeddings keep."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

import img_ml_verify
from inference.embedding import ImageEmbedder
from inference.frozen import DinoDetector, Head
from inference.registry import DETECTORS
from models.backbones import backbone, backbones
from models.loaders import Weights
from scripts import extract_embeddings, train_head
from training import embeddings, head_fit
from training.backbone_embeddings import embed_with
from training.embeddings import Embed, Embedded, embed_manifest
from training.feature_table import Table
from training.head_fit import KINDS, fit, settings_of
from utils.contracts import Sample
from utils.errors import TableError, TooFewImages
from utils.exits import Exit
from utils.persistence import sha256_file
from utils.settings import load_settings

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Red against blue images (all that random weights see), nine sources of each label, the last for validation."""
    rng = np.random.default_rng(0)
    lines = ["filepath,label,source,split"]
    folder = tmp_path / "data"
    folder.mkdir()
    for label in ("real", "ai"):
        for source in range(9):
            for index in range(2):
                colour = rng.integers(60, 190, 3) + ([60, 0, -60] if label == "ai" else [-60, 0, 60])
                pixels = np.full((64, 80, 3), colour) + rng.normal(0, 10, (64, 80, 3))
                name = f"{label}{source}{index}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
                lines.append(f"{name},{label},{label}-{source},{'val' if source == 8 else 'train'}")
    (folder / "broken.png").write_bytes(b"not an image")
    lines += ["broken.png,real,real-0,train", "broken.png,manipulated,x,train", "absent.png,ai,ai-0,test"]
    (folder / "dataset.csv").write_text("\n".join(lines))
    return folder / "dataset.csv"


@pytest.fixture
def weights_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny backbone with random weights in the published layout, installed."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("IMGV_WEIGHTS_DIR", str(folder))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 56, "image_size": 224}
    state = Dinov2Model(Dinov2Config(**sizes)).state_dict()
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    for old, new in (*names.items(), ("o_proj", "output.dense")):
        state = {key.replace(old, new): value for key, value in state.items()}
    path = folder / "dinov2_small.safetensors"
    save_file(state, path)
    (folder / "weights.toml").write_text(
        f'[dinov2_small]\nsize = {path.stat().st_size}\nsha256 = "{sha256_file(path)}"\n'
    )
    return folder


def embedded(dataset: Path, weights_dir: Path, *more: str) -> Path:
    out = weights_dir.parent / "features.npz"
    assert extract_embeddings.main([str(dataset), "--backbone", "dinov2_small", "--out", str(out), *more]) == 0
    return out


# --- the whole way


def test_a_folder_becomes_a_head_and_a_verdict_by_it(
    dataset: Path, weights_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = embedded(dataset, weights_dir)
    assert "left out: broken.png (web): not_an_image" in capsys.readouterr().err
    found = Embedded.load(features)
    assert found.about["backbone_sha256"] == Weights.at(weights_dir).card("dinov2_small").sha256
    assert set(found.table.deliveries[found.table.splits == "train"]) == {"web", "hard", "random1"}
    assert set(found.table.deliveries[found.table.splits == "val"]) == {"clean", "web", "hard"}
    assert not features.with_name("features.npz.parts").exists()
    head = tmp_path / "head"
    assert train_head.main([str(features), "--head", "svm", "--no-grid", "--out", str(head), "--install"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("real called real") < shown.index("AI called AI") < shown.index("AUROC")
    assert "| val, hard |" in shown
    assert "macro avg" in shown
    assert "| real | " in shown
    assert (head / "roc.png").read_bytes().startswith(b"\x89PNG")
    detector = DinoDetector.load(Weights.at(weights_dir), "cpu")
    assert detector.head.backbone == "dinov2_small"

    def judged(name: str, *more: str) -> dict[str, Any]:
        assert img_ml_verify.main([str(dataset.parent / name), "--json", "--head", str(head), *more]) == 0
        return dict(json.loads(capsys.readouterr().out))

    real, ai = judged("real80.png"), judged("ai80.png")
    assert (real["label"], ai["label"]) == ("NON-AI", "AI"), "validation images, which the head never saw"
    assert ai["models"]["fusion"] == "head-head"
    assert ai["fusion_prob"] == pytest.approx(ai["dino_prob"], abs=1e-4)
    assert ai["threshold"] == pytest.approx(detector.head.thresholds.label)
    assert "alone" in ai["unavailable"]["effnet_prob"]


def test_the_same_run_gives_the_same_bytes(dataset: Path, weights_dir: Path, tmp_path: Path) -> None:
    features = embedded(dataset, weights_dir, "--deliveries", "hard")
    for name in ("a", "b"):
        assert train_head.main([str(features), "--no-grid", "--out", str(tmp_path / name)]) == 0
    for file in ("weights.safetensors", "README.md", "metrics.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_head_of_another_backbone_is_refused_and_a_missing_backbone_names_the_command(
    dataset: Path, weights_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = fit(embedded_of(table_of(4), "dinov2_small"), "svm", grid=False)
    fitted.head.save(tmp_path / "head", {})
    assert img_ml_verify.main([str(dataset.parent / "ai80.png"), "--head", str(tmp_path / "head")]) == Exit.SETUP
    assert "backbone_mismatch" in capsys.readouterr().err
    assert img_ml_verify.main([str(dataset.parent / "ai80.png"), "--head", str(tmp_path)]) == Exit.SETUP
    assert "not a model folder" in capsys.readouterr().err
    command = [str(dataset), "--backbone", "dinov2_large", "--out", str(tmp_path / "x.npz")]
    assert extract_embeddings.main(command) == Exit.SETUP
    assert "python -m scripts.download_weights dinov2_large" in capsys.readouterr().err
    (tmp_path / "other.npz").write_bytes(b"PK nothing")
    assert train_head.main([str(tmp_path / "other.npz"), "--out", str(tmp_path / "y")]) == Exit.FAILED
    assert "bad_table" in capsys.readouterr().err


def test_every_record_names_a_detector_that_its_heads_can_serve() -> None:
    assert len(backbones()) > 15
    for record in backbones().values():
        assert DETECTORS[record.detector].path.startswith("inference.frozen:"), record.name


# --- training


def table_of(sources: int, seed: int = 0, images: int = 4) -> Table:
    """Two classes that differ along the first axis, and sources that differ along the others."""
    rng = np.random.default_rng(seed)
    rows, labels, names = [], [], []
    for label in (0, 1):
        for source in range(sources):
            shift = rng.normal(0, 1, 8)
            shift[0] = 0
            rows.append(rng.normal(0, 1, (images, 8)) + shift + np.eye(8)[0] * (4 * label - 2))
            labels += [label] * images
            names += [f"{label}-{source}"] * images
    count = len(labels)
    return Table(
        (), np.vstack(rows), np.array(labels), np.array(names), np.array(["train"] * count), np.array(["clean"] * count)
    )


def embedded_of(table: Table, name: str = "dinov2_base") -> Embedded:
    about = {"backbone": name, "backbone_sha256": "ab", "embedding": backbone(name).embedding}
    return Embedded(table, np.array([""] * len(table)), about)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_head_learns_is_calibrated_and_survives_the_disk(kind: str, tmp_path: Path) -> None:
    fitted = fit(embedded_of(table_of(10)), kind, grid=False)
    fitted.head.save(tmp_path / "head", {})
    head, _ = Head.open(tmp_path / "head")
    measured = fitted.metrics
    assert measured["train, out of fold, clean"]["real_called_real"][0] > 0.75
    fresh = table_of(10, seed=5)
    probabilities = head.probabilities(fresh.matrix)
    np.testing.assert_array_equal(probabilities, fitted.head.probabilities(fresh.matrix))
    assert ((probabilities > 0.5) == fresh.labels).mean() > 0.75
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_a_grid_is_compared_on_held_out_sources_and_the_best_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = settings_of("svm", True, 0)[1], settings_of("svm", True, 0)[0]
    bad.set_params(head__C=1e-12)
    monkeypatch.setattr(head_fit, "settings_of", lambda *_: [bad, good])
    fitted = fit(embedded_of(table_of(6)), "svm")
    assert fitted.head.settings == " ".join(str(good["head"]).split())
    assert len(fitted.compared) == 2


def test_without_a_grid_only_the_default_is_fitted() -> None:
    assert len(settings_of("svm", False, 0)) == 1
    assert {type(each["head"]).__name__ for each in settings_of("svm", True, 0)} == {"LinearSVC", "SVC"}


def test_no_source_is_on_both_sides_of_a_fold() -> None:
    """Labels drawn per source and features that name the source: only leaking folds could predict them."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(24), 6)
    labels = (np.arange(24) % 2)[sources]
    matrix = rng.normal(0, 1, (24, 8))[sources] * 5 + rng.normal(0, 0.1, (144, 8))
    table = Table((), matrix, labels, sources.astype(str), np.array(["train"] * 144), np.array(["x"] * 144))
    measured = fit(embedded_of(table), "forest", grid=False).metrics
    assert measured["train, out of fold, x"]["auroc"][0] < 0.75


def test_too_few_sources_are_refused() -> None:
    with pytest.raises(TooFewImages, match="at least two training sources"):
        fit(embedded_of(table_of(1)), "svm")
    one_label = table_of(4).rows(table_of(4).labels == 0)
    with pytest.raises(TableError, match="one label only"):
        fit(embedded_of(one_label), "svm")


# --- embeddings


def brightness(samples: Sequence[Sample]) -> list[np.ndarray]:
    return [sample.rgb.mean(axis=(0, 1)).astype(np.float32) for sample in samples]


def embed(manifest: Path, deliveries: list[str], by: Embed, cache: Path) -> Table:
    return embed_manifest(manifest, deliveries, lambda: by, cache, load_settings().decode).table


def test_known_embeddings_are_not_computed_again(dataset: Path, tmp_path: Path) -> None:
    first = embed(dataset, ["clean", "hard"], brightness, tmp_path / "cache")
    assert len(first) == 72
    again = embed(dataset, ["clean", "hard"], lambda _: pytest.fail("computed"), tmp_path / "cache")
    np.testing.assert_array_equal(first.matrix, again.matrix)
    assert again.deliveries[:2].tolist() == ["clean", "hard"]
    assert set(first.splits) == {"train", "val"}


def test_each_delivery_is_embedded_as_it_arrives(dataset: Path, tmp_path: Path) -> None:
    def is_jpeg(samples: Sequence[Sample]) -> list[np.ndarray]:
        return [np.array([sample.format == "JPEG"], np.float32) for sample in samples]

    table = embed(dataset, ["clean", "hard"], is_jpeg, tmp_path / "x")
    assert table.matrix[:, 0].tolist() == (table.deliveries == "hard").astype(float).tolist()


def test_a_stopped_run_goes_on_where_it_was(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "GROUP", 3)
    embedded, resumed = 0, 0

    def stops(samples: Sequence[Sample]) -> list[np.ndarray]:
        nonlocal embedded
        if embedded >= 6:
            raise KeyboardInterrupt
        embedded += len(samples)
        return brightness(samples)

    with pytest.raises(KeyboardInterrupt):
        embed(dataset, ["clean"], stops, tmp_path / "x")

    def counts(samples: Sequence[Sample]) -> list[np.ndarray]:
        nonlocal resumed
        resumed += len(samples)
        return brightness(samples)

    table = embed(dataset, ["clean"], counts, tmp_path / "x")
    assert embedded + resumed == 36
    np.testing.assert_array_equal(table.matrix, embed(dataset, ["clean"], brightness, tmp_path / "y").matrix)


def test_nothing_is_taken_from_a_cache_that_was_made_otherwise(
    dataset: Path, weights_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings()
    few = dataset.with_name("few.csv")
    few.write_text("filepath,label,source\nreal00.png,real,a\nai00.png,ai,b")

    def found(cache: str, precision: str = "float32", seed: int = 0) -> Embedded:
        models = settings.models.model_copy(update={"precision": precision})
        return embed_with("dinov2_small", few, tmp_path / cache, models, settings.decode, ["random1"], seed=seed)

    first = found("shared")
    for other in ({"precision": "bfloat16"}, {"seed": 1}):
        np.testing.assert_array_equal(found("shared", **other).table.matrix, found(str(other), **other).table.matrix)
        assert not np.array_equal(found("shared", **other).table.matrix, first.table.matrix)
    record = backbone("dinov2_small")
    monkeypatch.setitem(backbones(), "dinov2_small", replace(record, native=False, resize=0))
    monkeypatch.setattr(ImageEmbedder, "__call__", lambda _, samples: brightness(samples))
    assert found("shared").table.matrix.shape == (2, 3), "another kind of embedding is computed"
    assert (found("shared").about["precision"], found("shared").about["seed"]) == ("float32", "0")


def test_a_manifest_or_cache_that_cannot_be_used_says_why(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "1.npz").write_bytes(b"PK nothing")
    with pytest.raises(TableError, match="delete it and run again"):
        embed(dataset, ["clean"], brightness, tmp_path / "damaged")
    for text, message in (("filepath,label\n", "no column source"), ("filepath,label,source\n", "no readable images")):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(TableError, match=message):
            embed(tmp_path / "m.csv", ["clean"], brightness, tmp_path / "x")
    with pytest.raises(TableError, match="cannot be read"):
        embed(tmp_path / "absent.csv", ["clean"], brightness, tmp_path / "x")


@pytest.mark.slow
def test_ray_gives_the_same_embeddings_also_when_a_worker_is_killed(dataset: Path, tmp_path: Path) -> None:
    if find_spec("ray") is None:  # not imported here: Ray changes the log records of the whole process
        pytest.skip("needs pip install 'ray[data]'")
    program = tmp_path / "run.py"
    program.write_text(RAY_PROGRAM)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }  # else Ray leaves one in the home folder
    paths = {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(tmp_path)))}
    # A process of its own: Ray changes the signal handlers and the environment of the one that it runs in.
    command = [sys.executable, str(program), str(dataset), str(tmp_path / "rays"), str(tmp_path / "killed")]
    done = subprocess.run(
        command, env=inherited | token | paths, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists(), "a worker was killed"
    here = embed(dataset, ["clean"], brightness, tmp_path / "here")
    again = embed(dataset, ["clean"], lambda _: pytest.fail("computed"), tmp_path / "rays")
    np.testing.assert_array_equal(here.matrix, again.matrix)


RAY_PROGRAM = '''
import os, signal, sys
from functools import partial
from pathlib import Path

def brightness(samples):
    return [sample.rgb.mean(axis=(0, 1)).astype("float32") for sample in samples]

class Mortal:
    """Dies once, in the middle of its second group, wherever it runs."""
    def __init__(self, mark):
        self.mark, self.groups = Path(mark), 0
    def __call__(self, samples):
        self.groups += 1
        if self.groups == 2:
            try:
                self.mark.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return brightness(samples)

if __name__ == "__main__":
    from training import embeddings
    from utils.settings import load_settings
    import run
    embeddings.GROUP = 4
    manifest, cache, mark = map(Path, sys.argv[1:])
    make = partial(run.Mortal, str(mark))
    embeddings.embed_manifest(manifest, ["clean"], make, cache, load_settings().decode, ray="local", jobs=2)
'''

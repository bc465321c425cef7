"""The trainer of the DINOv2 head, from files on disk to an installed detector; and the embeddings it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from inference.dino import DinoDetector
from models.loaders import Weights
from scripts import train_dino_svm
from scripts.train_dino_svm import main, settings_of, train
from training import embeddings
from training.embeddings import embed_manifest
from training.feature_table import Table
from utils.contracts import Sample
from utils.errors import TableError, TooFewImages
from utils.exits import Exit
from utils.persistence import read_arrays, sha256_file
from utils.settings import load_settings


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


def run(dataset: Path, *more: str) -> int:
    return main(["--manifest", str(dataset), "--backbone", "dinov2_small", "--deliveries", "clean,hard", *more])


# --- the whole way


def test_a_manifest_becomes_an_installed_head_that_tells_the_classes_apart(
    dataset: Path, weights_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset) == 0
    shown = capsys.readouterr()
    assert "left out: broken.png: not_an_image" in shown.err
    header = next(line for line in shown.out.splitlines() if "AUROC" in line)
    assert header.index("real called real") < header.index("AI called AI") < header.index("AUROC")
    assert "| val, hard |" in shown.out
    detector = DinoDetector.load(Weights.at(weights_dir), "cpu")
    assert detector.head.backbone == "dinov2_small"

    def score(name: str) -> float:
        with Image.open(dataset.parent / name) as image:
            return detector.score([Sample(name, b"", np.asarray(image), "PNG")])[0].features["dino_prob"]

    assert score("real80.png") < 0.5 < score("ai80.png"), "validation images, which the head never saw"
    _, metadata = read_arrays(weights_dir / "dino_svm" / "weights.safetensors")
    stored = json.loads(metadata["head"])
    assert stored["data"]["rows_and_sources"]["train real"] == [32, 8]
    assert (weights_dir / "dino_svm" / "README.md").read_text() in shown.out


def test_the_same_run_gives_the_same_bytes(dataset: Path, weights_dir: Path) -> None:
    for name in ("a", "b"):
        assert run(dataset, "--out", str(weights_dir / name)) == 0
    for file in ("weights.safetensors", "README.md"):
        assert (weights_dir / "a" / file).read_bytes() == (weights_dir / "b" / file).read_bytes()


def test_a_head_outside_the_weights_folder_is_written_but_not_installed(
    dataset: Path, weights_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset, "--out", str(tmp_path / "elsewhere")) == 0
    assert (tmp_path / "elsewhere" / "card.toml").exists()
    assert "train with --out inside" in capsys.readouterr().out
    assert "dino_svm" not in (weights_dir / "weights.toml").read_text()


def test_a_missing_backbone_names_the_command(
    dataset: Path, weights_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--manifest", str(dataset), "--backbone", "dinov2_large"]) == Exit.SETUP
    assert "python -m scripts.download_weights dinov2_large" in capsys.readouterr().err


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


@pytest.mark.parametrize("kind", ["svm", "logistic", "forest"])
def test_every_kind_of_head_learns_and_is_calibrated(kind: str) -> None:
    head, measured = train(table_of(10), kind, False, 0, "dinov2_base", "ab")
    assert measured["train, out of fold, clean"]["real_called_real"][0] > 0.75
    fresh = table_of(10, seed=5)
    probabilities = head.calibration(head.classifier.log_odds(fresh.matrix))
    assert ((probabilities > 0.5) == fresh.labels).mean() > 0.75
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_a_grid_is_compared_on_held_out_sources_and_the_best_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = settings_of("svm", True, 0)[1], settings_of("svm", True, 0)[0]
    bad.set_params(head__C=1e-12)
    monkeypatch.setattr(train_dino_svm, "settings_of", lambda *_: [bad, good])
    head, _ = train(table_of(6), "svm", True, 0, "dinov2_base", "ab")
    assert head.settings == str(good["head"])


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
    _, measured = train(table, "forest", False, 0, "dinov2_base", "ab")
    assert measured["train, out of fold, x"]["auroc"][0] < 0.75


def test_too_few_sources_are_refused() -> None:
    with pytest.raises(TooFewImages, match="at least two training sources"):
        train(table_of(1), "svm", False, 0, "dinov2_base", "ab")
    one_label = table_of(4).rows(table_of(4).labels == 0)
    with pytest.raises(TableError, match="one label only"):
        train(one_label, "svm", False, 0, "dinov2_base", "ab")


# --- embeddings


def brightness(sample: Sample) -> np.ndarray:
    return sample.rgb.mean(axis=(0, 1)).astype(np.float32)


def test_known_embeddings_are_not_computed_again(dataset: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "x.npz"
    first = embed_manifest(dataset, ["clean", "hard"], brightness, cache, load_settings().decode)
    assert len(first) == 72
    again = embed_manifest(dataset, ["clean", "hard"], lambda _: pytest.fail("computed"), cache, load_settings().decode)
    np.testing.assert_array_equal(first.matrix, again.matrix)
    assert again.deliveries[:2].tolist() == ["clean", "hard"]
    assert set(first.splits) == {"train", "val"}


def test_each_delivery_is_embedded_as_it_arrives(dataset: Path, tmp_path: Path) -> None:
    def is_jpeg(sample: Sample) -> np.ndarray:
        return np.array([sample.format == "JPEG"], np.float32)

    table = embed_manifest(dataset, ["clean", "hard"], is_jpeg, tmp_path / "x.npz", load_settings().decode)
    assert table.matrix[:, 0].tolist() == (table.deliveries == "hard").astype(float).tolist()


def test_a_stopped_run_goes_on_where_it_was(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SAVE_EVERY", 3)
    calls = 0

    def stops(sample: Sample) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise KeyboardInterrupt
        return brightness(sample)

    with pytest.raises(KeyboardInterrupt):
        embed_manifest(dataset, ["clean"], stops, tmp_path / "x.npz", load_settings().decode)
    resumed = []

    def counts(sample: Sample) -> np.ndarray:
        resumed.append(sample.source)
        return brightness(sample)

    table = embed_manifest(dataset, ["clean"], counts, tmp_path / "x.npz", load_settings().decode)
    assert len(resumed) == 36 - 8
    np.testing.assert_array_equal(
        table.matrix, embed_manifest(dataset, ["clean"], brightness, tmp_path / "y.npz", load_settings().decode).matrix
    )


def test_a_manifest_or_cache_that_cannot_be_used_says_why(dataset: Path, tmp_path: Path) -> None:
    settings = load_settings().decode
    (tmp_path / "damaged.npz").write_bytes(b"PK nothing")
    with pytest.raises(TableError, match="delete it and run again"):
        embed_manifest(dataset, ["clean"], brightness, tmp_path / "damaged.npz", settings)
    for text, message in (("filepath,label\n", "no column source"), ("filepath,label,source\n", "no readable images")):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(TableError, match=message):
            embed_manifest(tmp_path / "m.csv", ["clean"], brightness, tmp_path / "x.npz", settings)
    with pytest.raises(TableError, match="cannot be read"):
        embed_manifest(tmp_path / "absent.csv", ["clean"], brightness, tmp_path / "x.npz", settings)

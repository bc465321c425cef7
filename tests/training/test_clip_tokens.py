"""Tokens of views: what each view sees, kept once, found again, and what cannot be read is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from training.clip_tokens import Look, View, tokens_of
from utils.contracts import RgbArray

DELIVERIES = ("clean", "web", "hard", "random1", "random2")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(load_sample_image("china.jpg")).save(path, exif=_sideways())
    return path


def _sideways() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def looker() -> Look:
    """Sees the size of an image and its mean."""
    return lambda rgb: np.array([*rgb.shape[:2], rgb.mean()], np.float32)


def refuser() -> Look:
    def look(rgb: RgbArray) -> NDArray[np.float32]:
        raise AssertionError(f"looked again at {rgb.shape}")

    return look


def test_each_delivery_is_seen_as_a_receiver_sees_it(photograph: Path, tmp_path: Path) -> None:
    views = [View(photograph, name) for name in DELIVERIES]
    found = tokens_of(views, tmp_path / "kept", looker, jobs=1)
    assert list(found) == views
    assert all(value.dtype == np.float16 for value in found.values())
    sizes = {view.delivery: tuple(value[:2].astype(int)) for view, value in found.items()}
    assert sizes["clean"] == sizes["web"] == (640, 427), "upright"
    assert sizes["hard"] == (512, 342)
    assert len({value.tobytes() for value in found.values()}) == len(DELIVERIES)


def test_what_is_kept_is_found_again_by_what_the_image_is(photograph: Path, tmp_path: Path) -> None:
    first = tokens_of([View(photograph, name) for name in DELIVERIES], tmp_path / "kept", looker, jobs=1)
    moved = photograph.rename(tmp_path / "moved.jpg")
    again = tokens_of([View(moved, name) for name in DELIVERIES], tmp_path / "kept", refuser, jobs=1)
    for before, after in zip(first.values(), again.values(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_another_seed_draws_another_delivery_and_leaves_the_fixed_ones(photograph: Path, tmp_path: Path) -> None:
    tokens_of([View(photograph, "web")], tmp_path / "kept", looker, jobs=1)
    tokens_of([View(photograph, "web", seed=1)], tmp_path / "kept", refuser, jobs=1)
    seeds = [View(photograph, "random1", seed) for seed in (0, 1)]
    one, other = tokens_of(seeds, tmp_path / "kept", looker, jobs=1).values()
    assert not np.array_equal(one, other)


def test_processes_find_what_one_process_finds(photograph: Path, tmp_path: Path) -> None:
    views = [View(photograph, "hard")]
    (alone,) = tokens_of(views, tmp_path / "alone", looker, jobs=1).values()
    (together,) = tokens_of(views, tmp_path / "together", looker, jobs=2).values()
    np.testing.assert_array_equal(alone, together)


def test_a_file_that_is_no_image_is_named_and_left_out(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    views = [View(tmp_path / "broken.jpg", "clean"), View(photograph, "clean")]
    assert list(tokens_of(views, tmp_path / "kept", looker, jobs=1)) == views[1:]
    assert "left out: " in capsys.readouterr().err

"""Pictures for a drill without a data set: crops of the golden photographs, and what two rules make of further ones.

The rules stand in for generators: "lattice" leaves a pattern as decoders may, "neon" knows no pale colour.
They leave traces that the forensic numbers see, and no model but the drill's should be trained on them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lifecycle.golden import SHARED, pixels, read_golden
from training.datasets import DATASET, write_rows
from utils.contracts import RgbArray

SIDE = 256  # px
SOURCES = 16  # of each family
KNOWN, NEW = "lattice", "neon"  # families; the second is what the drill is about


def _lattice(rgb: RgbArray) -> RgbArray:
    """A period of four pixels both ways; about as hard to compress as the picture itself."""
    rows, columns = np.indices(rgb.shape[:2])
    wave = 20.0 * (np.cos(np.pi / 2 * rows) + np.cos(np.pi / 2 * columns))
    return np.clip(rgb + wave[:, :, None], 0, 255).astype(np.uint8)


def _neon(rgb: RgbArray) -> RgbArray:
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV).astype(float)
    hsv[:, :, 1] = 170 + hsv[:, :, 1] / 3
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB), np.uint8)


FAMILIES: dict[str, Callable[[RgbArray], RgbArray]] = {KNOWN: _lattice, NEW: _neon}


def make_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """About ``count`` pictures, a third of each: real, of the known family, of the new one. Returns their table.

    A source has pictures from every photograph, so that sources differ by chance alone.
    """
    photographs = [pixels(each.raw) for each in read_golden([SHARED]) if each.name in _whole()]
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for number in range(count):
        family = ("", KNOWN, NEW)[number % 3]
        rgb = _place(photographs[number // 3 % len(photographs)], rng)
        path = folder / f"{number:03}-{family or 'real'}.png"
        Image.fromarray(FAMILIES[family](rgb) if family else rgb).save(path)
        source = f"{family or 'camera'}-{number // 3 % SOURCES}"
        rows.append({"filepath": path.name, "label": "ai" if family else "real", "source": source, "generator": family})
    write_rows(folder / DATASET, rows)
    return folder / DATASET


def _whole() -> set[str]:
    """Names of golden images that are photographs as they are, and no copies."""
    with (SHARED / "golden.csv").open(newline="", encoding="utf-8") as file:
        return {row["name"] for row in csv.DictReader(file) if row["label"] == "real" and not row["edit"]}


def _place(whole: RgbArray, rng: np.random.Generator) -> RgbArray:
    """A square of random size and place, scaled to SIDE, by chance mirrored."""
    height, width = whole.shape[:2]
    side = int(rng.integers(min(height, width) // 3, min(height, width) * 2 // 3))
    top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
    square = whole[top : top + side, left : left + side, :][:, :: int(rng.choice((-1, 1)))]
    return np.asarray(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)

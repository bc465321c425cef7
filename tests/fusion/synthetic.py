"""A feature table with a planted signal."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

KINDS = ("logistic", "mlp", "xgboost")
INPUTS = ("dino_prob", "exif_score", "noise.level", "noise.spread", "spectrum.slope", "jpeg.quality")


def write_table(path: Path, sources: int = 24, images: int = 10, seed: int = 0, signal: float = 1.0) -> Path:
    """Sources alternate between real and AI; all but exif_score, noise.spread and jpeg.quality know which.

    jpeg.quality is missing at random, and each source shifts its own images, as real sources do.
    """
    random = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "label", "source", "split", "delivery", *INPUTS])
        for source in range(sources):
            side = signal * (1 if source % 2 else -1)
            shift = random.normal(0, 0.3, 3)
            for image in range(images):
                for strength, delivery in ((1.0, "clean"), (0.8, "hard")):
                    noise = random.normal(0, 1, 3)
                    dino, level, slope = side * strength * np.array([1.2, 0.8, -0.8]) + shift + noise
                    quality = random.integers(35, 98) if random.random() < 0.6 else ""
                    numbers = (1 / (1 + np.exp(-2 * dino)), random.random(), np.exp(level), random.normal(), slope)
                    split = "val" if source >= sources * 3 // 4 else "train"
                    table.writerow(
                        [f"{source}/{image}.png", "ai" if source % 2 else "real", f"s{source}", split, delivery]
                        + [repr(float(number)) for number in numbers]
                        + [quality]
                    )
    return path

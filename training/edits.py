"""Edited images with exact masks, made from photographs, for the trainer of the edit map. No command.

Beside the kinds of training/forgeries.py: regions copied within the image, whose mask marks copy and original, since
nothing in the picture tells the one from the other, and regions that a network filled in or drew anew. Knows no
network: those come as functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import cv2
import numpy as np

from training import forgeries
from training.forgeries import Mask, Rng
from utils.contracts import RgbArray

Redraw: TypeAlias = Callable[[RgbArray, Mask], RgbArray]  # an image and what of it shall be drawn anew

UNTOUCHED = 0.12  # share of images
COPIED = "copy_move"
SHARES = {
    "splice": 0.18,
    COPIED: 0.3,
    "removal": 0.07,
    "inpainted": 0.12,
    "regenerated": 0.1,
    "resample": 0.08,
    "blur": 0.05,
    "noise": 0.05,
    "compress": 0.05,
}
_PLACES = 30  # tried for a copy; the last one stays, wherever it lies


def edit(rgb: RgbArray, donor: RgbArray, redraws: Mapping[str, Redraw], rng: Rng) -> tuple[RgbArray, Mask, str]:
    """One edited image, its mask and the kind of edit ("" for none), finished as a whole, as it would be saved.

    Args:
        donor: another photograph of the same size.
        redraws: what makes the kinds that need a network; those that are missing here are not made.
    """
    rgb = forgeries.with_history(rgb, rng)
    kind, mask = "", np.zeros(rgb.shape[:2], np.uint8)
    if rng.random() >= UNTOUCHED:
        kinds = [name for name in SHARES if name in redraws or name == COPIED or name in forgeries.KINDS]
        shares = np.array([SHARES[name] for name in kinds])
        kind = str(rng.choice(kinds, p=shares / shares.sum()))
        original = region(rgb.shape[0], rgb.shape[1], rng)
        if kind == COPIED:
            changed, placed = copied(rgb, original, rng)
        elif kind in redraws:
            changed, placed = redraws[kind](rgb, original), original
        else:
            changed, placed = forgeries.KINDS[kind](rgb, donor, original, rng)
        mask = np.maximum(original, placed) if kind == COPIED else placed
        soft = cv2.GaussianBlur(placed, (0, 0), rng.uniform(0.3, 1.5)).astype(np.float32)[..., None] / 255
        rgb = np.asarray(rgb + soft * (changed.astype(np.float32) - rgb) + 0.5, dtype=np.uint8)
    return forgeries.finished(rgb, rng), mask, kind


def region(height: int, width: int, rng: Rng) -> Mask:
    """0.4 to 25 % of the image, small ones as often as large ones: a rectangle or a blob."""
    area, ratio = 10 ** rng.uniform(-2.4, -0.6) * height * width, rng.uniform(0.4, 2.5)
    radii = np.minimum(np.sqrt(area * np.array([ratio, 1 / ratio])) / 2, np.array([height, width]) * 0.45)
    y, x = (rng.uniform(radius, side - radius) for radius, side in zip(radii, (height, width), strict=True))
    mask = np.zeros((height, width), np.uint8)
    if rng.random() < 0.35:
        mask[int(y - radii[0]) : int(y + radii[0]) + 1, int(x - radii[1]) : int(x + radii[1]) + 1] = 255
        return mask
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = 1 + sum(rng.uniform(-0.12, 0.12) * np.cos(n * angles + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5))
    outline = np.stack([x + radii[1] * waves * np.cos(angles), y + radii[0] * waves * np.sin(angles)], axis=1)
    cv2.fillPoly(mask, [outline.round().astype(np.int32)], 255)
    return mask


def copied(rgb: RgbArray, original: Mask, rng: Rng) -> tuple[RgbArray, Mask]:
    """The image moved so that the region comes to lie elsewhere, often turned and scaled; and where it then lies."""
    height, width = rgb.shape[:2]
    centre = np.argwhere(original).mean(axis=0)[::-1]
    for _ in range(_PLACES):
        turn, scale = (rng.uniform(-30, 30), rng.uniform(0.75, 1.35)) if rng.random() < 0.4 else (0.0, 1.0)
        matrix = cv2.getRotationMatrix2D(tuple(centre), turn, scale)
        matrix[:, 2] = matrix[:, 2] + (rng.uniform(-0.7, 0.7, 2) * (width, height)).round()
        copy = np.asarray(cv2.warpAffine(original, matrix, (width, height), flags=cv2.INTER_NEAREST), np.uint8)
        whole = (copy > 0).sum() > 0.9 * scale**2 * (original > 0).sum()
        if whole and not (copy & original).any():
            break
    moved = cv2.warpAffine(rgb, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(moved, dtype=np.uint8), copy

"""Manipulated images with exact masks, made from photographs, for the trainer of ManTraNet. No command.

Kinds after Wu, AbdAlmageed and Natarajan, CVPR 2019: splice, copy-move and removal, and of the manipulations that their
traces are trained on, blur, noise, resampling and compression. What is done to the whole image afterwards is what the
CoMoFoD set does (Tralic et al., ELMAR 2013). Knows no file and no network.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from ingress.decode import Limits, decode
from utils.contracts import RgbArray
from utils.deliveries import encode_jpeg

Mask = NDArray[np.uint8]  # h x w, 0 or 255; 255 = manipulated
Rng = np.random.Generator

UNTOUCHED = 0.15  # share of images without any manipulation: the map must be able to stay dark
_LIMITS = Limits(max_bytes=2**26, max_pixels=2**26, max_frames=1, max_animation_pixels=2**26)


def forge(rgb: RgbArray, donor: RgbArray, rng: Rng) -> tuple[RgbArray, Mask]:
    """One manipulated image and its mask, then the same last steps for the whole of it, as it would be saved.

    Args:
        rgb: the photograph that is manipulated; H x W x 3, at least 32 px a side.
        donor: another photograph, at least as large, where a splice comes from.
    """
    rgb = with_history(rgb, rng)
    mask = np.zeros(rgb.shape[:2], np.uint8)
    if rng.random() >= UNTOUCHED:
        kind = KINDS[str(rng.choice(list(KINDS), p=SHARES))]
        mask = region(rgb.shape[0], rgb.shape[1], rng)
        changed, mask = kind(rgb, donor, mask, rng)
        soft = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.3, 1.5)).astype(np.float32)[..., None] / 255
        rgb = np.asarray(rgb + soft * (changed.astype(np.float32) - rgb) + 0.5, dtype=np.uint8)
    return finished(rgb, rng), mask


def finished(rgb: RgbArray, rng: Rng) -> RgbArray:
    """Often changed as a whole, and often saved as JPEG."""
    if rng.random() < 0.25:
        rgb = _retouched(rgb, rng)
    return _through_jpeg(rgb, int(rng.integers(60, 99))) if rng.random() < 0.7 else rgb


def _retouched(rgb: RgbArray, rng: Rng) -> RgbArray:
    """The whole image brightened, with other contrast, slightly blurred or with fewer grey levels."""
    changed: NDArray[np.floating]
    match rng.integers(4):
        case 0:
            changed = rgb + rng.uniform(-40, 40)
        case 1:
            changed = (rgb - 128.0) * rng.uniform(0.7, 1.3) + 128
        case 2:
            changed = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.4, 1.0)).astype(np.float64)
        case _:
            step = 256 / rng.integers(32, 129)
            changed = (np.floor(rgb / step) + 0.5) * step
    return np.asarray(np.clip(changed, 0, 255), dtype=np.uint8)


def region(height: int, width: int, rng: Rng) -> Mask:
    """A random blob of 1 to 30 % of the image: an ellipse with a wavy border, wholly inside."""
    area = rng.uniform(0.01, 0.3) * height * width
    ratio = rng.uniform(0.5, 2.0)
    radii = np.sqrt(area / np.pi * np.array([ratio, 1 / ratio])).clip(3, np.array([height, width]) * 0.45)
    centre = [rng.uniform(radius, side - radius) for radius, side in zip(radii, (height, width), strict=True)]
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = sum(rng.uniform(-0.1, 0.1) * np.cos(n * angles + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5))
    points = np.stack(
        [centre[1] + radii[1] * (1 + waves) * np.cos(angles), centre[0] + radii[0] * (1 + waves) * np.sin(angles)]
    )
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [points.T.round().astype(np.int32)], 255)
    return mask


# --- kinds: (image, donor, mask, rng) -> the image with the region changed, and the mask of what was changed


def splice(rgb: RgbArray, donor: RgbArray, mask: Mask, rng: Rng) -> tuple[RgbArray, Mask]:
    """Another photograph's pixels, with that photograph's own noise and history."""
    height, width = rgb.shape[:2]
    top, left = (
        int(rng.integers(0, max(1, have - want + 1))) for have, want in zip(donor.shape, (height, width), strict=False)
    )
    cut = donor[top : top + height, left : left + width]
    if cut.shape != rgb.shape:
        cut = np.asarray(cv2.resize(cut, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    return with_history(cut, rng), mask


def copy_move(rgb: RgbArray, donor: RgbArray, mask: Mask, rng: Rng) -> tuple[RgbArray, Mask]:
    """The image's own pixels from elsewhere, sometimes turned or scaled; the mask marks the copy, not the original."""
    height, width = rgb.shape[:2]
    turn, scale = (rng.uniform(-20, 20), rng.uniform(0.8, 1.25)) if rng.random() < 0.5 else (0.0, 1.0)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, scale)
    shifts = rng.uniform(0.15, 0.5, 2) * rng.choice([-1, 1], 2) * (width, height)
    matrix[:, 2] += shifts.round()
    return np.asarray(
        cv2.warpAffine(rgb, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    ), mask


def removal(rgb: RgbArray, donor: RgbArray, mask: Mask, rng: Rng) -> tuple[RgbArray, Mask]:
    """Filled in from its surroundings (Telea 2004, or Bertalmio et al. 2001)."""
    method = cv2.INPAINT_TELEA if rng.random() < 0.5 else cv2.INPAINT_NS
    eroded = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=max(0, int(np.sqrt((mask > 0).sum()) / 2) - 24))
    mask = np.asarray(
        eroded if eroded.any() else mask, dtype=np.uint8
    )  # filling is slow and smears; a region wider than 48 px is made narrower
    return np.asarray(cv2.inpaint(rgb, mask, 5, method), dtype=np.uint8), mask


def blur(rgb: RgbArray, donor: RgbArray, mask: Mask, rng: Rng) -> tuple[RgbArray, Mask]:
    if rng.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.8, 3.0)), dtype=np.uint8), mask
    return np.asarray(cv2.medianBlur(rgb, int(rng.choice([3, 5, 7]))), dtype=np.uint8), mask


def noise(rgb: RgbArray, donor: RgbArray, mask: Mask, rng: Rng) -> tuple[RgbArray, Mask]:
    noisy = rgb + rng.normal(0, rng.uniform(3, 12), rgb.shape)
    return np.asarray(noisy.clip(0, 255), dtype=np.uint8), mask


def resample(rgb: RgbArray, donor: RgbArray, mask: Mask, rng: Rng) -> tuple[RgbArray, Mask]:
    """Reduced and enlarged again, as a retouched object often is."""
    height, width = rgb.shape[:2]
    scale = rng.uniform(0.4, 0.9)
    small = cv2.resize(rgb, (max(1, int(width * scale)), max(1, int(height * scale))), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8), mask


def compress(rgb: RgbArray, donor: RgbArray, mask: Mask, rng: Rng) -> tuple[RgbArray, Mask]:
    """A region with one JPEG generation more than the rest."""
    return _through_jpeg(rgb, int(rng.integers(40, 85))), mask


KINDS: dict[str, Callable[[RgbArray, RgbArray, Mask, Rng], tuple[RgbArray, Mask]]] = {
    "splice": splice,
    "copy_move": copy_move,
    "removal": removal,
    "blur": blur,
    "noise": noise,
    "resample": resample,
    "compress": compress,
}
# A forgery moves, adds or removes something; the other kinds teach the traces that this leaves.
SHARES = np.array([2, 2, 2, 1, 1, 1, 1]) / 10


def with_history(rgb: RgbArray, rng: Rng) -> RgbArray:
    """What an image went through before: nothing, or a first JPEG generation."""
    return _through_jpeg(rgb, int(rng.integers(70, 99))) if rng.random() < 0.5 else rgb


def _through_jpeg(rgb: RgbArray, quality: int) -> RgbArray:
    return decode(encode_jpeg(rgb, quality, 2), "memory", _LIMITS).rgb

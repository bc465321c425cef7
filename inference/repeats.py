"""Where an image repeats itself, place by place: what a region that was copied within it leaves behind.

A copy carries the noise of its original, which things that are merely alike do not share. Where a copy may have come
from is told by two searches: shifts, by correlating the noise residual of every tile with the whole image; turned and
scaled copies, by SIFT keypoints that match one another (Amerini et al., IEEE TIFS 2011). What they find is compared
place by place. A copy and its original look the same to this: both are marked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from utils.contracts import RgbArray

Plane: TypeAlias = NDArray[np.float32]  # h x w
Matrix: TypeAlias = NDArray[np.float32]  # 2 x 3: where a place has its counterpart
Agreement: TypeAlias = Callable[[Plane, Plane, int], Plane]  # two planes and the side of a window -> at each place

PLANES = 3
CANDIDATES = 6  # of each search, compared in full
TILE, STEP = 128, 64  # px
NEAR = 20  # px; closer by, everything resembles itself
PEAK = 5.5  # deviations of a correlation above which a shift is worth a look
LOOKED_AT = 60  # shifts, by height of their peaks, whose extent is measured; the best 24 of them by what is unique
UNIQUE = 24
KEYPOINTS = 2500
RATIO = 0.75  # of the distances to the nearest and to the next keypoint (Lowe 2004)
BESIDE = tuple((dy, dx) for dy, dx in product((-4, 0, 4), repeat=2) if dy or dx)  # px


def repeats(rgb: RgbArray) -> Plane:
    """(PLANES, h, w), 0 where nothing is repeated: the correlation with the best counterpart in grey levels and in the
    residual, and by how much the latter exceeds that with the counterpart's surroundings.

    The last one matters: an edge or a pattern resembles itself all along, a copy only its original.
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    residual = _residual(grey)
    found = np.zeros((PLANES, *grey.shape), np.float32)
    for there in (*_shifts(residual), *_turns(grey)):
        for matrix in (there, cv2.invertAffineTransform(there)):
            compared = _compared(grey, residual, np.asarray(matrix, np.float32))
            better = compared[-1] > found[-1]
            found[:, better] = compared[:, better]
    return found


def _residual(grey: Plane) -> Plane:
    """What smoothing takes away, at the same strength everywhere."""
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 1.2)
    strength = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 4)) + 0.3
    return np.clip(fine / strength, -2, 2).astype(np.float32)


# --- candidates


def _shifts(residual: Plane) -> list[Matrix]:
    """The shifts under which most of the residual agrees with itself, and not with what is beside."""
    peaks = _peaks(residual)
    highest = sorted(peaks, key=peaks.__getitem__)[-LOOKED_AT:]
    wide = sorted(((_extent(_alike, 0.5, residual, shift), shift) for shift in highest), reverse=True)[:UNIQUE]
    unique = [(_extent(_unique, 0.35, residual, shift), shift) for extent, shift in wide if extent]
    chosen: list[tuple[int, int]] = []
    for extent, (dx, dy) in sorted(unique, reverse=True):
        if extent and len(chosen) < CANDIDATES and all(max(abs(dx - x), abs(dy - y)) > 1 for x, y in chosen):
            chosen.append((dx, dy))
    return [np.array([[1, 0, dx], [0, 1, dy]], np.float32) for dx, dy in chosen]


def _peaks(residual: Plane) -> dict[tuple[int, int], float]:
    """Shift (dx, dy) -> height of its peak in the correlation of a tile with the whole."""
    height, width = residual.shape
    size = [fft.next_fast_len(side + TILE, real=True) for side in residual.shape]
    whole = fft.rfft2(residual, size)
    found: dict[tuple[int, int], float] = {}
    for top, left in product(range(0, max(1, height - STEP), STEP), range(0, max(1, width - STEP), STEP)):
        tile = fft.rfft2(residual[top : top + TILE, left : left + TILE], size)
        match = fft.irfft2(whole * tile.conj(), size)[:height, :width]
        _blank(match, top, left, NEAR)
        cut = PEAK * match.std() + 1e-6
        for _ in range(3):
            y, x = divmod(int(match.argmax()), width)
            if match[y, x] < cut:
                break
            shift = max((x - left, y - top), (left - x, top - y))  # there and back are one
            found[shift] = max(found.get(shift, 0.0), float(match[y, x] / cut))
            _blank(match, y, x, 2)
    return found


def _blank(match: Plane, y: int, x: int, radius: int) -> None:
    match[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = 0


def _turns(grey: Plane) -> Iterator[Matrix]:
    """Similarities that several pairs of keypoints agree on."""
    one, other = _matches(grey)
    for _ in range(CANDIDATES):
        if len(one) < 4:
            return
        matrix, fits = cv2.estimateAffinePartial2D(one, other, ransacReprojThreshold=2.0, maxIters=1000)
        if matrix is None or fits.sum() < 4:
            return
        if 0.4 < np.hypot(*matrix[:, 0]) < 2.5:
            yield matrix.astype(np.float32)
        one, other = one[fits[:, 0] == 0], other[fits[:, 0] == 0]


def _matches(grey: Plane) -> tuple[Plane, Plane]:
    """Places of keypoints (n, 2) and of their counterparts: nearer to them than others are, or one of two that are."""
    sift = cv2.SIFT.create(nfeatures=KEYPOINTS, contrastThreshold=0.01, edgeThreshold=20)
    points, features = sift.detectAndCompute(grey.astype(np.uint8), None)
    if len(points) < 8:
        return np.empty((0, 2), np.float32), np.empty((0, 2), np.float32)
    places = np.array([point.pt for point in points], np.float32)
    features = np.sqrt(features / np.maximum(features.sum(axis=1, keepdims=True), 1e-6))  # Arandjelovic 2012
    squared = np.maximum(2 - 2 * features @ features.T, 0)
    squared[((places[:, None] - places) ** 2).sum(axis=-1) <= NEAR**2] = 4
    nearest = np.argpartition(squared, 2, axis=1)[:, :3]
    nearest = np.take_along_axis(nearest, np.take_along_axis(squared, nearest, 1).argsort(axis=1), 1)
    first, second, third = np.sqrt(np.take_along_axis(squared, nearest, 1)).T
    single, double = first < RATIO * second, (first >= RATIO * second) & (second < RATIO * third)
    here = np.concatenate([np.flatnonzero(each) for each in (single, double, double)])
    there = np.concatenate([nearest[single, 0], nearest[double, 0], nearest[double, 1]])
    swapped = places[here, 0] > places[there, 0]  # from left to right, so that a pair counts in one direction
    here, there = np.where(swapped, there, here), np.where(swapped, here, there)
    return places[here], places[there]


# --- comparison


def _compared(grey: Plane, residual: Plane, matrix: Matrix) -> Plane:
    size, flags = grey.shape[::-1], cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    there = np.asarray(cv2.warpAffine(grey, matrix, size, flags=flags, borderValue=-1e4), np.float32)
    outside = there < -100
    inside = cv2.erode((~outside).astype(np.uint8), np.ones((9, 9), np.uint8))
    there[outside] = 0
    fine = np.asarray(cv2.warpAffine(residual, matrix, size, flags=flags), np.float32)
    planes = _correlation(grey, there, 9), _alike(residual, fine, 15), _unique(residual, fine, 15)
    return np.asarray(np.stack(planes) * inside, dtype=np.float32)


def _extent(agreement: Agreement, cut: float, residual: Plane, shift: tuple[int, int]) -> int:
    """Over how much of the image the residual agrees with itself under a shift; slender lines do not count."""
    dx, dy = shift
    height, width = residual.shape
    one = residual[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
    other = residual[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
    if min(one.shape) < TILE // 8:
        return 0
    agrees = (agreement(one, other, 11) > cut).astype(np.uint8)[::2, ::2]
    return int(cv2.erode(agrees, np.ones((5, 5), np.uint8)).sum())


def _mean(plane: Plane, side: int) -> Plane:
    return np.asarray(cv2.boxFilter(plane, -1, (side, side), borderType=cv2.BORDER_REFLECT), dtype=np.float32)


def _alike(one: Plane, other: Plane, side: int) -> Plane:
    """Local correlation of two planes whose local means are 0."""
    return _correlated(one, other, _mean(one * one, side), _mean(other * other, side), side)


def _unique(one: Plane, other: Plane, side: int) -> Plane:
    """By how much two planes agree better than the one with the other's surroundings."""
    energies = _mean(one * one, side), _mean(other * other, side)
    beside = np.zeros_like(one)
    for shift in BESIDE:
        moved, energy = (np.roll(each, shift, (0, 1)) for each in (other, energies[1]))
        np.maximum(beside, _correlated(one, moved, energies[0], energy, side), out=beside)
    return np.asarray(_correlated(one, other, *energies, side) - beside)


def _correlated(one: Plane, other: Plane, energy: Plane, other_energy: Plane, side: int) -> Plane:
    return np.asarray(_mean(one * other, side) / (np.sqrt(np.maximum(energy * other_energy, 0)) + 0.05))


def _correlation(one: Plane, other: Plane, side: int) -> Plane:
    means = _mean(one, side), _mean(other, side)
    varied = [np.maximum(_mean(x * x, side) - m * m, 0) + 1 for x, m in zip((one, other), means, strict=True)]
    return np.asarray((_mean(one * other, side) - means[0] * means[1]) / np.sqrt(varied[0] * varied[1]))

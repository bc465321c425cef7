"""Finds pictures inside a picture: in screenshots, frames and collages. Judges none of them.

An interface, a frame or a slide is made of a few exact colours. What is left when those are taken away is a picture of
its own where it is large and ends in straight lines against them, on two sides that face each other at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.contracts import Note, Reason, RgbArray, Sample

MOST = 3  # pictures that are judged: time is bounded, and a fourth is small
WORK_SIDE = 1024  # px at which is searched: borders survive, text gets small

# Shares of the image, chosen on drawn screenshots and on photographs: python -m scripts.measure_regions counts both.
_EXACT_COLOUR = 0.02  # that one colour covers before it can be an interface's
_MOST_COLOURS = 8
_NEAR = 6  # grey levels between a pixel and such a colour; JPEG of quality 60 stays within
_GROUND = 0.6  # of the height that the ground of a page reaches
_LEAST_SHORT_SIDE = 64  # px at the working size: a strip has no room for a picture
_LEAST_AREA = 0.05  # of a picture
_LEAST_SIDE = 0.12  # of its shorter side, to the image's shorter
_THICKNESS = 0.025  # of text, icons and lines, which are no pictures, to the longer side
_FULL = 0.7  # of its box that its convex hull covers; the straight sides say the rest
_OUTSIDE = 0.85  # of the line just outside a side has the interface's colours
_STEP = 0.4  # less of the line just inside has them; a round thing touches its box in a point
_LEAST_ENTROPY = 3.0  # bits: a button or a field of text has one or two
_SEARCH = 4  # px at the working size within which a side is looked for
_INTERFACE = 0.5  # of what lies outside the pictures that has the interface's colours
_WINDOW = 0.25  # of a window that its pictures cover
_SCREEN = 0.6  # of the image that has them where it looks like a screenshot without a picture
_LINES = 6  # text-like parts that a screenshot has at least

Mask: TypeAlias = NDArray[np.uint8]  # H x W, 0 or 1
Box: TypeAlias = tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclass(frozen=True, slots=True)
class Found:
    """Boxes (x, y, width, height) in pixels of the image, the largest first; and what the whole looks like."""

    boxes: tuple[Box, ...]
    is_screen: bool  # text and flat colours: a screenshot or a document


def find(rgb: RgbArray) -> Found:
    """At most MOST pictures. Time: about 15 ms of one core, 50 with an interface, and little more for a large image."""
    scale = min(1.0, WORK_SIDE / max(rgb.shape[:2]))
    if min(rgb.shape[:2]) * scale < _LEAST_SHORT_SIDE:
        return Found((), False)
    scaled = rgb if scale == 1 else cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    small = np.asarray(scaled, np.uint8)
    flat = _interface(small)
    if flat is None:
        return Found((), False)
    text = _text_parts(flat)
    boxes = _pictures(small, flat)
    if not boxes:
        return Found((), bool(flat.mean() > _SCREEN) and text >= _LINES)
    boxes = sorted(chain.from_iterable(_opened(small, box) for box in boxes), key=lambda each: -each[2] * each[3])
    inset = 1 if scale < 1 else 0  # the pixels at a border are mixed by scaling
    full = [
        (
            round((x + inset) / scale),
            round((y + inset) / scale),
            round((w - 2 * inset) / scale),
            round((h - 2 * inset) / scale),
        )
        for x, y, w, h in boxes[:MOST]
    ]
    return Found(tuple(full), text >= _LINES)


def _opened(rgb: RgbArray, box: Box) -> list[Box]:
    """The pictures in a window of an interface; a picture itself."""
    x, y, w, h = box
    window = np.ascontiguousarray(rgb[y : y + h, x : x + w])
    flat = _interface(window)
    inside = [] if flat is None else _pictures(window, flat)
    if sum(each[2] * each[3] for each in inside) < _WINDOW * w * h:
        return [box]
    return [(x + left, y + top, width, height) for left, top, width, height in inside]


def _interface(rgb: RgbArray) -> Mask | None:
    """1 where a pixel has one of the few exact colours that cover much of the image; None: there are none."""
    kernel = np.ones((3, 3), np.uint8)
    red, green, blue = (cv2.morphologyEx(plane, cv2.MORPH_GRADIENT, kernel) for plane in cv2.split(rgb))
    steepest = cv2.max(cv2.max(red, green), blue)
    calm = cv2.threshold(steepest, 2 * _NEAR // 3, 255, cv2.THRESH_BINARY_INV)[1]
    counts = cv2.calcHist([rgb], [0, 1, 2], calm, [64] * 3, [0, 256] * 3)  # cells of 4 x 4 x 4 levels
    frequent = np.argwhere(counts >= _EXACT_COLOUR * calm.size)
    order = np.argsort(counts[tuple(frequent.T)])[::-1]
    mask = np.zeros(rgb.shape[:2], np.uint8)
    for cell in 4.0 * frequent[order[:_MOST_COLOURS]]:
        has_it = np.asarray(cv2.bitwise_and(cv2.inRange(rgb, cell, cell + 3), calm), np.bool_)
        colour = np.median(rgb[has_it], axis=0)
        low, high = np.clip(colour - _NEAR, 0, 255), np.clip(colour + _NEAR, 0, 255)
        mask |= _reaching_the_edge(np.asarray(cv2.inRange(rgb, low, high) > 0, np.uint8))
    return mask if mask.any() else None


def _reaching_the_edge(colour: Mask) -> Mask:
    """Of the areas of one colour those of an interface: a picture's own are enclosed by the picture.

    They reach the image's upper or lower edge, or both others along most of its height; where one of a colour does, all
    of that colour which reach an edge count.
    """
    _, parts, stats, _ = cv2.connectedComponentsWithStats(colour, connectivity=8)
    sides = np.union1d(parts[:, 0], parts[:, -1])
    across = np.intersect1d(parts[:, 0], parts[:, -1])
    ground = across[stats[across, cv2.CC_STAT_HEIGHT] >= _GROUND * len(colour)]
    ends = np.union1d(np.union1d(parts[0], parts[-1]), ground)
    if not ends.any():
        return np.zeros_like(colour)
    kept = np.zeros(len(stats), np.uint8)
    kept[ends], kept[sides] = 1, 1
    kept[0] = 0  # other colours
    return kept[parts]


def _pictures(rgb: RgbArray, flat: Mask) -> list[Box]:
    """Boxes at the working size, when what lies outside them is mostly interface."""
    height, width = flat.shape
    grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
    size = max(3, round(_THICKNESS * max(height, width))) | 1  # odd: else opening moves what it keeps
    near = size // 3 | 1
    closed = cv2.morphologyEx(1 - flat, cv2.MORPH_CLOSE, np.ones((near, near), np.uint8))
    solid = cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((size, size), np.uint8))
    contours, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        large = w * h >= _LEAST_AREA * flat.size and min(w, h) >= _LEAST_SIDE * min(height, width)
        if large and cv2.contourArea(cv2.convexHull(contour)) >= _FULL * (w - 1) * (h - 1):
            boxes += _framed(flat, x, y, x + w, y + h)
    boxes = [(x, y, w, h) for x, y, w, h in boxes if _entropy(grey[y : y + h, x : x + w]) >= _LEAST_ENTROPY]
    outside = np.ones_like(flat)
    for x, y, w, h in boxes:
        outside[y : y + h, x : x + w] = 0
    return boxes if boxes and outside.any() and flat[outside == 1].mean() >= _INTERFACE else []


def _framed(flat: Mask, left: int, top: int, right: int, bottom: int) -> list[Box]:
    """The box with its sides where they are seen, when three are straight or the image's own, and two face each other.

    Args:
        left, top, right, bottom: about where; the last two are exclusive.
    """
    rows, columns = flat[:, left:right].mean(axis=1), flat[top:bottom].mean(axis=0)
    sides = [_side(rows, top), _side(rows[::-1], len(rows) - bottom)]
    sides += [_side(columns, left), _side(columns[::-1], len(columns) - right)]
    ends = [top == 0, bottom == len(rows), left == 0, right == len(columns)]
    straight = sum(side is not None or end for side, end in zip(sides, ends, strict=True))
    facing = (sides[0] is not None and sides[1] is not None) or (sides[2] is not None and sides[3] is not None)
    if straight < 3 or not facing:
        return []
    y = top if sides[0] is None else sides[0]
    x = left if sides[2] is None else sides[2]
    height = (bottom if sides[1] is None else len(rows) - sides[1]) - y
    width = (right if sides[3] is None else len(columns) - sides[3]) - x
    return [(x, y, width, height)]


def _entropy(grey: Mask) -> float:
    """Of the histogram, bits."""
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def _side(lines: NDArray[np.float64], about: int) -> int | None:
    """The first line of the picture, where the share of the interface's colours falls; None: no straight side.

    Scaling and JPEG soften a border, so the fall may take two lines.
    """
    first, last = max(2, about - _SEARCH), min(len(lines) - 1, about + _SEARCH + 1)
    falls = [(lines[at - 2] - lines[at], at) for at in range(first, last) if lines[at - 2] >= _OUTSIDE]
    step, at = max(falls, default=(0.0, 0))
    return at if step >= _STEP else None


def _text_parts(flat: Mask) -> int:
    """Small parts in other colours, as lines of text and icons are."""
    height, width = flat.shape
    joined = cv2.morphologyEx(1 - flat, cv2.MORPH_CLOSE, np.ones((1, max(3, width // 64)), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    heights, widths = stats[1:, cv2.CC_STAT_HEIGHT], stats[1:, cv2.CC_STAT_WIDTH]
    most = max(height, width) / 20
    return int(((heights > 3) & (heights < most) & (widths > heights)).sum())


# --- what the conductor says and does with them

# Limits of the whole that a picture inside makes pointless.
ANSWERED = ("limit.flat", "limit.transparent", "limit.unmeasured")
NOTHING_INSIDE = Note(
    "limit.screen",
    "Most of it is a few plain colours, as in a screenshot or a document, and no picture was found in it to judge by "
    "itself; send the picture alone.",
)


def crop(sample: Sample, box: Box) -> Sample:
    """The picture as an image of its own: pixels only, what the file says is about the whole."""
    x, y, width, height = box
    rgb = np.ascontiguousarray(sample.rgb[y : y + height, x : x + width])
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    raw = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), fast)[1].tobytes()
    return Sample(sample.source, raw, rgb, "PNG", orientation=sample.orientation)


def kind(is_screen: bool) -> str:
    return "picture in a screenshot" if is_screen else "picture in a picture"


def decided_by(box: Box, probability: float, is_screen: bool) -> Reason:
    x, y, width, height = box
    text = (
        f"Label and tier follow a {kind(is_screen)}, {width} x {height} pixels at {x}, {y}: probability of AI "
        f"{probability:.2f} by itself. The sentences on the evidence are about the whole."
    )
    return Reason("region.decides", text)

"""GhostNet on noise residuals: small native-resolution tiles, a score for the image and a map of where it comes from.

Sources:    see models/ghostnet_net.py; trained by us, there is no published forensic GhostNet
Limits:     the evidence is in the finest detail, which strong JPEG compression and reduction take away
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from inference.graphs import GraphDetector, sigmoid
from inference.registry import DETECTORS
from utils.contracts import Heatmap, Measurement, RgbArray, Sample

TILE = 256  # pixels a side
MAX_TILES = 16  # 1 megapixel is seen whole; of a larger image, tiles spread evenly over it
PATCH = 32  # pixels a side per patch; models/ghostnet_net.py has the same
CELL = 8  # pixels per heatmap cell. Tiles start on multiples of it, so JPEG's block grid has one phase in all of them.


class GhostNetDetector(GraphDetector):
    """``ghostnet_score`` and the heatmap "ghostnet" (NaN where no tile lies), from the stored pixels.

    The network gives one logit per patch, (k, TILE / PATCH, TILE / PATCH).
    """

    name: ClassVar[str] = "ghostnet"
    features: ClassVar[Mapping[str, str]] = DETECTORS["ghostnet"].features

    def measure(self, sample: Sample) -> Measurement:
        height, width = sample.rgb.shape[:2]
        tiles = (cut(sample.rgb, *origin) for origin in tile_origins(height, width))
        patches = np.concatenate([self.run(tile[np.newaxis]) for tile in tiles])  # together they would leave the cache
        score = float(sigmoid(pool(patches)))
        return Measurement({"ghostnet_score": score}, heatmaps={"ghostnet": assemble(sigmoid(patches), height, width)})


def pool(patches: NDArray[np.float32]) -> np.float64:
    """The image's logit from those of its patches: log-mean-exp, models/ghostnet_net.py's smooth maximum."""
    largest = patches.max()
    return np.float64(largest + np.log(np.exp((patches - largest).astype(np.float64)).mean()))


def tile_origins(height: int, width: int) -> list[tuple[int, int]]:
    """Row and column of each tile's first pixel, row by row; at most MAX_TILES."""
    rows, columns = math.ceil(height / TILE), math.ceil(width / TILE)
    if rows * columns > MAX_TILES:
        shrink = math.sqrt(MAX_TILES / (rows * columns))
        rows = min(max(1, round(rows * shrink)), MAX_TILES)
        columns = min(columns, MAX_TILES // rows)
    return [(top, left) for top in _starts(height, rows) for left in _starts(width, columns)]


def _starts(size: int, count: int) -> list[int]:
    """Evenly from one end to the other, up to CELL - 1 pixels short of it; a single tile lies in the middle."""
    room = max(0, size - TILE) // CELL
    places = [room // 2] if count == 1 else [room * index // (count - 1) for index in range(count)]
    return [place * CELL for place in dict.fromkeys(places)]


def cut(rgb: RgbArray, top: int, left: int) -> RgbArray:
    """One tile; where the image is smaller than a tile, it is mirrored."""
    tile = rgb[top : top + TILE, left : left + TILE]
    if tile.shape[:2] == (TILE, TILE):
        return tile
    return np.pad(tile, ((0, TILE - tile.shape[0]), (0, TILE - tile.shape[1]), (0, 0)), mode="symmetric")


def assemble(tiles: NDArray[np.float32], height: int, width: int) -> Heatmap:
    """Patch values of each tile (k, h, w) -> one map, CELL pixels per cell; the mean where tiles overlap."""
    total = np.zeros((max(1, height // CELL), max(1, width // CELL)), dtype=np.float32)
    count = np.zeros_like(total)
    for (top, left), patches in zip(tile_origins(height, width), tiles, strict=True):
        cells = patches.repeat(PATCH // CELL, axis=0).repeat(PATCH // CELL, axis=1)
        rows = slice(top // CELL, (top + TILE) // CELL)
        columns = slice(left // CELL, (left + TILE) // CELL)
        place = total[rows, columns]
        place += cells[: place.shape[0], : place.shape[1]]
        count[rows, columns] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

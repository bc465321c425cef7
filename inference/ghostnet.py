"""GhostNet on noise residuals: small native-resolution tiles, a score for the image and a map of where it comes from.

Sources:    see models/ghostnet_net.py; trained by us, there is no published forensic GhostNet
Limits:     the evidence is in the finest detail, which strong JPEG compression and reduction take away
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from inference.base import TorchDetector
from inference.registry import DETECTORS
from models.ghostnet_net import PATCH, GhostNetForensics, pool
from models.loaders import Weights, load_into
from utils.contracts import Heatmap, Measurement, RgbArray, Sample

TILE = 256  # pixels a side
MAX_TILES = 16  # 1 megapixel is seen whole; of a larger image, tiles spread evenly over it
CELL = 8  # pixels per heatmap cell. Tiles start on multiples of it, so JPEG's block grid has one phase in all of them.


class GhostNetDetector(TorchDetector):
    """``ghostnet_score`` and the heatmap "ghostnet" (NaN where no tile lies), from the stored pixels."""

    name: ClassVar[str] = "ghostnet"
    features: ClassVar[Mapping[str, str]] = DETECTORS["ghostnet"].features

    @classmethod
    def load(cls, weights: Weights, device: str, dtype: torch.dtype = torch.float32) -> Self:
        state = weights.state("ghostnet")
        with torch.device("meta"):
            network = GhostNetForensics()
        load_into(network, state, dtype=dtype, channels_last=True)  # a third less CPU time
        return cls(network, weights.card("ghostnet").version, device, dtype, channels_last=True)

    @classmethod
    def tiny(cls) -> Self:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cls(GhostNetForensics("ghostnet_050").eval().requires_grad_(False), "tiny")

    def preprocess(self, sample: Sample) -> Tensor:
        tiles = np.stack([cut(sample.rgb, top, left) for top, left in tile_origins(*sample.rgb.shape[:2])])
        return torch.from_numpy(tiles).permute(0, 3, 1, 2).float()  # the stack is a copy, so it is ours to wrap

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        return (self.network(views)[1],)

    def describe(self, outputs: tuple[Tensor, ...], sample: Sample) -> Measurement:
        patches = outputs[0]
        score = float(pool(patches.flatten()).sigmoid())
        heatmap = assemble(patches.sigmoid().numpy(), *sample.rgb.shape[:2])
        return Measurement({"ghostnet_score": score}, heatmaps={"ghostnet": heatmap})


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


def assemble(tiles: np.ndarray, height: int, width: int) -> Heatmap:
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

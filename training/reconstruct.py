"""Pairs for training: python -m training.reconstruct --dataset dataset.csv --encoder FILE --decoder FILE --out FOLDER

A real photograph beside itself as the auto-encoder of an image generator gives it back: the same content, and only one
of the two went through a generator's last layers. Both are written as PNG, so whatever compression they get later is
the same. The CSV that is written beside them (filepath, label, source, split) is a data set like any other.

The auto-encoder is TAEF2, the tiny one for FLUX.2 (github.com/madebyollin/taesd, MIT): two files of weights, not ours
to ship.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from models.loaders import load_into, load_state
from training.detectors import read_sample
from training.loop import NUMBERS, Picture, read_datasets, some_of_each
from utils.contracts import RgbArray
from utils.exits import Exit, command, command_parser

LONG_SIDE = 640  # px; where most deliveries end
GRID = 8  # px that one place of the code stands for
CODE = 32  # channels
WIDTH = 64


class Block(nn.Module):
    """Three convolutions beside a skip; with ``pool``, what the whole image looks like is added first."""

    def __init__(self, *, pool: bool = False) -> None:
        super().__init__()
        layers = [_conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH)]
        self.conv = nn.Sequential(*layers)
        self.pool = _pool() if pool else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def encoder() -> nn.Sequential:
    """(b, 3, h, w) in 0..1, sides multiples of GRID -> code (b, CODE, h / GRID, w / GRID)."""
    layers = [_conv(3, WIDTH), Block()]
    for stage in range(3):
        blocks = [Block(pool=stage == 2) for _ in range(3)]
        layers += [_conv(WIDTH, WIDTH, stride=2, bias=False), *blocks]
    return nn.Sequential(*layers, _conv(WIDTH, CODE))


def decoder() -> nn.Sequential:
    """The way back; clamp what comes out to 0..1."""
    layers = [Squash(), _conv(CODE, WIDTH), nn.ReLU(), *(Block(pool=True) for _ in range(3))]
    for blocks in (3, 3, 1):
        layers += [nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False), *(Block() for _ in range(blocks))]
    return nn.Sequential(*layers, _conv(WIDTH, 3))


def _conv(given: int, found: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(given, found, 3, stride=stride, padding=1, bias=bias)


def _pool() -> nn.Sequential:
    wide = 4 * WIDTH
    inner, outer = nn.Conv2d(WIDTH, wide, 1, bias=False), nn.Conv2d(wide, WIDTH, 1, bias=False)
    return nn.Sequential(inner, nn.GroupNorm(4, wide), nn.ReLU(), outer)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m training.reconstruct", __doc__)
    parser.add_argument("--dataset", type=Path, nargs="+", required=True, help="its real images of split train")
    parser.add_argument("--encoder", type=Path, required=True, help="taef2_encoder.pth")
    parser.add_argument("--decoder", type=Path, required=True, help="taef2_decoder.pth")
    parser.add_argument("--out", type=Path, required=True, help="folder for the images and dataset.csv")
    parser.add_argument("--per-source", type=int, default=4, help="images of one source (default: %(default)s)")
    arguments = parser.parse_args(argv)
    found = read_datasets(arguments.dataset)
    real = [each for each in found if each.label == NUMBERS["real"] and each.split == "train"]
    networks = [
        load_into(build(), load_state(path)).to(memory_format=torch.channels_last)
        for build, path in ((encoder, arguments.encoder), (decoder, arguments.decoder))
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [
        row
        for picture in some_of_each(real, arguments.per_source)
        for row in write_pair(picture, nn.Sequential(*networks), arguments.out)
    ]
    with (arguments.out / "dataset.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "label", "source", "split", "content", "group"])
        table.writerows(rows)
    print(f"{len(rows)} images in {arguments.out}")
    return Exit.DONE


def write_pair(picture: Picture, network: nn.Module, folder: Path) -> list[tuple[str, ...]]:
    """The two rows of a picture; images that are there already are kept. none if it cannot be read."""
    stem = sha256(str(picture.path.resolve()).encode()).hexdigest()[:16]
    names = {"real": f"{stem}-real.png", "ai": f"{stem}-ai.png"}
    if not (folder / names["ai"]).exists():
        try:
            original = prepared(read_sample(picture.path).upright)
        except ValueError as error:
            print(f"left out: {picture.path}: {error}", file=sys.stderr)
            return []
        Image.fromarray(original).save(folder / names["real"])
        Image.fromarray(reconstructed(network, original)).save(folder / names["ai"])
    known = (picture.source, "train", picture.content, picture.group)
    return [(name, label, *known) for label, name in names.items()]


def prepared(rgb: RgbArray) -> RgbArray:
    """At most LONG_SIDE px long, each side cut to a multiple of GRID around the centre."""
    scale = min(1.0, LONG_SIDE / max(rgb.shape[:2]))
    width, height = (max(GRID, round(side * scale)) for side in (rgb.shape[1], rgb.shape[0]))
    if scale < 1:
        rgb = np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    top, left = (side % GRID // 2 for side in rgb.shape[:2])
    kept = [max(GRID, side // GRID * GRID) for side in rgb.shape[:2]]
    return np.ascontiguousarray(rgb[top : top + kept[0], left : left + kept[1]])


def reconstructed(network: nn.Module, rgb: RgbArray) -> RgbArray:
    with torch.inference_mode():
        found = network(torch.tensor(rgb).permute(2, 0, 1)[None].float() / 255)[0].clamp(0, 1)
    return np.asarray((found * 255).round().to(torch.uint8).permute(1, 2, 0))


if __name__ == "__main__":
    sys.exit(main())

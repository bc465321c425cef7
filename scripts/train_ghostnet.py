"""Train GhostNet forensics: python -m scripts.train_ghostnet --dataset dataset.csv --out FOLDER --cache FOLDER

Sees native-resolution tiles of images in random deliveries that do not depend on the label, and learns from each patch
as well as from the tile. Rows of split train make the network; those of val only measure it. --resume goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from inference.ghostnet import CELL, TILE, GhostNetDetector
from models.ghostnet_net import GhostNetForensics
from models.training import (
    Batch,
    Drawn,
    Picture,
    draw_weights,
    fit,
    plot_log,
    prepare,
    read_datasets,
    save_weights,
    write_card,
)
from scripts import detector_training as shared
from scripts.export_graphs import SHIPPED, GhostNetOnPixels, export_beside
from utils.contracts import Sample
from utils.deliveries import DELIVERIES, deliver
from utils.device import pick_device
from utils.settings import load_settings

PATCHES = 0.5  # share of the loss that every patch must carry alone, so that the map means something


def main(argv: Sequence[str] | None = None) -> int:
    parser = shared.parser("scripts.train_ghostnet", __doc__, minutes=45.0, rate=2e-3)
    parser.add_argument("--architecture", default=SHIPPED["ghostnet"][0], help="of timm's (default: %(default)s)")
    arguments = parser.parse_args(argv)
    device, _ = pick_device(load_settings().device)
    pictures = prepare(read_datasets(arguments.dataset), arguments.cache, shared.load_native, arguments.jobs)
    training, validation = ([each for each in pictures if each.split == split] for split in ("train", "val"))
    print(f"{len(training)} training and {len(validation)} validation images", flush=True)
    torch.manual_seed(arguments.seed)
    network = GhostNetForensics(arguments.architecture).to(device).to(memory_format=torch.channels_last)
    samples = Drawn(training, draw_weights(training), random_tile, arguments.seed)
    trained = fit(network, samples, loss, shared.recipe(arguments), arguments.out, arguments.resume)
    plot_log(arguments.out)

    detector = GhostNetDetector(shared.as_graph(GhostNetOnPixels(trained), device), "training")
    logits = shared.score(partial(logit, detector), validation, DELIVERIES)
    measured = shared.plain(shared.measure(logits, validation, temperature=1.0))
    (arguments.out / "metrics.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    print(json.dumps(measured, indent=1))
    path: Path = arguments.out / "ghostnet.safetensors"
    save_weights(path, trained.state_dict(), {"architecture": arguments.architecture}, torch.float16)
    print(write_card("ghostnet", path, licence="MIT", train="python -m scripts.train_ghostnet"))
    export_beside("ghostnet", GhostNetOnPixels(trained), arguments.architecture, arguments.out)
    return 0


def random_tile(picture: Picture, rng: np.random.Generator) -> Batch:
    """One tile of one delivery, (3, TILE, TILE) float32 in 0..255, and its label."""
    tile = shared.square(shared.delivered(picture, rng, TILE // 2), TILE, CELL, rng)
    if rng.random() < 0.5:
        tile = tile[:, ::-1]
    pixels = torch.from_numpy(np.ascontiguousarray(tile)).permute(2, 0, 1).float()
    return pixels, torch.tensor(float(picture.label))


def loss(network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    tiles, labels = batch
    image, patches = network(tiles.to(memory_format=torch.channels_last))
    of_image = shared.smoothed_loss(image, labels)
    of_patches = shared.smoothed_loss(patches, labels[:, None, None].expand_as(patches))
    mixed = (1 - PATCHES) * of_image + PATCHES * of_patches
    return {"loss": mixed, "accuracy": shared.accuracy(image, labels)}


def logit(detector: GhostNetDetector, picture: Picture, delivery: str) -> float:
    pixels = picture.pixels
    if delivery != "clean":
        pixels = shared.pixels_of(deliver(pixels, delivery))
    found = detector.measure(Sample("memory", b"", pixels, "PNG"))
    probability = found.features["ghostnet_score"]
    return float(np.log(max(probability, 1e-9)) - np.log(max(1 - probability, 1e-9)))


if __name__ == "__main__":
    sys.exit(main())

"""Train GhostNet forensics: python -m scripts.train_ghostnet --dataset dataset.csv --out FOLDER --cache FOLDER

Sees native-resolution crops of images in random deliveries that do not depend on the label, and learns from each patch
as well as from the crop. Rows of split train make the network; those of val only measure it. --resume goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from inference.ghostnet import CELL, GhostNetDetector
from models.ghostnet_net import GhostNetForensics
from training import detectors as shared
from training.export import EXPORTED, GhostNetOnPixels, export_beside
from training.loop import (
    Batch,
    Drawn,
    Picture,
    draw_weights,
    fit,
    plot_log,
    save_trained,
)
from utils.contracts import Sample
from utils.deliveries import DELIVERIES, deliver
from utils.device import get_device
from utils.exits import Exit, command
from utils.settings import load_settings

CROP = 192  # px; smaller than the detector's TILE: a step takes half the time
CROPS = 2  # of one delivery, which costs as much to make as they cost to learn from
PATCHES = 0.5  # share of the loss that every patch must carry alone, so that the map means something


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = shared.parser("scripts.train_ghostnet", __doc__, minutes=45.0, rate=2e-3)
    shared.add_architecture(parser, EXPORTED["ghostnet"][0])
    train(parser.parse_args(argv))
    return Exit.DONE


def train(arguments: argparse.Namespace) -> None:
    device = get_device(load_settings().models.device)
    training, validation = shared.load_pictures(arguments, shared.load_native, shared.load_whole)
    torch.manual_seed(arguments.seed)
    network = GhostNetForensics(arguments.architecture).to(device).to(memory_format=torch.channels_last)
    samples = Drawn(training, draw_weights(training), random_crops, arguments.seed)
    trained = fit(network, samples, loss, shared.recipe(arguments), arguments.out, arguments.resume)
    plot_log(arguments.out)

    detector = GhostNetDetector(shared.as_graph(GhostNetOnPixels(trained), device), "training")
    logits = shared.score(partial(logit, detector), validation, DELIVERIES)
    measured = shared.measure(logits, validation, temperature=1.0)
    (arguments.out / "metrics.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    print(json.dumps(measured, indent=1))
    folder: Path = arguments.out / "ghostnet"
    save_trained(
        folder,
        trained.state_dict(),
        {"architecture": arguments.architecture},
        f"models.ghostnet_net on timm {arguments.architecture}",
    )
    export_beside(GhostNetOnPixels(trained), arguments.architecture, folder)


def random_crops(picture: Picture, rng: np.random.Generator) -> Batch:
    """CROPS squares of one delivery, (CROPS, 3, CROP, CROP) float32 in 0..255, and the label of each."""
    pixels = shared.delivered(picture, rng, CROP // 2)
    crops = [shared.square(pixels, CROP, CELL, rng) for _ in range(CROPS)]
    flipped = [each[:, ::-1] if rng.random() < 0.5 else each for each in crops]
    return torch.from_numpy(np.stack(flipped)).permute(0, 3, 1, 2).float(), torch.full((CROPS,), float(picture.label))


def loss(network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    crops, labels = (each.flatten(0, 1) for each in batch)
    image, patches = network(crops.to(memory_format=torch.channels_last))
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

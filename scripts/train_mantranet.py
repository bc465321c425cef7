"""Train the compact ManTraNet: python -m scripts.train_mantranet --dataset dataset.csv --out FOLDER --cache FOLDER

Needs photographs only, the rows labelled real: every sample is a crop manipulated on the fly, with its exact mask
(training/forgeries.py). Rows of split train make the network; those of val are manipulated to measure it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.mantranet_compact import MARKED
from models.mantranet_net import COMPACT, ManTraNet
from training import detectors as shared
from training.forgeries import forge
from training.loop import Batch, Drawn, Picture, fit, plot_log, save_trained
from training.metrics import auroc
from utils.device import get_device
from utils.exits import Exit, command
from utils.settings import load_settings

SIDE = 256  # px of a training crop
MEASURED = 200  # validation crops, one manipulation each


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = shared.parser("scripts.train_mantranet", __doc__, minutes=60.0, rate=1e-3)
    train(parser.parse_args(argv))
    return Exit.DONE


def train(arguments: argparse.Namespace) -> None:
    device = get_device(load_settings().models.device)
    training, validation = shared.load_pictures(arguments, shared.load_native, labels=("real",))
    torch.manual_seed(arguments.seed)
    network = ManTraNet(COMPACT).to(device).to(memory_format=torch.channels_last)
    samples = Drawn(training, np.ones(len(training)), partial(forged, tuple(training)), arguments.seed)
    trained = fit(network, samples, loss, shared.recipe(arguments), arguments.out, arguments.resume)
    plot_log(arguments.out)

    if validation:
        measured = measure(trained, validation, arguments.seed)
        (arguments.out / "metrics.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
        print(json.dumps(measured))
    metadata = {"architecture": "mantranet_compact"}
    save_trained(arguments.out / "mantranet_compact", trained.state_dict(), metadata, "mantranet_pytorch")


def forged(donors: Sequence[Picture], picture: Picture, rng: np.random.Generator) -> Batch:
    """A manipulated crop, (3, SIDE, SIDE) float32 in 0..255, and the share of each map pixel that was manipulated."""
    donor = donors[int(rng.integers(len(donors)))]
    rgb, mask = forge(shared.square(picture.pixels, SIDE, 1, rng), shared.square(donor.pixels, SIDE, 1, rng), rng)
    pixels = torch.tensor(rgb).permute(2, 0, 1).float()
    share = functional.avg_pool2d(torch.from_numpy(mask)[None].float() / 255, COMPACT.stride)
    return pixels, share


def loss(network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """Cross-entropy per map pixel plus Dice (Milletari et al. 2016), which does not drown small regions in the rest."""
    images, shares = batch
    logits = network(images.to(memory_format=torch.channels_last)).float()
    entropy = functional.binary_cross_entropy_with_logits(logits, shares)
    marked = logits.sigmoid()
    overlap = (2 * (marked * shares).sum(dim=(1, 2, 3)) + 1) / ((marked + shares).sum(dim=(1, 2, 3)) + 1)
    return {"loss": entropy + 1 - overlap.mean(), "entropy": entropy, "dice": overlap.mean()}


def measure(network: nn.Module, pictures: Sequence[Picture], seed: int) -> dict[str, float]:
    """Mean pixel AUROC and F1 of manipulated validation crops."""
    samples = Drawn(pictures, np.ones(len(pictures)), partial(forged, tuple(pictures)), seed + 1)
    device = next(network.parameters()).device
    areas, overlaps = [], []
    for index in range(MEASURED):
        pixels, share = samples[index]
        truth = (share.flatten() > 0.5).long().numpy()
        if truth.min() == truth.max():
            continue
        with torch.inference_mode():
            found = network(pixels[None].to(device)).sigmoid().flatten().float().cpu().numpy()
        areas.append(float(auroc(truth, found, np.ones((1, len(truth))))[0]))
        marked = found > MARKED
        overlaps.append(2 * float((marked & (truth == 1)).sum()) / float(marked.sum() + truth.sum()))
    return {"images": len(areas), "pixel_auroc": float(np.mean(areas)), "pixel_f1": float(np.mean(overlaps))}


if __name__ == "__main__":
    sys.exit(main())

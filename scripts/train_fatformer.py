"""Fine-tune FatFormer: python -m scripts.train_fatformer --dataset dataset.csv --out FOLDER --cache FOLDER

Starts from the installed checkpoint (python -m scripts.download_weights fatformer) and learns its adapters, prompts and
interactor; CLIP itself stays as it is. Sees images in random deliveries that do not depend on the label, resized as the
detector does it. Rows of split train make the network. Those of split val stop it, when their loss has not fallen for
--patience checks, and measure it: for figures that hold, measure again on sources that were in neither.

The loss is the cross-entropy of the sum of both similarities, which is what judges; the paper takes one for each. On a
GPU it runs in bfloat16. --resume goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from inference.fatformer import CROP, OFFICIAL, RESIZE
from inference.views import IMAGENET, normalised
from models.fatformer_net import FatFormer, official_name
from models.loaders import Weights, load_into
from training import detectors as shared
from training.loop import Batch, Drawn, Picture, draw_weights, fit, plot_log, save_trained
from utils.contracts import RgbArray
from utils.deliveries import DELIVERIES, deliver
from utils.device import get_device
from utils.exits import Exit, command
from utils.persistence import CARD, record
from utils.settings import load_settings

# What the paper adds to CLIP, and so what is learnt.
LEARNT = ("forgery_aware_adapter", "language_guided_alignment.ctx", "enhancer", "text_guided_interactor")
SMALLEST = 64  # px of a delivery's shorter side
BEST = "best.pt"


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = shared.parser("scripts.train_fatformer", __doc__, minutes=240.0, rate=4e-4)
    parser.add_argument("--check-steps", type=int, default=200, help="between two looks at val (default: %(default)s)")
    parser.add_argument("--patience", type=int, default=5, help="looks without a lower loss (default: %(default)s)")
    train(parser.parse_args(argv))
    return Exit.DONE


def train(arguments: argparse.Namespace) -> None:
    device = get_device(load_settings().models.device)
    torch.manual_seed(arguments.seed)
    network = start().to(device)
    training, validation = shared.load_pictures(arguments, shared.load_whole)
    samples = Drawn(training, draw_weights(training), random_view, arguments.seed)
    stopper = Stopper(validation, arguments.check_steps, arguments.patience, arguments.out, arguments.resume)
    trained = fit(network, samples, loss, shared.recipe(arguments), arguments.out, arguments.resume, stopper)
    plot_log(arguments.out)
    trained = stopper.best(trained)
    logits = {name: score(trained, validation, name) for name in DELIVERIES} if validation else {}
    measured = shared.measure(logits, validation, temperature=1.0) if validation else {}
    (arguments.out / "metrics.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    print(json.dumps(measured, indent=1))
    folder: Path = arguments.out / "fatformer"
    save_trained(folder, trained.state_dict(), {}, "models.fatformer_net.FatFormer")
    record(folder / CARD, "weights", {"licence": "Apache-2.0"})  # of the checkpoint that it starts from


def start() -> nn.Module:
    """The installed network, of which what the paper adds to CLIP learns.

    Raises:
        WeightsMissing, WeightsCorrupt, WeightsMismatch: see models.loaders.
    """
    weights = Weights.at(load_settings().models.weights_dir)
    rename = official_name if weights.card("fatformer").layout == OFFICIAL else None
    with torch.device("meta"):
        network = FatFormer()
    load_into(network, weights.state("fatformer"), rename=rename)
    network = copy.deepcopy(network)  # parameters of its own: those of a file are mapped, and not to be written
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(part in name for part in LEARNT))
    return network


class Stopper:
    """Ends a run whose loss on validation sources has stopped falling, and keeps the best network."""

    def __init__(self, pictures: Sequence[Picture], steps: int, patience: int, folder: Path, resume: bool) -> None:
        self.pictures, self.steps, self.patience = pictures, steps, patience
        self.path = folder / BEST
        self.lowest, self.since = float("inf"), 0
        if resume and self.path.exists():
            self.lowest = float(torch.load(self.path, weights_only=True)["loss"])
        else:
            self.path.unlink(missing_ok=True)

    def __call__(self, average: nn.Module, step: int) -> bool:
        if not self.pictures or step % self.steps:
            return False
        network = copy.deepcopy(average).eval()
        signs = np.array([1 if each.label else -1 for each in self.pictures])
        losses = [np.logaddexp(0, -signs * score(network, self.pictures, name)).mean() for name in ("web", "hard")]
        found = float(np.mean(losses))
        print(f"step {step}: validation loss {found:.4f}", flush=True)
        if found < self.lowest:
            self.lowest, self.since = found, 0
            part = self.path.with_suffix(".part")
            torch.save({"loss": found, "network": network.state_dict()}, part)
            part.replace(self.path)
        else:
            self.since += 1
        return self.since >= self.patience

    def best(self, last: nn.Module) -> nn.Module:
        if self.path.exists():
            last.load_state_dict(torch.load(self.path, map_location="cpu", weights_only=True)["network"])
        return last


def shown(rgb: RgbArray, top: int, left: int) -> Tensor:
    """The detector's preprocessing with the crop at a place of its own."""
    resized = np.asarray(Image.fromarray(rgb).resize((RESIZE, RESIZE), Image.Resampling.BILINEAR))
    return torch.from_numpy(normalised(resized[top : top + CROP, left : left + CROP], IMAGENET))


def random_view(picture: Picture, rng: np.random.Generator) -> Batch:
    pixels = shared.delivered(picture, rng, SMALLEST)
    top, left = rng.integers(0, RESIZE - CROP + 1, 2)
    view = shown(pixels[:, ::-1] if rng.random() < 0.5 else pixels, int(top), int(left))
    return view, torch.tensor(picture.label)


def loss(network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    views, labels = batch
    logits = network(views)
    right = (logits.argmax(dim=1) == labels).float().mean()
    return {"loss": functional.cross_entropy(logits, labels), "accuracy": right}


@torch.inference_mode()
def score(network: nn.Module, pictures: Sequence[Picture], delivery: str) -> NDArray[np.float64]:
    """One logit towards AI for each picture."""
    device, border, found = next(network.parameters()).device, (RESIZE - CROP) // 2, []
    for picture in pictures:
        pixels = picture.pixels
        if delivery != "clean":
            pixels = shared.pixels_of(deliver(pixels, delivery))
        real, fake = network(shown(pixels, border, border)[None].to(device))[0].float().cpu()
        found.append(float(fake - real))
    return np.array(found)


if __name__ == "__main__":
    sys.exit(main())

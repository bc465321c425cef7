"""What the trainers of whole-image detectors share: files to pixels, deliveries, command line, measurement. No command.

Knows no network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from inference.graphs import Network
from ingress.sources import Ingress
from training.datasets import LABELS
from training.deliveries import LOSSY, deliver_at_random
from training.loop import Load, Picture, Recipe, check_labels, prepare, read_datasets
from training.metrics import THRESHOLD, evaluate, plain
from training.shards import image_table
from utils.contracts import RgbArray, Sample
from utils.errors import VerifyError
from utils.exits import command_parser
from utils.settings import load_settings

TRIES = 4
WINDOW = 1024  # px; how much of an image is kept at native size, larger than most deliveries
SMOOTHING = 0.1  # of the labels; some of the sources' own claims are wrong

Logits: TypeAlias = Mapping[str, NDArray[np.float64]]  # delivery -> one logit per picture


def read_sample(source: Path | bytes) -> Sample:
    """Decode a file, or what one holds, as the product does.

    Raises:
        ValueError: it cannot be read.
    """
    cv2.setNumThreads(1)
    try:
        with Ingress(load_settings().decode) as ingress:
            return ingress.decode(source, "") if isinstance(source, bytes) else ingress.load(str(source))
    except VerifyError as error:
        raise ValueError(f"{error.code}: {error}") from error


def load_whole(source: Path | bytes) -> tuple[RgbArray, bool]:
    """The stored pixels, and whether they carry a JPEG history."""
    sample = read_sample(source)
    return sample.rgb, sample.format in LOSSY


def load_native(source: Path | bytes) -> tuple[RgbArray, bool]:
    """The centre of the stored pixels, cut on multiples of 8 so that JPEG's block grid keeps its phase."""
    rgb, lossy = load_whole(source)
    top, left = (max(0, side - WINDOW) // 2 // 8 * 8 for side in rgb.shape[:2])
    return rgb[top : top + WINDOW, left : left + WINDOW], lossy


def load_pictures(
    arguments: argparse.Namespace, load: Load, validation: Load | None = None, labels: Collection[str] = LABELS
) -> tuple[list[Picture], list[Picture]]:
    """The training and the validation pictures of the command line, decoded.

    Args:
        load: file -> pixels and whether they carry a JPEG history.
        validation: likewise for the split val, if it differs.

    Raises:
        TableError: as ``read_datasets``, or no image of a label can be read.
    """
    found = read_datasets(arguments.dataset, labels)
    ready = [
        prepare([each for each in found if each.split == split], arguments.cache, loader, arguments.jobs)
        for split, loader in (("train", load), ("val", validation or load))
    ]
    check_labels(ready[0], labels)
    print(f"{len(ready[0])} training and {len(ready[1])} validation images", flush=True)
    return ready[0], ready[1]


def square(rgb: RgbArray, side: int, step: int, rng: np.random.Generator) -> RgbArray:
    """A random square of ``side`` px that starts on a multiple of ``step``; a smaller image is mirrored first."""
    short = [max(0, side - length) for length in rgb.shape[:2]]
    if any(short):
        rgb = np.pad(rgb, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric")
    top, left = (int(rng.integers(0, (length - side) // step + 1)) * step for length in rgb.shape[:2])
    return rgb[top : top + side, left : left + side]


def delivered(picture: Picture, rng: np.random.Generator, smallest: int) -> RgbArray:
    """The pixels of one random delivery.

    One with a shorter side below ``smallest`` px is drawn again, up to TRIES times: cut to a square it would be mostly
    mirror images.
    """
    pixels = picture.pixels
    for _ in range(TRIES):
        found = pixels_of(deliver_at_random(pixels, rng, compressed_before=picture.lossy))
        if min(found.shape[:2]) >= smallest:
            break
    return found


def pixels_of(raw: bytes) -> RgbArray:
    """Of an image that we encoded ourselves."""
    with Image.open(BytesIO(raw)) as image:
        return np.asarray(image.convert("RGB"))


def smoothed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy against labels moved SMOOTHING towards the middle."""
    target = labels * (1 - SMOOTHING) + SMOOTHING / 2
    return functional.binary_cross_entropy_with_logits(logits.float(), target)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return ((logits > 0) == (labels > 0.5)).float().mean()


# --- calibration and measurement


def as_graph(network: nn.Module, device: str) -> Network:
    """A network on pixels (training.export.OnPixels) as the detectors call their graph."""
    network = network.to(device).eval()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = network(torch.tensor(pixels, device=device)).float().cpu().numpy()
        return found

    return run


def fit_temperature(logits: Logits, pictures: Sequence[Picture]) -> float:
    """What to divide logits by for the lowest log loss over all deliveries, both classes weighing the same.

    Guo et al., ICML 2017. 1 where one of the labels is missing.
    """
    labels = np.array([each.label for each in pictures])
    if len(np.unique(labels)) < 2:
        return 1.0
    balance = 0.5 / np.where(labels == 1, (labels == 1).mean(), (labels == 0).mean())

    def cost(temperature: float) -> float:
        signed = [np.where(labels == 1, -each, each) / temperature for each in logits.values()]
        return float(np.mean([balance * np.logaddexp(0, each) for each in signed]))

    return float(min(np.geomspace(0.2, 10, 200), key=cost))


def measure(logits: Logits, pictures: Sequence[Picture], temperature: float) -> dict[str, dict[str, list[float]]]:
    """Metrics at THRESHOLD by delivery: over all pictures, then over those of each content that both labels have."""
    labels = np.array([each.label for each in pictures], np.int64)
    sources = np.array([each.source for each in pictures])
    contents = np.array([each.content for each in pictures])
    groups = {"all": np.ones(len(pictures), bool), **{name: contents == name for name in np.unique(contents) if name}}
    measured = {}
    for delivery, values in logits.items():
        probabilities = 1 / (1 + np.exp(-values / temperature))
        for name, rows in groups.items():
            if len(np.unique(labels[rows])) == 2:
                found = evaluate(labels[rows], probabilities[rows], sources[rows], THRESHOLD)
                measured[f"{delivery}, {name}"] = plain(found)
    return measured


# --- the command line


def parser(module: str, description: str | None, minutes: float, rate: float) -> argparse.ArgumentParser:
    found = command_parser(f"python -m {module}", description)
    columns = "CSV: filepath,label,source[,split,content]; also s3://BUCKET/… of a packed data set"
    found.add_argument("--dataset", type=image_table, nargs="+", required=True, help=columns)
    found.add_argument("--out", type=Path, required=True, help="folder for weights, checkpoint, log and metrics")
    found.add_argument("--cache", type=Path, required=True, help="folder for decoded pixels, about 1 MB per image")
    found.add_argument("--minutes", type=float, default=minutes, help="training time (default: %(default)s)")
    found.add_argument("--steps", type=int, default=10**9, help="batches at most")
    found.add_argument("--batch", type=int, default=32)
    found.add_argument("--rate", type=float, default=rate, help="highest learning rate (default: %(default)s)")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--workers", type=int, default=1, help="processes that make samples")
    found.add_argument("--jobs", type=int, default=2, help="processes that decode the images once, beforehand")
    found.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return found


def add_architecture(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--architecture", type=_architecture, default=default, help="of timm's (default: %(default)s)")


def _architecture(name: str) -> str:
    if not timm.is_model(name):
        raise argparse.ArgumentTypeError(f"timm knows no network {name!r}")
    return name


def recipe(arguments: argparse.Namespace) -> Recipe:
    return Recipe(
        minutes=arguments.minutes,
        steps=arguments.steps,
        batch=arguments.batch,
        rate=arguments.rate,
        seed=arguments.seed,
        workers=arguments.workers,
    )


def score(logit: Callable[[Picture, str], float], pictures: Sequence[Picture], deliveries: Sequence[str]) -> Logits:
    return {name: np.array([logit(each, name) for each in pictures], float) for name in deliveries}

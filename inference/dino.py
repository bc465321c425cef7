"""DINOv2 embeddings, judged by a head that we train: an SVM, a logistic regression or a random forest.

Paper:      Oquab et al., TMLR 2024, arXiv 2304.07193; registers: Darcet et al., ICLR 2024, arXiv 2309.16588
Upstream:   facebook/dinov2-{small,base,large} and their -with-registers forms; code and weights Apache-2.0
Differs:    views at native resolution beside upstream's preprocessing, see ``views``
Limits:     knows what its head was trained on (scripts/train_dino_svm.py), and nothing about other generators

Does not know how heads are trained.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from fusion.calibration import Calibration, Platt, calibration_from_json
from fusion.estimators import FloatArray
from inference.base import TorchDetector
from inference.heads import CLASSIFIERS, Classifier, Linear
from inference.registry import DETECTORS
from inference.views import IMAGENET, centre_square, normalised
from models.loaders import Weights, load_into
from utils.contracts import Json, Measurement, Sample
from utils.errors import BackboneMismatch, WeightsCorrupt, WeightsMismatch
from utils.persistence import Card, read_arrays, save_model

HEAD = "dino_svm"
RETRAIN = "retrain it: python -m scripts.train_dino_svm --manifest dataset.csv"

# What an embedding is. Change the text whenever ``views`` or ``Backbone.forward`` changes: heads name it.
EMBEDDING = "1: mean over views of [CLS, mean of patches] after the last norm; 256/224 centre, five native 224 crops"
RESIZE = 256
VIEW = 224
LARGE = 2 * VIEW  # from this shorter side on, the scaled view loses half of the detail and native crops add to it
# Centre, and half way from it to each corner; corners themselves hold frames and watermarks.
NATIVE_CROPS = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))

HEAD_WIDTH = 64  # channels per attention head, in DINOv2 of every size
LAYER = re.compile(r"encoder\.layer\.(\d+)\.")

# transformers has renamed these modules since the checkpoints were published.
_RENAMED = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
}


def views(sample: Sample) -> Tensor:
    """(k, 3, 224, 224): the whole image as upstream prepares it, and native crops of a large one.

    The first view is upstream's: shorter side to 256 (bicubic), central 224. Where that at least halves the resolution,
    five crops of 224 x 224 native pixels follow, in which the traces of a generator's decoder survive.
    """
    rgb = sample.upright
    height, width = rgb.shape[:2]
    found = [centre_square(rgb, RESIZE, VIEW)]
    if min(height, width) >= LARGE:
        for row, column in NATIVE_CROPS:
            top, left = round((height - VIEW) * row), round((width - VIEW) * column)
            found.append(rgb[top : top + VIEW, left : left + VIEW])
    return torch.stack([torch.from_numpy(normalised(pixels, IMAGENET)) for pixels in found])


class Backbone(nn.Module):
    """DINOv2 as a map from images to embeddings."""

    def __init__(self, config: Dinov2Config | Dinov2WithRegistersConfig) -> None:
        super().__init__()
        with_registers = isinstance(config, Dinov2WithRegistersConfig)
        self.model = (Dinov2WithRegistersModel if with_registers else Dinov2Model)(config)
        self.before_patches = 1 + (config.num_register_tokens if with_registers else 0)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w), ImageNet-normalised, sides multiples of the patch -> (b, 2 d): CLS, then the mean patch.

        Position embeddings are interpolated when the grid is not the one they were trained for (37 x 37).
        """
        tokens = self.model(images).last_hidden_state
        return torch.cat([tokens[:, 0], tokens[:, self.before_patches :].mean(dim=1)], dim=1)


def config_of(state: Mapping[str, Tensor]) -> Dinov2Config | Dinov2WithRegistersConfig:
    """The configuration that a checkpoint's shapes tell.

    Raises:
        WeightsMismatch: it lacks the tensors that say it.
    """
    try:
        width, _, _, patch = state["embeddings.patch_embeddings.projection.weight"].shape
        side = math.isqrt(state["embeddings.position_embeddings"].shape[1] - 1)
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsMismatch(f"not a DINOv2 checkpoint in the layout of transformers: {error}") from error
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": 1 + max((int(found[1]) for key in state if (found := LAYER.match(key))), default=-1),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "patch_size": patch,
        "image_size": side * patch,
    }
    registers = state.get("embeddings.register_tokens")
    if registers is None:
        return Dinov2Config(**sizes)
    return Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers.shape[1])


def load_backbone(weights: Weights, name: str, dtype: torch.dtype = torch.float32) -> Backbone:
    """Build the backbone of a weights card.

    Raises:
        WeightsMissing, WeightsCorrupt, WeightsMismatch: see models.loaders.
    """
    state = weights.state(name)
    with torch.device("meta"):
        backbone = Backbone(config_of(state))
    wanted = backbone.state_dict().keys()

    def rename(key: str) -> str:
        first = f"model.{key}"
        now = first
        for old, new in _RENAMED.items():
            now = now.replace(old, new)
        return now if now in wanted else first

    return load_into(backbone, state, rename=rename, dtype=dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A trained classifier of embeddings, and the backbone it belongs to.

    On disk it is a model folder (utils/persistence.py): the classifier's arrays, and what else there is to say as JSON
    in the file's header. Nothing in it can run.
    """

    backbone: str  # weights card
    backbone_sha256: str
    classifier: Classifier
    calibration: Calibration  # its log-odds -> probability
    settings: str  # what was fitted, for people: "LinearSVC(C=0.001)"

    def probability(self, embedding: FloatArray) -> float:
        """One embedding (2 d) -> probability of AI."""
        return float(self.calibration(self.classifier.log_odds(embedding[None]))[0])

    def save(self, folder: Path, facts: Mapping[str, Json]) -> None:
        """Write the model folder, with ``facts`` for people in the header of the weights."""
        stored = {
            "kind": self.classifier.kind,
            "backbone": self.backbone,
            "backbone_sha256": self.backbone_sha256,
            "embedding": EMBEDDING,
            "calibration": self.calibration.to_json(),
            "settings": self.settings,
            **facts,
        }
        # One entry: safetensors writes several in random order, and the same head shall be the same bytes.
        save_model(folder, self.classifier.arrays(), {"head": json.dumps(stored)}, layout="inference.heads")

    @classmethod
    def load(cls, path: Path) -> Head:
        """Read a verified file of weights.

        Raises:
            WeightsCorrupt: malformed.
            WeightsMismatch: made for another definition of the embedding, or by a version that saved pickles.
        """
        if path.suffix != ".safetensors":
            raise WeightsMismatch(f"{path} is a head of an earlier version, a pickle, which is not opened; {RETRAIN}")
        arrays, metadata = read_arrays(path)
        try:
            stored = json.loads(metadata["head"])
            head = cls(
                stored["backbone"],
                stored["backbone_sha256"],
                CLASSIFIERS[stored["kind"]].from_arrays(arrays),
                calibration_from_json(stored["calibration"]),
                stored["settings"],
            )
            embedding = stored["embedding"]
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsCorrupt(f"{path} is not a complete DINOv2 head ({error!r}); {RETRAIN}") from error
        if embedding != EMBEDDING:
            raise WeightsMismatch(f"{HEAD} was made for embedding {embedding!r}, here it is {EMBEDDING!r}; {RETRAIN}")
        return head


class DinoDetector(TorchDetector):
    """``dino_prob``: the head's calibrated probability for the mean embedding of the image's views."""

    name: ClassVar[str] = "dino"
    features: ClassVar[Mapping[str, str]] = DETECTORS["dino"].features

    def __init__(
        self, network: Backbone, head: Head, version: str, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(network, version, device, dtype)
        self.head = head

    @classmethod
    def load(cls, weights: Weights, device: str, dtype: torch.dtype = torch.float32) -> Self:
        """Build the backbone that the installed head was trained on, and the head.

        Raises:
            BackboneMismatch: the installed backbone is another one than the head's.
            WeightsMissing, WeightsCorrupt, WeightsMismatch: see models.loaders and ``Head.load``.
        """
        head = Head.load(weights.path(HEAD))
        card = _backbone_card(weights, head)
        network = load_backbone(weights, head.backbone, dtype)
        return cls(network, head, f"{weights.card(HEAD).version} on {card.version}", device, dtype)

    @classmethod
    def tiny(cls) -> Self:
        config = Dinov2Config(
            hidden_size=HEAD_WIDTH, num_hidden_layers=2, num_attention_heads=1, patch_size=56, image_size=112
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Backbone(config).eval().requires_grad_(False)
        weights = np.random.default_rng(0).normal(size=2 * HEAD_WIDTH)
        line = Linear(np.zeros_like(weights), np.ones_like(weights), weights, np.zeros(1))
        return cls(network, Head("tiny", "", line, Platt(1.0, 0.0), "drawn at random"), "tiny")

    def preprocess(self, sample: Sample) -> Tensor:
        return views(sample)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        return (self.network(views),)

    def describe(self, outputs: tuple[Tensor, ...], sample: Sample) -> Measurement:
        embedding = outputs[0].mean(dim=0).double().numpy()
        return Measurement({"dino_prob": self.head.probability(embedding)})


def _backbone_card(weights: Weights, head: Head) -> Card:
    trained_on = f"{HEAD} was trained on {head.backbone} with sha256 {head.backbone_sha256}"
    if head.backbone not in weights.cards:
        known = ", ".join(name for name in weights.cards if name.startswith("dinov2"))
        raise BackboneMismatch(f"{trained_on}; the weights cards here are {known}; {RETRAIN}")
    card = weights.card(head.backbone)
    if card.sha256 != head.backbone_sha256:
        raise BackboneMismatch(
            f"{trained_on}, here {card.name} is the one with sha256 {card.sha256 or 'unknown'}; {RETRAIN}"
        )
    return card

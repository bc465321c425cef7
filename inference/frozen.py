"""A frozen backbone and a head on its tokens that we train: an SVM, a logistic regression, a forest, a small MLP.

Papers, upstream and what differs: models/backbone_nets.py
Limits:     it knows what its head was trained on (scripts/train_head.py), and nothing about other generators

One class serves every backbone of models/backbones.toml; its subclasses only name whose score it is, so that a head may
move from one size of a family to another. Does not know how heads are trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from fusion.calibration import Calibration, Platt, calibration_from_json
from fusion.decision import Thresholds
from fusion.estimators import FloatArray, Logistic, Scaling
from fusion.meta_model import QUANTILES, FusionModel
from inference.base import TorchDetector
from inference.embedding import Embedder, views
from inference.heads import CLASSIFIERS, Classifier, Linear
from inference.registry import DETECTORS
from models.backbones import Backbone, backbone, backbones
from models.loaders import Weights
from utils.contracts import Json, Measurement, Sample
from utils.errors import BackboneMismatch, WeightsCorrupt, WeightsMismatch
from utils.persistence import Card, model_file, read_arrays, save_model

RETRAIN = "train it again: python -m scripts.extract_embeddings and scripts.train_head, see docs/full.md"
PASS_THROUGH = 1e4  # spread at which fusion's spread x asinh(x / spread) is x itself, to 1e-6 of it
HALFWAY = Thresholds(label=0.5, real=0.5, likely_real=0.5, likely_ai=0.5, ai=0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A trained classifier of embeddings, and the backbone it belongs to.

    On disk it is a model folder (utils/persistence.py): the classifier's arrays, and what else there is to say as JSON
    in the file's header. Nothing in it can run.
    """

    backbone: str  # record and weights card
    backbone_sha256: str
    embedding: str  # what the numbers are that it looks at
    classifier: Classifier
    calibration: Calibration  # its log-odds -> probability
    settings: str  # what was fitted, for people: "LinearSVC(C=0.001)"
    thresholds: Thresholds = HALFWAY  # where nothing but this head judges
    quantiles: Mapping[str, tuple[float, ...]] | None = None  # "real", "ai": of the probability, at QUANTILES

    def probability(self, embedding: FloatArray) -> float:
        """One embedding (d) -> probability of AI."""
        return float(self.probabilities(embedding[None])[0])

    def probabilities(self, embeddings: FloatArray) -> FloatArray:
        """n x d -> n."""
        return self.calibration(self.classifier.log_odds(embeddings))

    @property
    def detector(self) -> str:
        """Whose score it gives."""
        return backbone(self.backbone).detector

    def save(self, folder: Path, facts: Mapping[str, Json]) -> None:
        """Write the model folder, with ``facts`` for people in the header of the weights."""
        stored = {
            "kind": self.classifier.kind,
            "backbone": self.backbone,
            "backbone_sha256": self.backbone_sha256,
            "embedding": self.embedding,
            "calibration": self.calibration.to_json(),
            "settings": self.settings,
            "thresholds": self.thresholds.to_json(),
            "quantiles": self.quantiles and dict(self.quantiles),
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
            stored = dict(json.loads(metadata["head"]))
            quantiles = stored.get("quantiles")
            head = cls(
                stored["backbone"],
                stored["backbone_sha256"],
                stored["embedding"],
                CLASSIFIERS[stored["kind"]].from_arrays(arrays),
                calibration_from_json(stored["calibration"]),
                stored["settings"],
                Thresholds.from_json(stored["thresholds"]) if "thresholds" in stored else HALFWAY,
                quantiles and {label: tuple(quantiles[label]) for label in ("real", "ai")},
            )
            known = backbones().get(head.backbone)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsCorrupt(f"{path} is not a complete head ({error!r}); {RETRAIN}") from error
        if known and head.embedding != known.embedding:
            raise WeightsMismatch(
                f"{path} was made for embedding {head.embedding!r}, here it is {known.embedding!r}; {RETRAIN}"
            )
        return head

    @classmethod
    def open(cls, folder: Path) -> tuple[Head, str]:
        """A head in a folder of its own, and its version for the verdict; size and hash are checked first.

        Raises:
            WeightsCorrupt, WeightsMismatch: as ``load``, or there is no such folder.
        """
        card, path = model_file(folder)
        return cls.load(path), card.version

    def alone(self, name: str) -> FusionModel:
        """A fusion model that is this head and nothing else: its probability, its thresholds."""
        feature = f"{self.detector}_prob"
        nothing = np.full((1, len(QUANTILES)), np.nan)
        known = self.quantiles
        return FusionModel(
            name=name,
            profile="full",
            inputs=(feature,),
            estimator=Logistic(
                Scaling(np.zeros(1), np.full(1, PASS_THROUGH), np.ones(1, bool)),
                np.full(1, PASS_THROUGH),
                np.zeros(1),
                0.0,
            ),
            calibration=Platt(1.0, 0.0),
            thresholds=self.thresholds,
            quantiles={label: np.array([known[label]]) if known else nothing for label in ("real", "ai")},
            metrics={},
        )


class FrozenDetector(TorchDetector):
    """``<name>_prob``: the head's calibrated probability for the mean embedding of the image's views."""

    def __init__(
        self,
        network: nn.Module,
        record: Backbone,
        head: Head,
        version: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(network, version, device, dtype)
        self.record = record
        self.head = head

    @classmethod
    def load(cls, weights: Weights, device: str, dtype: torch.dtype = torch.float32) -> Self:
        """Build the installed head of this detector, and the backbone that it was trained on.

        Raises:
            BackboneMismatch: the installed backbone is another one than the head's, or another detector's.
            WeightsMissing, WeightsCorrupt, WeightsMismatch: see models.loaders and ``Head.load``.
        """
        card = DETECTORS[cls.name].model
        return cls.with_head(Head.load(weights.path(card)), weights.card(card).version, weights, device, dtype)

    @classmethod
    def with_head(
        cls, head: Head, version: str, weights: Weights, device: str, dtype: torch.dtype = torch.float32
    ) -> Self:
        """Build the backbone of a head; errors as in ``load``."""
        card = backbone_card(weights, head, cls.name)
        embedder = Embedder.load(weights, head.backbone, dtype)
        return cls(embedder.network, embedder.record, head, f"{version} on {card.version}", device, dtype)

    @classmethod
    def tiny(cls) -> Self:
        from transformers import Dinov2Config

        from models.backbone_nets import Dinov2

        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 56}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Dinov2(Dinov2Config(image_size=112, **sizes)).eval().requires_grad_(False)
        weights = np.random.default_rng(0).normal(size=2 * sizes["hidden_size"])
        line = Linear(np.zeros_like(weights), np.ones_like(weights), weights, np.zeros(1))
        record = next(each for each in backbones().values() if each.library == "transformers")
        head = Head(record.name, "", record.embedding, line, Platt(1.0, 0.0), "drawn at random")
        return cls(network, record, head, "tiny")

    def preprocess(self, sample: Sample) -> Tensor:
        return views(sample, self.record)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        return (self.network(views),)

    def describe(self, outputs: tuple[Tensor, ...], sample: Sample) -> Measurement:
        embedding = outputs[0].mean(dim=0).double().numpy()
        return Measurement({f"{self.name}_prob": self.head.probability(embedding)})


def backbone_card(weights: Weights, head: Head, detector: str) -> Card:
    """The card of a head's backbone.

    Raises:
        BackboneMismatch: there is no such backbone here, it is another file, or its scores have another name.
    """
    trained_on = f"this head was trained on {head.backbone} with sha256 {head.backbone_sha256}"
    if head.backbone not in backbones() or head.backbone not in weights.cards:
        raise BackboneMismatch(f"{trained_on}; the backbones here are {', '.join(backbones())}; {RETRAIN}")
    if head.detector != detector:
        raise BackboneMismatch(f"{trained_on}, which is {head.detector}'s and not {detector}'s; {RETRAIN}")
    card = weights.card(head.backbone)
    if card.sha256 and card.sha256 != head.backbone_sha256:
        raise BackboneMismatch(f"{trained_on}, here {card.name} is the one with sha256 {card.sha256}; {RETRAIN}")
    return card


class DinoDetector(FrozenDetector):
    """``dino_prob``: DINOv2."""

    name: ClassVar[str] = "dino"
    features: ClassVar[Mapping[str, str]] = DETECTORS["dino"].features


class ClipHeadDetector(FrozenDetector):
    """``clip_prob``: a CLIP of any size."""

    name: ClassVar[str] = "clip"
    features: ClassVar[Mapping[str, str]] = DETECTORS["clip"].features


class DinoV3Detector(FrozenDetector):
    """``dinov3_prob``."""

    name: ClassVar[str] = "dinov3"
    features: ClassVar[Mapping[str, str]] = DETECTORS["dinov3"].features


class MetaClip2Detector(FrozenDetector):
    """``metaclip2_prob``."""

    name: ClassVar[str] = "metaclip2"
    features: ClassVar[Mapping[str, str]] = DETECTORS["metaclip2"].features


class Siglip2Detector(FrozenDetector):
    """``siglip2_prob``."""

    name: ClassVar[str] = "siglip2"
    features: ClassVar[Mapping[str, str]] = DETECTORS["siglip2"].features


class PeCoreDetector(FrozenDetector):
    """``pe_core_prob``: Perception Encoder."""

    name: ClassVar[str] = "pe_core"
    features: ClassVar[Mapping[str, str]] = DETECTORS["pe_core"].features


class Blip2Detector(FrozenDetector):
    """``blip2_prob``: BLIP-2's image tower."""

    name: ClassVar[str] = "blip2"
    features: ClassVar[Mapping[str, str]] = DETECTORS["blip2"].features

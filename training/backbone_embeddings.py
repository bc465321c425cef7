"""Labelled images under the backbones of models/backbones.toml: what heads are trained on. No command."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from inference.embedding import Embedder, ImageEmbedder
from models.backbones import backbone
from models.loaders import Weights
from training.embeddings import Deliveries, Embed, Embedded, embed_manifest
from utils.deliveries import DELIVERIES
from utils.device import get_device
from utils.settings import DecodeSettings, ModelSettings

# As published a head would learn containers; that it is measured on them shows that it did not.
LEARNT = ("web", "hard", "random1")
DELIVERED: Mapping[str, tuple[str, ...]] = {"train": LEARNT, "fusion": LEARNT, "val": DELIVERIES}


def embed_with(
    name: str,
    manifest: Path,
    cache: Path,
    models: ModelSettings,
    decode: DecodeSettings,
    deliveries: Deliveries = DELIVERED,
    ray: str | None = None,
    jobs: int = 1,
) -> Embedded:
    """Embed the images of a manifest with one backbone.

    Args:
        cache: folder for what is already known; a folder in it is named after the backbone's hash.

    Raises:
        SetupError: the backbone is not installed, damaged, or another network's; or Ray is not installed.
        TableError: as ``embed_manifest``.
    """
    record, weights = backbone(name), Weights.at(models.weights_dir)
    weights.path(name)  # told before images are read, and before Ray starts
    sha256 = weights.card(name).sha256
    about = {"backbone": name, "backbone_sha256": sha256, "embedding": record.embedding}
    make = partial(_make, name, models)
    return embed_manifest(
        manifest,
        deliveries,
        make,
        cache / f"{name}-{sha256[:12]}",
        decode,
        about,
        ray=ray,
        jobs=jobs,
        gpus=1 if models.device.startswith("cuda") else 0,
    )


def _make(name: str, settings: ModelSettings) -> Embed:
    dtype: torch.dtype = getattr(torch, settings.precision)
    return ImageEmbedder(
        Embedder.load(Weights.at(settings.weights_dir), name, dtype), get_device(settings.device), dtype
    )

"""Labelled images under the backbones of models/backbones.toml: what heads are trained on. No command."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from inference.embedding import Embedder, ImageEmbedder
from models.backbones import backbone
from models.loaders import Weights
from training.deliveries import TAUGHT, Deliveries
from training.embeddings import Embed, Embedded, embed_manifest
from utils.deliveries import DELIVERIES
from utils.device import get_device
from utils.persistence import digest
from utils.settings import DecodeSettings, ModelSettings

DELIVERED: Mapping[str, tuple[str, ...]] = {"train": TAUGHT, "fusion": TAUGHT, "val": DELIVERIES}


def embed_with(
    name: str,
    manifest: Path,
    cache: Path,
    models: ModelSettings,
    decode: DecodeSettings,
    deliveries: Deliveries = DELIVERED,
    *,
    seed: int = 0,
    ray: str | None = None,
    jobs: int = 1,
) -> Embedded:
    """Embed the images of a manifest with one backbone.

    Args:
        cache: folder for what is already known; a folder in it is named after all that an embedding depends on.
        seed: of the random deliveries.

    Raises:
        SetupError: the backbone is not installed, damaged, or another network's; or Ray is not installed.
        TableError: as ``embed_manifest``.
    """
    Weights.at(models.weights_dir).path(name)  # told before images are read, and before Ray starts
    about = made_by(name, models, seed)
    return embed_manifest(
        manifest,
        deliveries,
        partial(_make, name, models),
        cache / f"{name}-{digest(about)}",
        decode,
        about,
        seed=seed,
        ray=ray,
        jobs=jobs,
        gpus=1 if models.device.startswith("cuda") else 0,
    )


def made_by(name: str, models: ModelSettings, seed: int) -> dict[str, str]:
    """All that an embedding of an image depends on."""
    sha256 = Weights.at(models.weights_dir).card(name).sha256
    record = {"backbone": name, "backbone_sha256": sha256, "embedding": backbone(name).embedding}
    return record | {"precision": models.precision, "seed": str(seed)}


def _make(name: str, settings: ModelSettings) -> Embed:
    dtype: torch.dtype = getattr(torch, settings.precision)
    return ImageEmbedder(
        Embedder.load(Weights.at(settings.weights_dir), name, dtype), get_device(settings.device), dtype
    )

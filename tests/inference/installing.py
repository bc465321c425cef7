"""Weights as a user has them: a file in a weights folder, and its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from models.loaders import Weights, record_card
from utils.persistence import sha256_file


def install(
    folder: Path,
    name: str,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    sha256: str = "",
) -> Weights:
    """Write a state as the file of the card ``name``.

    Args:
        sha256: what the card says instead of the truth.
    """
    path = folder / f"{name}.safetensors"
    save_file(dict(state), path, dict(metadata or {}))
    register(folder, name, path, sha256)
    return Weights.at(folder)


def register(folder: Path, name: str, path: Path, sha256: str = "") -> None:
    """Make a file in the folder that of a card."""
    values = {"file": path.name, "size": path.stat().st_size, "sha256": sha256 or sha256_file(path)}
    record_card(name, values, folder)

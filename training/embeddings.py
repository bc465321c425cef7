"""Embeddings of labelled images, computed once and kept; what the trainers of heads and prompts share. No command.

Does not know what computes an embedding, nor what is fitted to it.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from ingress.decode import read_file
from ingress.sources import Ingress
from training.datasets import LABELS, check_splits, read_rows
from training.feature_table import Table
from utils.contracts import Sample
from utils.deliveries import FIXED, deliver
from utils.errors import InputError, TableError
from utils.settings import DecodeSettings

Embed: TypeAlias = Callable[[Sample], NDArray[np.float32]]
Cache: TypeAlias = dict[str, NDArray[np.float32]]  # "<sha256 of the file> <delivery>" -> embedding
SPLITS = ("train", "val")
SAVE_EVERY = 200  # embeddings; a stopped run loses no more


def embed_manifest(
    manifest: Path, deliveries: Sequence[str], embed: Embed, cache: Path, settings: DecodeSettings
) -> Table:
    """Embed every real and AI image of a manifest under each delivery.

    Images that cannot be read are named on stderr and left out.

    Args:
        manifest: CSV with filepath (from its own folder), label (real | ai), source and, if it has one, split.
        deliveries: of utils.deliveries.DELIVERIES.
        cache: .npz of what is already known; name it after everything that ``embed`` depends on.

    Raises:
        TableError: the manifest or the cache cannot be used, a source is in both splits, or a label has no image.
    """
    rows = [row for row in read_rows(manifest) if row["label"] in LABELS and row["split"] in SPLITS]
    check_splits((row["source"], row["split"]) for row in rows)
    known = _read_cache(cache)
    kept: list[tuple[dict[str, str], str, NDArray[np.float32]]] = []
    unsaved = 0
    with Ingress(settings) as ingress:
        try:
            for row in track(rows, "embedding", console=Console(stderr=True)):
                try:
                    fresh, vectors = _embed(
                        manifest.parent / row["filepath"], deliveries, embed, known, ingress, settings
                    )
                except InputError as error:
                    print(f"left out: {row['filepath']}: {error.code}: {error}", file=sys.stderr)
                    continue
                kept += [(row, delivery, vector) for delivery, vector in zip(deliveries, vectors, strict=True)]
                unsaved += fresh
                if unsaved >= SAVE_EVERY:
                    _write_cache(cache, known)
                    unsaved = 0
        finally:
            if unsaved:
                _write_cache(cache, known)
    labels = np.array([row["label"] == "ai" for row, _, _ in kept], np.int64)
    if len(np.unique(labels)) < 2:
        raise TableError(f"{manifest} gives no readable images of one of the labels real and ai")
    return Table(
        inputs=(),
        matrix=np.array([vector for _, _, vector in kept], float),
        labels=labels,
        sources=np.array([row["source"] for row, _, _ in kept]),
        splits=np.array([row["split"] for row, _, _ in kept]),
        deliveries=np.array([delivery for _, delivery, _ in kept]),
        sha256=hashlib.sha256(manifest.read_bytes()).hexdigest(),
    )


def _embed(
    path: Path,
    deliveries: Sequence[str],
    embed: Embed,
    known: Cache,
    ingress: Ingress,
    settings: DecodeSettings,
) -> tuple[int, list[NDArray[np.float32]]]:
    """How many embeddings of one file had to be computed, and those of all deliveries."""
    raw = read_file(path, settings.max_bytes)
    sha256 = hashlib.sha256(raw).hexdigest()
    keys = [f"{sha256} {delivery}" for delivery in deliveries]
    todo = [(key, delivery) for key, delivery in zip(keys, deliveries, strict=True) if key not in known]
    if todo:
        sample = ingress.decode(raw, str(path))
        for key, delivery in todo:
            delivered = deliver(sample.upright, delivery) if delivery in FIXED else None
            known[key] = embed(ingress.decode(delivered, str(path)) if delivered else sample)
    return len(todo), [known[key] for key in keys]


def _read_cache(path: Path) -> Cache:
    if not path.exists():
        return {}
    try:
        with np.load(path) as stored:
            return dict(zip(stored["keys"].tolist(), stored["embeddings"], strict=True))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TableError(f"{path} is not a file of embeddings ({error}); delete it and run again") from error


def _write_cache(path: Path, known: Cache) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.savez(file, keys=np.array(list(known)), embeddings=np.stack(list(known.values())))
    part.replace(path)

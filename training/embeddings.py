"""Embeddings of labelled images, computed once and kept; what the trainers of heads and prompts share. No command.

What is computed goes into shards beside the result, so a run that was killed goes on; here, or on a Ray cluster. Does
not know what computes an embedding, nor what is fitted to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from ingress.sources import Ingress
from training.datasets import LABELS, SPLITS, check_splits, read_rows
from training.deliveries import Deliveries
from training.extraction import Task, delivered
from training.feature_table import Table
from utils.actors import check_ray, through_actors
from utils.contracts import Sample
from utils.errors import InputError, TableError
from utils.persistence import sha256_file
from utils.settings import DecodeSettings

Vector: TypeAlias = NDArray[np.float32]
Embed: TypeAlias = Callable[[Sequence[Sample]], Sequence[Vector]]
Make: TypeAlias = Callable[[], Embed]  # picklable: where several processes embed, each makes its own
Known: TypeAlias = dict[str, Vector]  # "<sha256 of the file> <delivery>" -> embedding

GROUP = 16  # images that are embedded together, and kept together: a killed run loses no more
COLUMNS = ("labels", "sources", "splits", "deliveries", "filepaths")


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Embeddings with what is known of their images, and of what computed them."""

    table: Table  # its matrix is n x d
    filepaths: NDArray[np.str_]  # n, as the manifest has them
    about: Mapping[str, str]  # backbone, backbone_sha256, embedding, precision, seed, manifest_sha256

    def save(self, path: Path) -> None:
        """Write one .npz: numbers and names, nothing that could run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {name: getattr(self.table, name) for name in COLUMNS[:-1]}
        _write(
            path,
            embeddings=self.table.matrix.astype(np.float32),
            filepaths=self.filepaths,
            about=np.array(json.dumps(dict(self.about), sort_keys=True)),
            **columns,
        )

    @classmethod
    def load(cls, path: Path) -> Embedded:
        """
        Raises:
            TableError: not such a file.
        """
        stored = _read(path)
        try:
            about = dict(json.loads(str(stored["about"])))
            labels, sources, splits, deliveries = columns = [stored[name] for name in COLUMNS[:-1]]
            matrix = stored["embeddings"].astype(float)
            if matrix.ndim != 2 or any(len(column) != len(matrix) for column in (*columns, stored["filepaths"])):
                raise ValueError("columns of different length")
            table = Table((), matrix, labels, sources, splits, deliveries, about["manifest_sha256"])
            return cls(table, stored["filepaths"], about)
        except (KeyError, ValueError, TypeError) as error:
            raise TableError(
                f"{path} is not a file of scripts.extract_embeddings ({error!r}); make it again"
            ) from error


def embed_manifest(
    manifest: Path,
    deliveries: Deliveries,
    make: Make,
    cache: Path,
    decode: DecodeSettings,
    about: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    ray: str | None = None,
    jobs: int = 1,
    gpus: int = 0,
) -> Embedded:
    """Embed every real and AI image of a manifest under each delivery.

    Images that cannot be read are named on stderr and left out.

    Args:
        manifest: CSV with filepath (from its own folder), label (real | ai), source and, if it has one, split.
        deliveries: of utils.deliveries.DELIVERIES, or random1, random2, ...
        cache: folder for what is already known; name it after everything that an embedding depends on.
        seed: of the random deliveries.
        ray: address of a cluster, or "local" for one on this machine; None: in this process.
        jobs: Ray actors that embed.
        gpus: that each of them takes.

    Raises:
        TableError: the manifest or the cache cannot be used, a source is in both splits, or a label has no image.
        BadSettings: Ray is asked for and not installed.
    """
    rows = [row for row in read_rows(manifest) if row["label"] in LABELS and row["split"] in SPLITS]
    check_splits((row["source"], row["split"]) for row in rows)
    known = _read_cache(cache)
    digests = _digests(manifest.parent, rows)
    wanted = [
        (row, each, f"{digests[row['filepath']]} {each}")
        for row in rows
        for each in (deliveries[row["split"]] if isinstance(deliveries, Mapping) else deliveries)
    ]
    folder = str(manifest.parent.absolute())
    todo = {key: Task(folder, row["filepath"], each, seed) for row, each, key in wanted if key not in known}
    groups = _groups(todo)
    results = _on_ray(groups, make, decode, ray, jobs, gpus) if ray else map(GroupEmbedder(make, decode), groups)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("embedding", total=len(todo))
        for keys, vectors, failures in results if groups else ():
            for failure in failures:
                print(f"left out: {failure}", file=sys.stderr)
            _keep(cache, keys, vectors)
            known |= dict(zip(keys, vectors, strict=True))
            progress.advance(bar, len(keys) + len(failures))
    kept = [(row, each, known[key]) for row, each, key in wanted if key in known]
    if len({row["label"] for row, _, _ in kept}) < 2:
        raise TableError(f"{manifest} gives no readable images of one of the labels real and ai")
    manifest_sha256 = sha256_file(manifest)
    table = Table(
        inputs=(),
        matrix=np.array([vector for _, _, vector in kept], float),
        labels=np.array([row["label"] == "ai" for row, _, _ in kept], np.int64),
        sources=np.array([row["source"] for row, _, _ in kept]),
        splits=np.array([row["split"] for row, _, _ in kept]),
        deliveries=np.array([each for _, each, _ in kept]),
        sha256=manifest_sha256,
    )
    filepaths = np.array([row["filepath"] for row, _, _ in kept])
    return Embedded(table, filepaths, {**(about or {}), "manifest_sha256": manifest_sha256})


def _digests(folder: Path, rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Of each file; of one that is not there nothing, so that reading it says why."""
    paths = {row["filepath"]: folder / row["filepath"] for row in rows}
    return {name: sha256_file(path) if path.is_file() else f"no file {name}" for name, path in paths.items()}


# --- one group of images


Group: TypeAlias = Sequence[tuple[str, Task]]  # with the key of each
Found: TypeAlias = tuple[list[str], list[Vector], list[str]]  # keys, embeddings, a line for each that cannot be read


def _groups(todo: Mapping[str, Task]) -> list[Group]:
    items = list(todo.items())
    return [items[start : start + GROUP] for start in range(0, len(items), GROUP)]


class GroupEmbedder:
    """What embeds in one process, built when the first group comes."""

    def __init__(self, make: Make, decode: DecodeSettings) -> None:
        self.make, self.decode = make, decode
        self.embed: Embed | None = None

    def __call__(self, group: Group) -> Found:
        self.embed = self.embed or self.make()
        keys, samples, failures = [], [], []
        with Ingress(self.decode) as ingress:
            for key, task in group:
                try:
                    samples.append(delivered(task, ingress))
                    keys.append(key)
                except InputError as error:
                    failures.append(f"{task.filepath} ({task.delivery}): {error.code}: {error}")
        return keys, list(self.embed(samples)) if samples else [], failures


class RayEmbedder:
    """The same as Ray Data calls it."""

    def __init__(self, make: Make, decode: DecodeSettings) -> None:
        self.embed = GroupEmbedder(make, decode)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        keys, vectors, failures = self.embed([(key, Task(**task)) for key, task in json.loads(row["group"])])
        width = len(vectors[0]) if vectors else 0
        raw = b"".join(vector.astype("<f4").tobytes() for vector in vectors)
        return {"found": json.dumps([keys, width, failures]), "raw": raw}


def _on_ray(
    groups: Sequence[Group], make: Make, decode: DecodeSettings, address: str, jobs: int, gpus: int
) -> Iterator[Found]:
    """A pool of ``jobs`` actors; one that dies is started again, and its group is embedded again."""
    check_ray("--ray")
    rows = [{"group": json.dumps([(key, asdict(task)) for key, task in group])} for group in groups]
    for row in through_actors(rows, RayEmbedder, (make, decode), address, actors=jobs, gpus=gpus):
        keys, width, failures = json.loads(row["found"])
        vectors = np.frombuffer(row["raw"], "<f4").reshape(len(keys), width) if keys else np.empty((0, 0))
        yield keys, list(vectors.astype(np.float32)), failures


# --- what is kept


def _read_cache(folder: Path) -> Known:
    """Every shard of a folder."""
    known: Known = {}
    for path in sorted(folder.glob("*.npz")):
        stored = _read(path)
        try:
            known |= dict(zip(stored["keys"].tolist(), stored["embeddings"], strict=True))
        except (KeyError, ValueError) as error:
            raise TableError(f"{path} is not a shard of embeddings ({error!r}); delete it and run again") from error
    return known


def _keep(folder: Path, keys: Sequence[str], vectors: Sequence[Vector]) -> None:
    """One shard, named after what is in it: two runs may share a folder."""
    if keys:
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        _write(folder / f"{name}.npz", keys=np.array(keys), embeddings=np.stack(vectors))


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise TableError(f"{path} is not a file of embeddings ({error}); delete it and run again") from error


def _write(path: Path, **arrays: NDArray[Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub mistakes names for its option
    part.replace(path)

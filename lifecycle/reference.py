"""What the traffic looked like when a release was made: the numbers that drift is measured against, in the release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.estimators import FloatArray
from fusion.meta_model import FusionModel
from inference.clip_b16 import ClipB16Detector, embedding
from inference.parts import load_forensics
from ingress.sources import Ingress
from models.loaders import Weights
from training.datasets import read_rows
from training.extraction import Task, delivered
from training.feature_table import Table
from utils.settings import DecodeSettings

EMBEDDED = 400  # images whose embeddings are kept
ROWS = 4000  # more say nothing new, and are read at every start of the watch


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Signals and probabilities of images that the release's models did not learn from where there are such."""

    signals: tuple[str, ...]
    values: NDArray[np.float32]  # n x d, NaN = missing
    probabilities: FloatArray  # n
    deliveries: NDArray[np.str_]  # n
    sources: NDArray[np.str_]  # n
    embeddings: NDArray[np.float32] | None = None  # m x 64; None: they were not asked for
    embedded: NDArray[np.str_] | None = None  # m; the sources of these

    @classmethod
    def of(cls, model: FusionModel, table: Table) -> Reference:
        """Images of split val where a table has them, else all, each once; at most ROWS, evenly chosen.

        Without the forensics that the model's profile leaves out: verdicts will lack them, which is no drift.
        """
        rows = _once(table.rows(table.splits == "val") if "val" in table.splits else table)
        chosen = np.zeros(len(rows), np.bool_)
        chosen[np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int)] = True
        rows = rows.rows(chosen)
        read = rows.matrix[:, [rows.inputs.index(name) for name in model.inputs]]
        left_out = {
            name for each in load_forensics() if not each.runs_in(model.profile, model.inputs) for name in each.features
        }
        told = [index for index, name in enumerate(rows.inputs) if name not in left_out]
        return cls(
            tuple(rows.inputs[index] for index in told),
            rows.matrix[:, told].astype(np.float32),
            model.probabilities(read),
            rows.deliveries,
            rows.sources,
        )

    def save(self, path: Path) -> None:
        arrays: dict[str, NDArray[Any]] = {
            "signals": np.array(self.signals),
            "values": self.values,
            "probabilities": self.probabilities,
            "deliveries": self.deliveries,
            "sources": self.sources,
        }
        if self.embeddings is not None and self.embedded is not None:
            arrays |= {"embeddings": self.embeddings, "embedded": self.embedded}
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Of a release that was verified; nothing in the file can be code."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(
                tuple(map(str, stored["signals"])),
                stored["values"],
                stored["probabilities"],
                stored["deliveries"],
                stored["sources"],
                stored["embeddings"] if "embeddings" in stored.files else None,
                stored["embedded"] if "embeddings" in stored.files else None,
            )


def _once(table: Table) -> Table:
    """One row of each image, a delivery by chance: several are no independent witnesses.

    In turn would not do: where labels alternate in a data set, each would come under one delivery.
    """
    if table.images is None:
        return table
    order = np.lexsort((table.deliveries, table.images))
    _, starts, counts = np.unique(table.images[order], return_index=True, return_counts=True)
    chosen = np.zeros(len(table), np.bool_)
    chosen[order[starts + np.random.default_rng(0).integers(counts)]] = True
    return table.rows(chosen)


def embed(
    reference: Reference, dataset: Path, deliveries: Sequence[str], weights: Weights, decode: DecodeSettings
) -> Reference:
    """The reference with embeddings of at most EMBEDDED validation images, each under one of the deliveries.

    Raises:
        SetupError: the tower that gives them is not installed.
    """
    detector = ClipB16Detector.load(weights)
    rows = [row for row in read_rows(dataset) if row["split"] == "val"]
    chosen = [rows[index] for index in np.unique(np.linspace(0, len(rows) - 1, min(EMBEDDED, len(rows))).astype(int))]
    found, sources = [], []
    with Ingress(decode) as ingress:
        for number, row in enumerate(chosen):
            task = Task(str(dataset.parent.absolute()), row["filepath"], deliveries[number % len(deliveries)], 0)
            found.append(embedding(detector.tokens(delivered(task, ingress).upright)))
            sources.append(row["source"])
    return replace(reference, embeddings=np.array(found, np.float32), embedded=np.array(sources, np.str_))

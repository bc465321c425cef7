"""What the traffic looked like when a release was made: the numbers that drift is measured against, in the release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusion.estimators import FloatArray
from fusion.meta_model import FusionModel
from training.feature_table import Table

ROWS = 4000  # more say nothing new, and are read at every start of the watch


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Signals and probabilities of images that the release's models did not learn from where there are such."""

    signals: tuple[str, ...]
    values: NDArray[np.float32]  # n x d, NaN = missing
    probabilities: FloatArray  # n
    deliveries: NDArray[np.str_]  # n
    sources: NDArray[np.str_]  # n

    @classmethod
    def of(cls, model: FusionModel, table: Table) -> Reference:
        """Rows of split val where a table has them, else all; at most ROWS, evenly chosen."""
        rows = table.rows(table.splits == "val") if "val" in table.splits else table
        chosen = np.zeros(len(rows), np.bool_)
        chosen[np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int)] = True
        rows = rows.rows(chosen)
        read = rows.matrix[:, [rows.inputs.index(name) for name in model.inputs]]
        return cls(
            rows.inputs, rows.matrix.astype(np.float32), model.probabilities(read), rows.deliveries, rows.sources
        )

    def save(self, path: Path) -> None:
        np.savez_compressed(
            path,
            signals=np.array(self.signals),
            values=self.values,
            probabilities=self.probabilities,
            deliveries=self.deliveries,
            sources=self.sources,
        )

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
            )

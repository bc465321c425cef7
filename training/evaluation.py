"""Measures a fusion artifact on a feature table, per delivery, content, detector and kind. Writes no page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusion.estimators import FloatArray
from fusion.meta_model import FusionModel
from inference.registry import DETECTORS
from training.datasets import read_rows
from training.feature_table import Table, families, read_columns, read_table, source_weights, usable
from training.metrics import evaluate, plain, resampled_weights
from training.thresholds import measure_tiers
from utils.deliveries import DELIVERIES
from utils.errors import TableError

KNOWN = ("filepath", "generator", "kind", "content", "models")
RARE = (0.5, 0.2, 0.1, 0.05, 0.02)  # shares that a verdict's reference may name
FEWEST = 5  # images of a generator or kind that has a row of its own: fewer say nothing
ALONE = ("_prob", "_score", "_anomaly")  # features of detectors that are an opinion by themselves

Metrics = Mapping[str, Sequence[float]]
Tiers = Mapping[str, Mapping[str, float | None]]  # tier -> coverage, error


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Rows of the feature table, what the artifact says about them, and what the manifest says."""

    model: FusionModel
    threshold: float
    table: Table  # every feature column
    known: tuple[Mapping[str, str], ...]  # n; by KNOWN
    probabilities: FloatArray

    @property
    def predicted(self) -> NDArray[np.int64]:
        return (self.probabilities >= self.threshold).astype(np.int64)

    def rows(self, chosen: NDArray[np.bool_]) -> Judged:
        known = tuple(each for each, keep in zip(self.known, chosen, strict=True) if keep)
        return Judged(self.model, self.threshold, self.table.rows(chosen), known, self.probabilities[chosen])

    def by_delivery(self) -> Iterator[tuple[str, Judged]]:
        present = [str(each) for each in np.unique(self.table.deliveries)]
        for name in sorted(present, key=lambda each: DELIVERIES.index(each) if each in DELIVERIES else len(DELIVERIES)):
            yield name, self.rows(self.table.deliveries == name)

    def values(self, key: str) -> NDArray[np.str_]:
        return np.array([each.get(key) or "" for each in self.known], dtype=np.str_)

    def measure(self, scores: FloatArray | None = None, threshold: float | None = None) -> Metrics | None:
        """value, low, high by metric, of the fusion's or other scores; None where one of the labels is missing."""
        if len(np.unique(self.table.labels)) < 2:
            return None
        scores = self.probabilities if scores is None else scores
        threshold = self.threshold if threshold is None else threshold
        return plain(evaluate(self.table.labels, scores, self.table.sources, threshold))


def judge(features: Path, manifest: Path | None, artifact: Path, split: str, threshold: float | None = None) -> Judged:
    """Apply the artifact to a feature table.

    Args:
        threshold: of the label; None: the artifact's.

    Raises:
        TableError: the table lacks an input, a label, or every row of the split.
        FusionCorrupt, FusionMismatch: the artifact cannot be used.
    """
    model = FusionModel.load(artifact)
    table = read_table(features)
    known = _known(features, manifest)
    if absent := sorted(set(model.inputs) - set(table.inputs)):
        raise TableError(f"{features} has no column {', '.join(absent)}, which {model.name} reads")
    threshold = model.thresholds.label if threshold is None else threshold
    judged = Judged(model, threshold, table, known, _probabilities(model, table, table.matrix))
    if split == "all":
        return judged
    if split not in table.splits:
        raise TableError(f"{features} has no rows of split {split}; choose another --split")
    return judged.rows(table.splits == split)


def _known(features: Path, manifest: Path | None) -> tuple[Mapping[str, str], ...]:
    """What is known of each row that ``read_table`` takes, in its order."""
    more: dict[str, dict[str, str]] = {}
    if manifest is not None:
        more = {row["filepath"]: row for row in read_rows(manifest, ("filepath",))}
    columns = read_columns(features)
    if "filepath" not in columns:
        raise TableError(f"{features} has no column filepath, which tells the images apart")
    told = {name: cells for name, cells in columns.items() if name in KNOWN}
    rows = [dict(zip(told, map(str, cells), strict=True)) for cells in zip(*told.values(), strict=True)]
    return tuple(
        {key: row.get(key) or more.get(row["filepath"], {}).get(key, "") for key in KNOWN}
        for row, taken in zip(rows, usable(columns), strict=True)
        if taken
    )


def _probabilities(model: FusionModel, table: Table, matrix: FloatArray) -> FloatArray:
    return model.probabilities(matrix[:, [table.inputs.index(name) for name in model.inputs]])


# --- what is measured


def measure(judged: Judged) -> dict[str, dict[str, Metrics]]:
    """Every table of the report: title -> row -> metric -> numbers."""
    sections: dict[str, dict[str, Metrics]] = {"By delivery": {}}
    for delivery, rows in judged.by_delivery():
        _add(sections["By delivery"], delivery, rows.measure())
        for content in np.unique(rows.values("content")):
            if content:
                matched = sections.setdefault("Content matched", {})
                _add(matched, f"{delivery}, {content}", rows.rows(rows.values("content") == content).measure())
        for name, metrics in _alone(rows):
            sections.setdefault("Each detector alone", {})[f"{delivery}, {name}"] = metrics
        without = sections.setdefault("Fusion without", {})
        read = families(judged.model.inputs)
        for name, columns in families(rows.table.inputs).items():
            left = read.keys() - {name}  # without the only family that it reads, nothing is fused
            if left and name in read and np.isfinite(rows.table.matrix[:, columns]).any():
                matrix = rows.table.matrix.copy()
                matrix[:, columns] = np.nan
                _add(without, f"{delivery}, {name}", rows.measure(_probabilities(judged.model, rows.table, matrix)))
    return {title: table for title, table in sections.items() if table}


def rarity(judged: Judged) -> dict[float, tuple[tuple[float, float, float], tuple[float, float, float]]]:
    """Whether "1 in 20 scores this high" is true of images that the reference table was not made from.

    Returns:
        For each share that a verdict may name: of real images the share that is told to be at most as rare among real
        ones, and of AI images likewise; value and 95 % interval over sources. Both should be near the named share.
    """
    table = judged.model.reference
    if table is None:
        return {}
    told = [
        table.look_up(probability, delivery)
        for probability, delivery in zip(judged.probabilities, judged.table.deliveries.tolist(), strict=True)
    ]
    weights = resampled_weights(judged.table.labels, judged.table.sources, 0)
    columns = np.array([(each.real_as_high, each.ai_as_low) for each in told]).T

    def shares(named: float, label: int) -> tuple[float, float, float]:
        of = judged.table.labels == label
        found = weights[:, of] @ (columns[label, of] <= named) / weights[:, of].sum(axis=1)
        low, high = np.quantile(found[1:], (0.025, 0.975))
        return float(found[0]), float(low), float(high)

    return {named: (shares(named, 0), shares(named, 1)) for named in RARE}


def _add(table: dict[str, Metrics], name: str, metrics: Metrics | None) -> None:
    if metrics is not None:
        table[name] = metrics


def _alone(rows: Judged) -> Iterator[tuple[str, Metrics]]:
    """Fusion and each detector that measured anything, at the cut that calls as many real images real as fusion does.

    A detector that has no number for an image says nothing against it: the number is taken as 0.
    """
    fusion = rows.measure()
    if fusion is None:
        return
    yield "fusion", fusion
    weights = source_weights(rows.table.labels, rows.table.sources) * (rows.table.labels == 0)
    share = float(weights @ (rows.predicted == 0) / weights.sum())
    for name in dict.fromkeys(name for spec in DETECTORS.values() for name in spec.features if name.endswith(ALONE)):
        scores = rows.table.matrix[:, rows.table.inputs.index(name)] if name in rows.table.inputs else np.array(np.nan)
        if np.isfinite(scores).any():
            scores = np.nan_to_num(scores)
            metrics = rows.measure(scores, _cut_above_share(scores, weights, share))
            assert metrics is not None
            yield name, metrics


def _cut_above_share(scores: FloatArray, weights: FloatArray, share: float) -> float:
    """The lowest cut with at least ``share`` of the weight below it."""
    order = np.argsort(scores, kind="stable")
    below = np.cumsum(weights[order]) / weights.sum()
    last = min(int(np.searchsorted(below, share - 1e-9)), len(order) - 1)  # 1e-9: sums of weights are not exact
    return float(np.nextafter(scores[order][last], np.inf))


def tiers(judged: Judged) -> dict[str, Tiers]:
    """By delivery: what share of the images gets each tier, and how many of those the label gets wrong."""
    thresholds, label = judged.model.thresholds, judged.threshold
    return {
        name: measure_tiers(rows.table, rows.probabilities, thresholds, label) for name, rows in judged.by_delivery()
    }


def shares(judged: Judged, label: int, key: str) -> list[tuple[str, int, int, dict[str, float]]]:
    """By generator or kind, worst first: name, images, sources, and the share judged rightly in each delivery."""
    rows = judged.rows(judged.table.labels == label)
    names = rows.values(key)
    names = np.where(names == "", rows.table.sources, names)
    paths = rows.values("filepath")
    few = [name for name in np.unique(names) if len(set(paths[names == name])) < FEWEST]
    names = np.where(np.isin(names, few), f"{len(few)} with fewer than {FEWEST} images", names)
    found = []
    for name in np.unique(names):
        chosen = rows.rows(names == name)
        right = {delivery: float((each.predicted == label).mean()) for delivery, each in chosen.by_delivery()}
        images = len(set(chosen.values("filepath")))
        found.append((str(name), images, len(np.unique(chosen.table.sources)), right))
    return sorted(found, key=lambda each: np.mean(list(each[3].values())))


# --- what is written

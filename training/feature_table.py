"""The feature table that fusion trains from: one row per image and delivery, CSV or Parquet. Knows no model."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusion.estimators import FloatArray, clean
from fusion.reference import KINDS, kind_feature, most_like
from inference.registry import DETECTORS
from training.datasets import LABELS, SPLITS, fusion_split
from utils.errors import TableError

IntArray: TypeAlias = NDArray[np.int64]
NameArray: TypeAlias = NDArray[np.str_]
Columns: TypeAlias = Mapping[str, Sequence[str] | FloatArray]  # Parquet's number columns are arrays, NaN = missing

REQUIRED_COLUMNS = ("label", "source", "split")
# Describe an image; never features.
OTHER_COLUMNS = ("delivery", "generator", "filepath", "sha256", "kind", "content", "models")
FORENSICS = "forensics"  # all modules together
# Marks of a generator are answered by rules (fusion.decision); as inputs they would teach how data sets are stored.
NEVER_INPUTS = ("provenance.*", "watermark.*")
PARQUET = ".parquet"  # a table's suffix; any other is CSV


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Feature rows with what is known about them."""

    inputs: tuple[str, ...]
    matrix: FloatArray  # n x d, NaN = missing
    labels: IntArray  # n; 1 = AI
    sources: NameArray  # n; images of one source are not independent
    splits: NameArray  # n; train or val
    deliveries: NameArray  # n; clean, web, hard, ...
    sha256: str = ""  # of the file it was read from
    kinds: NameArray | None = None  # n; what each image seems to be, of fusion.reference.KINDS or ANY
    images: NameArray | None = None  # n; the file of each row; one file has a row for each delivery

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: NDArray[np.bool_]) -> Table:
        return Table(
            self.inputs,
            self.matrix[chosen],
            self.labels[chosen],
            self.sources[chosen],
            self.splits[chosen],
            self.deliveries[chosen],
            self.sha256,
            None if self.kinds is None else self.kinds[chosen],
            None if self.images is None else self.images[chosen],
        )


def read_table(path: Path, inputs: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> Table:
    """Read a table; rows that are neither real nor ai are left out.

    Where a table has rows of split ``fusion``, they are the ones to train from, and those of ``train`` are left out:
    detectors have learnt from them.

    Args:
        path: Parquet by its suffix, else CSV.
        inputs: patterns (``fnmatch``) of the feature columns to use, in the table's order.
        exclude: patterns of those not to use, besides NEVER_INPUTS.

    Raises:
        TableError: columns are missing, a feature is not a number, or nothing is left.
    """
    columns = read_columns(path)
    absent = [name for name in REQUIRED_COLUMNS if name not in columns]
    if absent:
        raise TableError(f"{path} has no column {', '.join(absent)}")
    names = _feature_columns(tuple(columns), inputs, exclude)
    labels = np.array(columns["label"], np.str_)
    if not {"real", "ai"} <= set(labels):
        raise TableError(f"{path} needs rows of both labels, real and ai")
    splits = np.array(columns["split"], np.str_)
    if unknown := set(map(str, splits)) - set(SPLITS):
        raise TableError(f"{path} has splits other than {', '.join(SPLITS)}: {', '.join(sorted(unknown))}")
    table = Table(
        inputs=names,
        matrix=np.column_stack([numbers(name, columns[name]) for name in names]),
        labels=(labels == "ai").astype(np.int64),
        sources=np.array(columns["source"], np.str_),
        splits=np.where(splits == "fusion", "train", splits),
        deliveries=np.array(columns.get("delivery", ["clean"] * len(labels)), np.str_),
        kinds=_kinds(columns, len(labels)),
        images=np.array(columns["filepath"], np.str_) if "filepath" in columns else None,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    return table.rows(usable(columns))


def _kinds(columns: Columns, count: int) -> NameArray:
    shares = {name: numbers(name, columns[name]) for name in map(kind_feature, KINDS) if name in columns}
    rows = ({name: float(column[row]) for name, column in shares.items()} for row in range(count))
    return np.array([most_like(row)[0] for row in rows], np.str_)


def usable(columns: Columns) -> NDArray[np.bool_]:
    """Which rows of a table ``read_table`` takes."""
    labels, splits = np.array(columns["label"], np.str_), np.array(columns["split"], np.str_)
    return np.isin(labels, LABELS) & np.isin(splits, (fusion_split(splits), "val"))


def read_columns(path: Path) -> Columns:
    """Every column of a table, in order; the cells of a CSV stay text.

    Raises:
        TableError: the file cannot be read as what its suffix says.
    """
    return _parquet_columns(path) if path.suffix == PARQUET else _csv_columns(path)


def _csv_columns(path: Path) -> Columns:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} cannot be read as CSV: {error}") from error
    header, body = (rows[0], [row for row in rows[1:] if row]) if rows else ([], [])
    if len(set(header)) != len(header):
        raise TableError("the table names a column twice")
    ragged = next((number for number, row in enumerate(body, 2) if len(row) != len(header)), None)
    if ragged:
        raise TableError(f"{path} line {ragged} has another number of cells than the header")
    cells = zip(*body, strict=True) if body else [()] * len(header)
    return dict(zip(header, cells, strict=True))


def _parquet_columns(path: Path) -> Columns:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError as error:
        raise TableError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        table = parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise TableError(f"{path} cannot be read as Parquet: {error}") from error
    columns: dict[str, Sequence[str] | FloatArray] = {}
    for name in table.column_names:
        column = table[name]
        if types.is_floating(column.type) or types.is_integer(column.type) or types.is_boolean(column.type):
            columns[name] = column.cast("float64").to_numpy()
        else:
            columns[name] = ["" if cell is None else str(cell) for cell in column.to_pylist()]
    return columns


def _feature_columns(header: Sequence[str], inputs: Sequence[str], exclude: Sequence[str]) -> tuple[str, ...]:
    features = [name for name in header if name not in (*REQUIRED_COLUMNS, *OTHER_COLUMNS)]
    for pattern in (*inputs, *exclude):
        if not any(fnmatch(name, pattern) for name in features):
            raise TableError(f"no feature column matches {pattern!r}")
    chosen = (name for name in features if any(fnmatch(name, pattern) for pattern in inputs))
    names = tuple(name for name in chosen if not any(fnmatch(name, each) for each in (*exclude, *NEVER_INPUTS)))
    if not names:
        raise TableError("every feature column is excluded")
    return names


def numbers(name: str, cells: Sequence[str] | FloatArray) -> FloatArray:
    """One feature column; an empty cell is NaN.

    Raises:
        TableError: a cell is no number.
    """
    try:
        column = cells if isinstance(cells, np.ndarray) else np.array([cell or "nan" for cell in cells]).astype(float)
    except ValueError as error:
        raise TableError(f"column {name!r} is not a feature ({error}); leave it out with --exclude {name}") from error
    return clean(column)


def family(name: str) -> str:
    """The module or detector a feature comes from: what goes missing together."""
    stem = name.partition(".")[0]
    for suffix in ("_prob", "_score", "_anomaly"):
        stem = stem.removesuffix(suffix)
    return stem


def families(inputs: Sequence[str]) -> Mapping[str, list[int]]:
    """Family -> positions of its inputs, in order of first appearance."""
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(inputs):
        positions.setdefault(family(name), []).append(position)
    return positions


def part(name: str) -> str:
    """The detector that a feature comes from, or FORENSICS: what a machine has or has not."""
    owner = next((each for each, spec in DETECTORS.items() if name in spec.features), FORENSICS)
    return family(name) if owner == "mantranet_compact" else owner  # either width of it


def parts(inputs: Sequence[str]) -> Mapping[str, list[int]]:
    """Part -> positions of its inputs, in order of first appearance."""
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(inputs):
        positions.setdefault(part(name), []).append(position)
    return positions


def source_weights(labels: IntArray, sources: NameArray) -> FloatArray:
    """Row weights: classes weigh the same, and within a class each source does; they sum to 1."""
    groups, group_of_row, sizes = np.unique(
        np.column_stack([labels.astype(str), sources]), axis=0, return_inverse=True, return_counts=True
    )
    label_of_group = groups[:, 0].astype(np.int64)
    groups_per_class = np.bincount(label_of_group, minlength=2)
    classes = np.count_nonzero(groups_per_class)
    per_group = 1.0 / (classes * groups_per_class[label_of_group] * sizes)
    return np.asarray(per_group[group_of_row.reshape(-1)], float)

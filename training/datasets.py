"""The CSV of labelled images (dataset.csv, a manifest) that trainers, feature tables and reports read."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable
from pathlib import Path

from utils.errors import TableError


def read_rows(path: Path, required: Collection[str] = ("filepath", "label", "source")) -> list[dict[str, str]]:
    """Every row by column; ``split`` is train where nobody says.

    Raises:
        TableError: it cannot be read as CSV, a column is missing, or a row has another number of cells.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} cannot be read as CSV: {error}") from error
    if absent := [name for name in required if name not in (table.fieldnames or ())]:
        raise TableError(f"{path} has no column {', '.join(absent)}")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise TableError(f"{path}: row {number} has another number of cells than the header")
        row["split"] = row.get("split") or "train"
    return rows


def check_splits(sources_and_splits: Iterable[tuple[str, str]]) -> None:
    """Refuse a source that is both trained on and validated on: every number measured then would flatter.

    Raises:
        TableError: naming some of them.
    """
    sources: dict[str, set[str]] = {}
    for source, split in sources_and_splits:
        sources.setdefault(split, set()).add(source)
    if shared := sorted(sources.get("train", set()) & sources.get("val", set())):
        raise TableError(
            f"{len(shared)} sources are in train and in val, such as {', '.join(shared[:3])}; keep each in one"
        )

"""The CSV of labelled images (dataset.csv, a manifest) that trainers, feature tables and reports read."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from utils.errors import TableError, TooFewImages

DATASET = "dataset.csv"  # what the commands write, clean and train from when nobody names a table
# How the source of an image begins whose origin nobody states: the image itself, with what nearly repeats it.
BY_IMAGE = "image:"
LABELS = ("real", "ai")  # by what a network calls them, 0 and 1; a manifest may have others, which are left out
FEWEST_IMAGES = 20  # of a label: below it, 95 % of the real ones is all of them, and a threshold has nothing to rest on


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


def check_enough(rows: Sequence[Mapping[str, str]]) -> None:
    """Refuse a data set that no threshold could be chosen on, before hours of measuring.

    Raises:
        TooFewImages: fewer than FEWEST_IMAGES or two sources of a label to train on, or a label that val lacks.
    """
    more = (
        "add images to data/real and data/ai, at best of further origins, then run python -m scripts.make_dataset_csv"
    )
    images = Counter((row["split"], row["label"]) for row in rows)
    sources = Counter(
        (split, label) for split, label, _ in {(row["split"], row["label"], row["source"]) for row in rows}
    )
    for label in LABELS:
        if images["train", label] < FEWEST_IMAGES or sources["train", label] < 2:
            raise TooFewImages(
                f"{images['train', label]} images of {sources['train', label]} sources are labelled {label} in train,"
                f" and it takes {FEWEST_IMAGES} of 2: {more}"
            )
    if bool(images["val", "real"]) != bool(images["val", "ai"]):
        raise TooFewImages(f"the val split holds one label only: {more}")

"""The CSV of labelled images (dataset.csv, a manifest) that trainers, feature tables and reports read."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from utils.errors import FileMissing, TableError, TooFewImages
from utils.persistence import write_atomic
from utils.places import beside

SPLITS = ("train", "fusion", "val")  # for networks and heads, for what combines them, for measuring
DATASET = "dataset.csv"  # what the commands write, clean and train from when nobody names a table
# How the source of an image begins whose origin nobody states: the image itself, with what nearly repeats it.
BY_IMAGE = "image:"
LABELS = ("real", "ai")  # by what a network calls them, 0 and 1; a manifest may have others, which are left out
FEWEST_IMAGES = 20  # of a label: below it, 95 % of the real ones is all of them, and a threshold has nothing to rest on


def read_rows(path: Path | str, required: Collection[str] = ("filepath", "label", "source")) -> list[dict[str, str]]:
    """Every row by column; ``split`` is train where nobody says.

    Args:
        path: also an address in S3.

    Raises:
        TableError: it cannot be read as CSV, a column is missing, or a row has another number of cells.
    """
    try:
        files, name = beside(path)
        table = csv.DictReader(io.StringIO(files.read(name).decode("utf-8-sig"), newline=""))
        rows = list(table)
    except (OSError, FileMissing, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} cannot be read as CSV: {error}") from error
    if absent := [name for name in required if name not in (table.fieldnames or ())]:
        raise TableError(f"{path} has no column {', '.join(absent)}")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise TableError(f"{path}: row {number} has another number of cells than the header")
        row["split"] = row.get("split") or "train"
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, str]], columns: Collection[str] = ()) -> None:
    """Write a table that ``read_rows`` reads, in one go: an older one is there whole until then.

    Args:
        columns: in their order; those of the first row where nobody names them.
    """
    kept = list(rows)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(columns or kept[0]))
    table.writeheader()
    table.writerows(kept)
    write_atomic(path, text.getvalue().encode())


def check_splits(sources_and_splits: Iterable[tuple[str, str]]) -> None:
    """Refuse a source in two splits: every number measured then would flatter.

    Raises:
        TableError: naming some of them.
    """
    sources: dict[str, set[str]] = {}
    for source, split in sources_and_splits:
        sources.setdefault(split, set()).add(source)
    for one, other in combinations(sorted(sources), 2):
        if shared := sorted(sources[one] & sources[other]):
            raise TableError(
                f"{len(shared)} sources are in {one} and in {other}, such as {', '.join(shared[:3])}; keep each in one"
            )


def fusion_split(splits: Collection[str]) -> str:
    """The split that trains the fusion: ``fusion`` where there is one, since ``train`` trained the networks then."""
    return "fusion" if "fusion" in splits else "train"


def check_enough(rows: Sequence[Mapping[str, str]]) -> None:
    """Refuse a data set that no threshold could be chosen on, before hours of measuring.

    Raises:
        TooFewImages: fewer than FEWEST_IMAGES or two sources of a label to train on, or a label that val lacks.
    """
    more = (
        "add images to data/real and data/ai, at best of further origins, then run python -m scripts.make_dataset_csv"
    )
    training = fusion_split({row["split"] for row in rows})
    images = Counter((row["split"], row["label"]) for row in rows)
    sources = Counter(
        (split, label) for split, label, _ in {(row["split"], row["label"], row["source"]) for row in rows}
    )
    for label in LABELS:
        if images[training, label] < FEWEST_IMAGES or sources[training, label] < 2:
            raise TooFewImages(
                f"{images[training, label]} images of {sources[training, label]} sources are labelled {label} in"
                f" {training}, and it takes {FEWEST_IMAGES} of 2: {more}"
            )
    if bool(images["val", "real"]) != bool(images["val", "ai"]):
        raise TooFewImages(f"the val split holds one label only: {more}")

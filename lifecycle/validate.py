"""Is a data set fit to be trained on? python -m lifecycle.validate dataset.csv [--table features.csv] [--out report.md]

Checks the table's schema, every file, the number of images and sources of each label, copies across splits and labels,
what the container tells about the label, the licences, and, where a feature table is given, labels that out-of-fold
scores contradict. Each finding names the lines it is about. Ends with 3 when the data must not be trained on.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fusion.estimators import FloatArray
from training.cleaning import NEAR, SMALLEST, Seen, copies, look_at_all
from training.confounds import held_out_accuracy
from training.datasets import DATASET, LABELS, SPLITS, read_rows
from training.feature_table import NameArray, Table, read_columns, read_table, usable
from training.metrics import RESAMPLES, auroc
from utils.errors import DatasetMissing, TableError
from utils.exits import Exit, command, command_parser
from utils.settings import LifecycleSettings, load_settings

KNOWN = (*LABELS, "manipulated")  # a row of the third shows where a picture was changed, and trains no verdict
TELLING = 0.75  # balanced accuracy of container facts alone from which people are warned; 0.5 says nothing
GIVEN_AWAY = 0.97  # and from which the data is refused: the file is the label
DOUBTED = 0.15  # share of labels that out-of-fold scores contradict, beyond noise, from which the data is refused
SHOWN = 10  # lines that a finding names


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the data; an error forbids training."""

    level: Literal["error", "warning"]
    check: str
    text: str
    lines: tuple[int, ...] = ()  # of the CSV; the header is line 1

    def __str__(self) -> str:
        lines = ", ".join(map(str, self.lines[:SHOWN])) + (", …" if len(self.lines) > SHOWN else "")
        return f"{self.level}: {self.check}: {self.text}" + (f" (line {lines})" if lines else "")


Rows = Sequence[Mapping[str, str]]


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    findings, rows, _ = validate(arguments.dataset, load_settings().lifecycle, arguments.table, arguments.jobs)
    text = markdown(arguments.dataset, rows, findings)
    out = arguments.out or arguments.dataset.with_suffix(".validation.md")
    out.write_text(text, encoding="utf-8")
    for finding in findings:
        print(finding)
    errors = sum(each.level == "error" for each in findings)
    print(f"read {len(rows)} rows of {arguments.dataset}: {errors} errors; wrote {out}")
    return Exit.FAILED if errors else Exit.DONE


def validate(
    dataset: Path, settings: LifecycleSettings, table: Path | None = None, jobs: int = 2
) -> tuple[list[Finding], Rows, dict[str, str]]:
    """Every finding, errors first, the rows, and the SHA-256 of each image.

    Raises:
        DatasetMissing: there is no table.
        TableError: it is none, or lacks a column.
    """
    if not dataset.is_file():
        raise DatasetMissing(f"no table {dataset}: python -m lifecycle.collect or scripts.make_dataset_csv makes one")
    rows = read_rows(dataset)
    findings, images = list(schema(rows)), {}
    if not findings:
        seen = list(look_at_all([str(dataset.parent / row["filepath"]) for row in rows], jobs))
        images = {row["filepath"]: each.sha256 for row, each in zip(rows, seen, strict=True)}
        findings += [
            *files(rows, seen),
            *amounts(rows, settings),
            *sides(rows),
            *repeated(rows, seen),
            *container(rows, seen),
        ]
        if table is not None:
            findings += doubtful(table)
    return sorted(findings, key=lambda each: each.level != "error"), rows, images


def schema(rows: Rows) -> Iterator[Finding]:
    """What pandera says of the cells."""
    import pandas as pd
    import pandera.pandas as pa

    filled = pa.Check.str_length(min_value=1, error="is empty")
    columns = {
        "filepath": pa.Column(checks=filled, unique=True),
        "label": pa.Column(checks=pa.Check.isin(KNOWN)),
        "source": pa.Column(checks=filled),
        "split": pa.Column(checks=pa.Check.isin(SPLITS)),
        "sha256": pa.Column(checks=pa.Check.str_matches(r"^([0-9a-f]{64})?$"), required=False),
    }
    if not rows:
        yield Finding("error", "schema", "the table has no rows")
        return
    try:
        pa.DataFrameSchema(columns).validate(pd.DataFrame(rows), lazy=True)
    except pa.errors.SchemaErrors as error:
        for (column, check), cases in error.failure_cases.groupby(["column", "check"], sort=True):
            values = ", ".join(sorted({repr(value) for value in cases["failure_case"]})[:3])
            lines = tuple(int(index) + 2 for index in cases["index"].dropna())
            yield Finding("error", "schema", f"{column} fails {check}: {values}", lines)


def files(rows: Rows, seen: Sequence[Seen]) -> Iterator[Finding]:
    problems: dict[str, list[int]] = {}
    for line, (row, each) in enumerate(zip(rows, seen, strict=True), 2):
        problem = each.problem or ("tiny" if min(each.width, each.height) < SMALLEST else "")
        if not problem and row.get("sha256") not in (None, "", each.sha256):
            problem = "not the file that the table names"
        if problem:
            problems.setdefault(problem, []).append(line)
    for problem, lines in sorted(problems.items()):
        yield Finding("error", "files", f"{len(lines)} cannot be used: {problem}", tuple(lines))


def amounts(rows: Rows, settings: LifecycleSettings) -> Iterator[Finding]:
    for label in LABELS:
        own = [row for row in rows if row["label"] == label]
        sources = {row["source"] for row in own}
        if len(own) < settings.min_images:
            yield Finding(
                "error",
                "amounts",
                f"{len(own)} images are labelled {label}, IMGV_MIN_IMAGES_PER_CLASS asks {settings.min_images}",
            )
        if len(sources) < settings.min_sources:
            yield Finding(
                "error",
                "amounts",
                f"{len(sources)} sources are labelled {label}, IMGV_MIN_SOURCES_PER_CLASS asks {settings.min_sources}",
            )
        if not any(row["split"] == "val" for row in own):
            yield Finding("error", "amounts", f"no image labelled {label} is in val: nothing could be compared")


def sides(rows: Rows) -> Iterator[Finding]:
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["source"], set()).add(row["split"])
    both = {source for source, found in splits.items() if "val" in found and len(found) > 1}
    if both:
        lines = tuple(line for line, row in enumerate(rows, 2) if row["source"] in both)
        yield Finding(
            "error", "splits", f"{len(both)} sources are trained on and in val: {', '.join(sorted(both)[:3])}", lines
        )


def repeated(rows: Rows, seen: Sequence[Seen]) -> Iterator[Finding]:
    """Copies and near copies: an error across splits or labels, else a warning."""
    usable_rows = [index for index, each in enumerate(seen) if not each.problem]
    crossing: list[int] = []
    plain: list[int] = []
    for index, other, _ in copies(usable_rows, seen, NEAR):
        one, two = rows[index], rows[other]
        across = ("val" in (one["split"], two["split"]) and one["split"] != two["split"]) or one["label"] != two[
            "label"
        ]
        (crossing if across else plain).append(index + 2)
    if crossing:
        yield Finding(
            "error", "copies", f"{len(crossing)} images repeat one of another split or label", tuple(crossing)
        )
    if plain:
        yield Finding("warning", "copies", f"{len(plain)} images repeat another", tuple(plain))


def container(rows: Rows, seen: Sequence[Seen]) -> Iterator[Finding]:
    """How well format, size and compression alone find the label of unseen sources."""
    chosen = [i for i, row in enumerate(rows) if row["label"] in LABELS and not seen[i].problem]
    if len({rows[i]["label"] for i in chosen}) < 2:
        return
    accuracy = held_out_accuracy([rows[i] for i in chosen], [seen[i] for i in chosen])
    if accuracy is not None and accuracy >= TELLING:
        level: Literal["error", "warning"] = "error" if accuracy >= GIVEN_AWAY else "warning"
        yield Finding(level, "container", f"format, size and compression alone find {accuracy:.0%} of the labels")


def doubtful(table: Path) -> Iterator[Finding]:
    """Labels that scores of models which did not see the image contradict, as cleanlab finds them."""
    from cleanlab.filter import find_label_issues

    read = read_table(table)
    scores = out_of_fold(read)
    flagged = find_label_issues(read.labels, np.column_stack([1 - scores, scores]), n_jobs=1)
    columns = read_columns(table)
    paths = np.array(columns.get("filepath", [""] * len(flagged)))[usable(columns)]
    images = {str(path): flagged[paths == path].all() for path in np.unique(paths)}  # under every delivery
    doubted = sorted(path for path, all_of_them in images.items() if all_of_them)
    if doubted:
        source_of = dict(zip(map(str, paths), read.sources, strict=True))
        at_least = _lower_end(np.array(list(images.values()), float), np.array([source_of[path] for path in images]))
        level: Literal["error", "warning"] = "error" if at_least > DOUBTED else "warning"
        share, named = len(doubted) / len(images), ", ".join(doubted[:5]) + (", …" if len(doubted) > 5 else "")
        told = float(auroc(read.labels, scores, np.ones((1, len(scores))))[0])
        yield Finding(
            level,
            "labels",
            f"scores contradict {len(doubted)} labels ({share:.1%}, beyond noise {at_least:.1%}), such as {named}; "
            f"they tell the labels apart with AUROC {told:.2f}, and where that is low they may be wrong themselves",
        )


def _lower_end(values: FloatArray, sources: NameArray) -> float:
    """Of the mean: what 97.5 % of the bootstrap samples over sources reach."""
    _, index = np.unique(sources, return_inverse=True)
    counts, sums = np.bincount(index), np.bincount(index, values)
    drawn = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES)
    return float(np.quantile((drawn @ sums) / (drawn @ counts), 0.025))


def out_of_fold(table: Table, folds: int = 5) -> FloatArray:
    """Probability of AI of each row by a logistic model of other sources; missing inputs are said by an indicator."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fewest = min(len(np.unique(table.sources[table.labels == label])) for label in (0, 1))
    if fewest < 2:
        raise TableError("labels cannot be checked: a label has fewer than two sources")
    filled = np.isfinite(table.matrix).any(axis=0)
    model = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True), StandardScaler(), LogisticRegression(C=0.01, max_iter=500)
    )
    splitter = StratifiedGroupKFold(min(folds, fewest), shuffle=True, random_state=0)
    found = cross_val_predict(
        model, table.matrix[:, filled], table.labels, groups=table.sources, cv=splitter, method="predict_proba"
    )
    return np.asarray(found[:, 1], float)


def markdown(dataset: Path, rows: Rows, findings: Sequence[Finding]) -> str:
    """A report that a person can read."""
    fit = "must not be trained on" if any(each.level == "error" for each in findings) else "may be trained on"
    lines = [f"# Validation of {dataset.name}", "", f"{len(rows)} rows; the data {fit}.", ""]
    lines += [f"- {finding}" for finding in findings] or ["Nothing was found."]
    for title, key in (("Split and label", None), ("Licences", "licence"), ("Kinds", "kind")):
        counts = Counter(f"{row['split']}, {row['label']}" if key is None else row.get(key, "") for row in rows)
        if key is None or any(counts):
            lines += ["", f"## {title}", "", "| | images |", "|---|---|"]
            lines += [f"| {name or 'not stated'} | {count} |" for name, count in sorted(counts.items())]
    return "\n".join(lines) + "\n"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.validate", __doc__)
    parser.add_argument("dataset", type=Path, nargs="?", default=Path(DATASET), help="default: %(default)s")
    parser.add_argument("--table", type=Path, help="features of these images, for the check of labels")
    parser.add_argument("--out", type=Path, help="report; default: beside the data set")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

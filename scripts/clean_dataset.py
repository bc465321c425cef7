"""Clean a dataset.csv and say what gives the label away: python -m scripts.clean_dataset dataset.csv --out clean.csv

Dropped: files that cannot be read, tiny images, copies (the same bytes, the same pixels, or nearly the same picture),
and both sides where copies carry different labels. Of copies in train and val, the one in val stays. A source on both
sides of the split is moved to val. Every decision goes into a log beside the result, and what format, size and
compression say about the label into a report.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from training.cleaning import NEAR, SMALLEST, Decision, Seen, clean, look_at_all
from training.datasets import read_rows
from training.feature_table import source_weights
from utils.errors import TableError
from utils.exits import Exit, command, command_parser

FACTS = ("jpeg", "png", "webp", "square", "side_of_64", "log2_pixels", "bits_per_pixel")


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    rows = read_rows(arguments.dataset, ("filepath", "label", "source", "split"))
    if not rows or arguments.out.parent.resolve() != arguments.dataset.parent.resolve():
        raise TableError("--out must be in the folder of the dataset, which must have rows")
    paths = [str(arguments.dataset.parent / row["filepath"]) for row in rows]
    seen = list(track(look_at_all(paths, arguments.jobs), "reading", total=len(paths), console=Console(stderr=True)))
    kept, decisions = clean(rows, seen, arguments.smallest, arguments.near)
    _write(arguments.out, list(rows[0]), ({**rows[index], "split": split} for index, split in kept.items()))
    log = arguments.out.with_suffix(".log.csv")
    names = list(Decision.__slots__)
    _write(log, names, ({name: getattr(each, name) for name in names} for each in decisions))
    report = confounds([rows[index] for index in kept], [seen[index] for index in kept])
    arguments.out.with_suffix(".report.md").write_text(report, encoding="utf-8")
    for (action, reason), count in sorted(Counter((each.action, each.reason) for each in decisions).items()):
        print(f"{action}: {count} ({reason})")
    print(f"{len(kept)} of {len(rows)} rows in {arguments.out}; decisions in {log}\n\n{report}")
    return Exit.DONE


# --- what gives the label away


def confounds(rows: Sequence[Mapping[str, str]], seen: Sequence[Seen]) -> str:
    """Markdown: each container fact by label, and how well all of them together find the label of unseen sources."""
    chosen = [index for index, row in enumerate(rows) if row["label"] in ("real", "ai")]
    labels = np.array([rows[index]["label"] == "ai" for index in chosen], np.int64)
    if len(np.unique(labels)) < 2:
        return "No confound report: the rows that stay have one label only.\n"
    sources = np.array([rows[index]["source"] for index in chosen])
    facts = np.array([_facts(seen[index]) for index in chosen])
    weights = source_weights(labels, sources)
    lines = [
        "# What the container says about the label",
        "",
        "Every source weighs the same within its label. Training must hide these facts: random deliveries do.",
        "",
        "| fact | mean, real | mean, AI |",
        "|---|---|---|",
    ]
    for name, column in zip(FACTS, facts.T, strict=True):
        means = [np.average(column[labels == label], weights=weights[labels == label]) for label in (0, 1)]
        lines.append(f"| {name} | {means[0]:.2f} | {means[1]:.2f} |")
    accuracy = _held_out_accuracy(facts, labels, sources, weights)
    if accuracy is not None:
        lines += [
            "",
            f"Balanced accuracy of these facts alone, on held-out sources: {accuracy:.1%} (50 % says nothing).",
        ]
    return "\n".join(lines) + "\n"


def _facts(each: Seen) -> tuple[float, ...]:
    formats = [float(each.format in names) for names in (("JPEG", "MPO"), ("PNG",), ("WEBP",))]
    area = each.width * each.height
    square, of_64 = float(each.width == each.height), float(each.width % 64 == 0 == each.height % 64)
    return (*formats, square, of_64, float(np.log2(area)), 8 * each.size / area)


def _held_out_accuracy(
    facts: NDArray[np.float64], labels: NDArray[np.int64], sources: NDArray[np.str_], weights: NDArray[np.float64]
) -> float | None:
    """Of a small random forest, cross-validated over sources; None with fewer than two sources of a label."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(np.unique(sources[labels == label])) for label in (0, 1))
    if fewest < 2:
        return None
    right = np.zeros(len(labels))
    for known, held in StratifiedGroupKFold(min(5, fewest)).split(facts, labels, sources):
        if len(np.unique(labels[known])) < 2:
            return None
        forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0)
        forest.fit(facts[known], labels[known], sample_weight=source_weights(labels[known], sources[known]))
        right[held] = forest.predict(facts[held]) == labels[held]
    return float(np.mean([np.average(right[labels == label], weights=weights[labels == label]) for label in (0, 1)]))


def _write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.clean_dataset", __doc__)
    parser.add_argument("dataset", type=Path, help="CSV with at least filepath, label, source and split")
    parser.add_argument("--out", type=Path, required=True, help="CSV in the same folder, so that its file paths hold")
    parser.add_argument("--smallest", type=int, default=SMALLEST, help="shorter side in px (default: %(default)s)")
    parser.add_argument("--near", type=int, default=NEAR, help="bits of 256 that copies may differ in")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

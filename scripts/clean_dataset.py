"""Clean a data set and say what gives the label away: python -m scripts.clean_dataset [dataset.csv] [--out clean.csv]

Dropped: files that cannot be read, tiny images, copies (the same bytes, the same pixels, or nearly the same picture),
and both sides where copies carry different labels. Of copies in train and val, the one in val stays. A source on both
sides of the split is moved to val. Every decision goes into a log beside the result, and what format, size and
compression say about the label into a report. Without --out the table itself is cleaned; what it was before stays
beside it as dataset.before.csv.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from training.cleaning import NEAR, SMALLEST, Decision, clean, look_at_all
from training.confounds import confounds
from training.datasets import DATASET, read_rows, write_rows
from utils.errors import DatasetMissing, TableError, TooFewImages
from utils.exits import Exit, command, command_parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    dataset: Path = arguments.dataset
    out: Path = arguments.out or dataset
    rows = _read(dataset, out)
    paths = [str(dataset.parent / row["filepath"]) for row in rows]
    seen = list(track(look_at_all(paths, arguments.jobs), "reading", total=len(paths), console=Console(stderr=True)))
    kept, decisions = clean(rows, seen, arguments.smallest, arguments.near)
    changed = out != dataset or bool(decisions)  # a table that was cleaned before keeps the log of that
    log, report = out.with_suffix(".log.csv"), out.with_suffix(".report.md")
    if changed:
        names = list(Decision.__slots__)
        write_rows(log, ({name: getattr(each, name) for name in names} for each in decisions), names)
    for (action, reason), count in sorted(Counter((each.action, each.reason) for each in decisions).items()):
        print(f"{action}: {count} ({reason})")
    if lost := {row["label"] for row in rows} - {rows[index]["label"] for index in kept}:
        raise TooFewImages(f"no image labelled {', '.join(sorted(lost))} stays: see {log}, then add others")
    wrote = f"{out}, why in {log}, {report}" if changed else f"{report} alone"
    if changed and out == dataset:
        before = dataset.with_suffix(".before.csv")
        shutil.copyfile(dataset, before)
        wrote += f" (as it was: {before})"
    if changed:
        write_rows(out, ({**rows[index], "split": split} for index, split in kept.items()), rows[0])
    text = confounds([rows[index] for index in kept], [seen[index] for index in kept])
    report.write_text(text, encoding="utf-8")
    print(text)
    following = "python -m fusion.train_fusion" + ("" if out == Path(DATASET) else f" --dataset {out}")
    print(f"read {dataset}: {len(kept)} of {len(rows)} rows stay; wrote {wrote}; next: {following}")
    return Exit.DONE


def _read(dataset: Path, out: Path) -> list[dict[str, str]]:
    if not dataset.is_file():
        raise DatasetMissing(f"no table {dataset}: make one: python -m scripts.make_dataset_csv")
    rows = read_rows(dataset, ("filepath", "label", "source", "split"))
    if not rows:
        raise DatasetMissing(f"{dataset} has no rows: make it anew: python -m scripts.make_dataset_csv")
    if out.parent.resolve() != dataset.parent.resolve():
        raise TableError(f"--out must be in the folder of {dataset}, so that its file paths hold")
    return rows


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.clean_dataset", __doc__)
    parser.add_argument(
        "dataset",
        type=Path,
        nargs="?",
        default=Path(DATASET),
        help="CSV with at least filepath, label, source and split (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="CSV in the same folder; default: in the table's own place")
    parser.add_argument("--smallest", type=int, default=SMALLEST, help="shorter side in px (default: %(default)s)")
    parser.add_argument("--near", type=int, default=NEAR, help="bits of 256 that copies may differ in")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

"""Run the production conductor over labelled images and write one table for fusion: python -m scripts.extract_features

The manifest is a CSV with at least filepath, label (real | ai) and source; split and generator are kept when present.
Each image is measured under the deliveries asked for, with one thread per process. What is measured goes into a journal
beside the table, so a stopped run goes on; the table itself is written at the end, in the manifest's order: the same
images give the same bytes, on any number of processes and with either engine. Rows of an earlier table that the same
weights measured are kept; other files under the same names, another --seed or --skip want another --out.

--engine ray measures on the cluster of RAY_ADDRESS, else on a Ray of this machine. Every node needs this code, the
weights and the images at the same paths, as on a shared file system.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.extraction import Row, extract
from training.shards import image_table
from utils.deliveries import DELIVERIES
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings


@command
def main(argv: Sequence[str] | None = None) -> int:
    given = _parse(argv)
    options = {name: getattr(given, name) for name in ("split", "deliveries", "skip", "engine", "jobs", "seed")}
    settings = load_settings()
    rows, failures = extract(given.manifest, given.out, settings.models, settings.decode, **options)
    _report(given.out, rows, failures)
    return Exit.DONE


def _report(out: Path, rows: Sequence[Row], failures: Sequence[str]) -> None:
    print(f"{len(rows)} rows in {out}, {len(failures)} images could not be read")
    for failure in failures[:20]:
        print(f"  {failure}", file=sys.stderr)
    models = sorted({row.known["models"] for row in rows})
    if len(models) > 1:
        print(
            f"extract_features: rows were measured by different weights ({'; '.join(models)}); move {out} away and run "
            "again to measure them all alike",
            file=sys.stderr,
        )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.extract_features", __doc__)
    parser.add_argument(
        "--manifest",
        type=image_table,
        required=True,
        help="CSV: filepath,label,source[,split,generator]; also s3://BUCKET/… of a packed data set",
    )
    parser.add_argument("--out", type=Path, required=True, help="table to write or to extend: .parquet, else CSV")
    parser.add_argument(
        "--deliveries",
        type=_deliveries,
        default=DELIVERIES,
        help="of clean, web, hard, random1, random2, ...; default: clean,web,hard",
    )
    parser.add_argument(
        "--split", default="all", choices=("train", "fusion", "val", "all"), help="rows of the manifest to measure"
    )
    parser.add_argument(
        "--skip",
        type=lambda text: text.split(","),
        default=(),
        help="forensic modules to leave out because fusion does not read them",
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: needs pip install 'ray[data]'"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes that measure (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="for the random deliveries")
    return parser.parse_args(argv)


def _deliveries(text: str) -> Sequence[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in DELIVERIES and not name.startswith("random")]:
        raise argparse.ArgumentTypeError(
            f"unknown deliveries {', '.join(unknown)}; known: {', '.join(DELIVERIES)}, random1, random2, ..."
        )
    return names


if __name__ == "__main__":
    sys.exit(main())

"""Run the production conductor over labelled images and write one table for fusion: python -m scripts.extract_features

The manifest is a CSV with at least filepath, label (real | ai) and source; split and generator are kept when present.
Each image is measured under the deliveries asked for. Rows already in the table are kept, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from inference.detector import Ensemble, build_ensemble
from inference.registry import feature_meanings
from utils.contracts import Sample
from utils.deliveries import DELIVERIES, FIXED, deliver, deliver_at_random
from utils.errors import VerifyError
from utils.ingress import Ingress
from utils.settings import Settings, load_settings

LABELS = ("real", "ai")
KEYS = ("filepath", "delivery", "label", "source", "split", "generator")
LOSSY = ("JPEG", "MPO")  # formats that surely were compressed before; a WebP may be lossless


@dataclass(frozen=True, slots=True)
class Task:
    """One image under one delivery. ``random1``, ``random2``, ... are drawn from the image's own bytes and the seed."""

    root: Path
    row: dict[str, str]
    delivery: str
    seed: int

    @property
    def key(self) -> tuple[str, str]:
        return self.row["filepath"], self.delivery


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.extract_features", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="CSV: filepath,label,source[,split,generator]")
    parser.add_argument("--out", type=Path, required=True, help="CSV table to write or to go on with")
    parser.add_argument("--deliveries", default="clean,web,hard", help="of clean, web, hard, random1, random2, ...")
    parser.add_argument("--skip", default="", help="forensic modules to leave out because fusion does not read them")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--seed", type=int, default=0, help="for the random deliveries")
    args = parser.parse_args(argv)
    deliveries = args.deliveries.split(",")
    if unknown := [name for name in deliveries if name not in DELIVERIES and not name.startswith("random")]:
        parser.error(f"unknown deliveries {unknown}; known: {', '.join(DELIVERIES)}, random1, random2, ...")

    columns = [*KEYS, *feature_meanings()]
    done = _done(args.out, columns)
    tasks = [task for task in _tasks(args.manifest, deliveries, args.seed) if task.key not in done]
    failures: list[str] = []
    with args.out.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        if not file.tell():
            table.writeheader()
        rows = _run(tasks, args.jobs, frozenset(filter(None, args.skip.split(","))))
        for row in track(rows, "measuring", total=len(tasks), console=Console(stderr=True)):
            if "error" in row:
                failures.append(f"{row['filepath']} ({row['delivery']}): {row['error']}")
                continue
            table.writerow(row)
            file.flush()
    print(f"{len(done) + len(tasks) - len(failures)} rows in {args.out}, {len(failures)} images could not be read")
    for failure in failures[:20]:
        print(f"  {failure}", file=sys.stderr)
    return 0


def _tasks(manifest: Path, deliveries: Sequence[str], seed: int) -> Iterator[Task]:
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["label"] in LABELS:
                row["generator"] = row.get("generator") or row.get("generator_or_camera", "")
                yield from (Task(manifest.parent, row, delivery, seed) for delivery in deliveries)


def _done(out: Path, columns: Sequence[str]) -> set[tuple[str, str]]:
    if not out.exists():
        return set()
    with out.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if table.fieldnames is not None and list(table.fieldnames) != list(columns):
            raise SystemExit(f"{out} has other columns than this version measures; move it away and run again")
        return {(row["filepath"], row["delivery"]) for row in table}


def _run(tasks: Sequence[Task], jobs: int, skip: frozenset[str]) -> Iterator[dict[str, object]]:
    """Rows in task order. Processes, not threads: most of the work holds the interpreter's lock."""
    if jobs == 1:
        _start(skip)
        yield from map(_measure, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start, initargs=(skip,)) as pool:
        yield from pool.map(_measure, tasks, chunksize=4)


_settings: Settings
_ensemble: Ensemble


def _start(skip: frozenset[str]) -> None:
    global _settings, _ensemble
    import cv2

    cv2.setNumThreads(1)  # the processes already share the cores
    _settings = load_settings()
    _ensemble = build_ensemble(_settings)
    _ensemble.forensics = [forensic for forensic in _ensemble.forensics if forensic.name not in skip]


def _measure(task: Task) -> dict[str, object]:
    row: dict[str, object] = {**{key: task.row.get(key, "") for key in KEYS}, "delivery": task.delivery}
    try:
        with Ingress(_settings) as ingress:
            sample = _delivered(task, ingress)
    except VerifyError as error:
        return row | {"error": f"{error.code}: {error}"}
    (found,) = _ensemble.measure([sample])
    return row | {name: "" if math.isnan(value) else repr(float(value)) for name, value in found.features.items()}


def _delivered(task: Task, ingress: Ingress) -> Sample:
    sample = ingress.load(str(task.root / task.row["filepath"]))
    if task.delivery == "clean":
        return sample
    if task.delivery in FIXED:
        return ingress.decode(deliver(sample.upright, task.delivery), sample.source)
    digest = sha256(f"{task.seed}:{task.delivery}:{sample.sha256}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    raw = deliver_at_random(sample.upright, rng, compressed_before=sample.format in LOSSY)
    return ingress.decode(raw, sample.source)


if __name__ == "__main__":
    sys.exit(main())

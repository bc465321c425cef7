"""Clean a dataset.csv and say what gives the label away: python -m scripts.clean_dataset dataset.csv --out clean.csv

Dropped: files that cannot be read, tiny images, copies (the same bytes, the same pixels, or nearly the same picture),
and both sides where copies carry different labels. Of copies in train and val, the one in val stays. A source on both
sides of the split is moved to val. Every decision goes into a log beside the result, and what format, size and
compression say about the label into a report.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from ingress.sources import Ingress
from training.datasets import read_rows
from training.feature_table import source_weights
from utils.contracts import RgbArray
from utils.errors import TableError, VerifyError
from utils.settings import load_settings

SMALLEST = 128  # px, the shorter side
HASH_SIDE = 16  # 256 bits
# Bits by which two pictures of the same scene differ at most. Of 256 bits, different pictures differ in about 128;
# re-compressed and rescaled copies of one in up to 10.
NEAR = 10
FLAT = 4.0  # grey levels; below this deviation the hash is that of noise
LOPSIDED = 32  # bits; with fewer ones, or fewer zeros, it is that of a gradient: any two clear skies would be copies
FACTS = ("jpeg", "png", "webp", "square", "side_of_64", "log2_pixels", "bits_per_pixel")


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What is known about one file after decoding it; ``problem`` is empty where it is usable."""

    problem: str = ""
    sha256: str = ""
    pixels_sha256: str = ""
    fingerprint: NDArray[np.uint8] | None = None  # HASH_SIDE**2 / 8 bytes; None where it would say too little
    format: str = ""
    width: int = 0
    height: int = 0
    size: int = 0  # bytes


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a row was dropped or changed; ``other`` is the row it was compared with."""

    filepath: str
    action: str  # dropped | moved
    reason: str
    other: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    try:
        rows = read_rows(arguments.dataset, ("filepath", "label", "source", "split"))
        if not rows or arguments.out.parent.resolve() != arguments.dataset.parent.resolve():
            raise TableError("--out must be in the folder of the dataset, which must have rows")
    except TableError as error:
        print(f"clean_dataset: {error}", file=sys.stderr)
        return 2
    paths = [str(arguments.dataset.parent / row["filepath"]) for row in rows]
    seen = list(track(_look_at(paths, arguments.jobs), "reading", total=len(paths), console=Console(stderr=True)))
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
    return 0


def clean(
    rows: Sequence[Mapping[str, str]], seen: Sequence[Seen], smallest: int = SMALLEST, near: int = NEAR
) -> tuple[dict[int, str], list[Decision]]:
    """Row index -> split of the rows that stay, in order, and what happened to the others."""
    decisions = []
    splits = _one_side_per_source(rows)
    usable = []
    for index, (row, each) in enumerate(zip(rows, seen, strict=True)):
        problem = each.problem or ("tiny" if min(each.width, each.height) < smallest else "")
        if problem:
            decisions.append(Decision(row["filepath"], "dropped", problem))
        else:
            usable.append(index)
            if splits[row["source"]] != row["split"]:
                decisions.append(Decision(row["filepath"], "moved", f"its source is in {splits[row['source']]} too"))
    usable.sort(key=lambda index: splits[rows[index]["source"]] != "val")  # the copy in val stays
    first: dict[int, tuple[int, str]] = {}  # row -> the earlier row it repeats, and how
    judged = [index for index in usable if rows[index]["label"] in ("real", "ai")]  # a forgery resembles its original
    for index, other, how in _copies(judged, seen, near):
        first[index] = (other, how)
    conflicting = {other for index, (other, _) in first.items() if rows[index]["label"] != rows[other]["label"]}
    for index, (other, how) in first.items():
        reason = f"{how} under another label" if rows[index]["label"] != rows[other]["label"] else how
        decisions.append(Decision(rows[index]["filepath"], "dropped", reason, rows[other]["filepath"]))
    decisions += [Decision(rows[index]["filepath"], "dropped", "copies under both labels") for index in conflicting]
    kept = sorted(set(usable) - set(first) - conflicting)
    return {index: splits[rows[index]["source"]] for index in kept}, decisions


def _one_side_per_source(rows: Iterable[Mapping[str, str]]) -> dict[str, str]:
    splits: dict[str, str] = {}
    for row in rows:
        if splits.get(row["source"]) != "val":
            splits[row["source"]] = row["split"]
    return splits


def _copies(order: Iterable[int], seen: Sequence[Seen], near: int) -> Iterable[tuple[int, int, str]]:
    """(row, the earlier row that it repeats, how) in the order given; a row that repeats another is no original."""
    by_bytes: dict[str, int] = {}
    by_pixels: dict[str, int] = {}
    originals: list[int] = []
    fingerprints = np.empty((len(seen), HASH_SIDE**2 // 8), np.uint8)
    for index in order:
        each = seen[index]
        if each.sha256 in by_bytes:
            yield index, by_bytes[each.sha256], "the same file"
            continue
        if each.pixels_sha256 in by_pixels:
            yield index, by_pixels[each.pixels_sha256], "the same pixels"
            continue
        by_bytes[each.sha256] = by_pixels[each.pixels_sha256] = index
        if each.fingerprint is None:
            continue
        if originals:
            distances = np.bitwise_count(fingerprints[: len(originals)] ^ each.fingerprint).sum(axis=1)
            closest = int(distances.argmin())
            if distances[closest] <= near:
                yield index, originals[closest], "nearly the same picture"
                by_bytes[each.sha256] = by_pixels[each.pixels_sha256] = originals[closest]
                continue
        fingerprints[len(originals)] = each.fingerprint
        originals.append(index)


# --- one file


def _look_at(paths: Sequence[str], jobs: int) -> Iterable[Seen]:
    if jobs == 1:
        yield from map(look_at, paths)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(look_at, paths, chunksize=8)


def look_at(path: str) -> Seen:
    """Decode one file as the product does; what it refuses, and what ends too early, is a problem."""
    cv2.setNumThreads(1)
    try:
        with Ingress(load_settings()) as ingress:
            sample = ingress.load(path)
    except VerifyError as error:
        return Seen(problem=error.code)
    if sample.truncated:
        return Seen(problem="truncated")
    rgb = sample.upright
    shape = f"{rgb.shape}".encode()
    return Seen(
        sha256=sample.sha256,
        pixels_sha256=hashlib.sha256(shape + rgb.tobytes()).hexdigest(),
        fingerprint=fingerprint(rgb),
        format=sample.format,
        width=sample.width,
        height=sample.height,
        size=len(sample.raw),
    )


def fingerprint(rgb: RgbArray) -> NDArray[np.uint8] | None:
    """Difference hash: is each of 16 x 16 cells brighter than the one to its left? None where that says too little.

    Survives scaling and compression, unlike crops and mirroring (Zauner, "Implementation and Benchmarking of Perceptual
    Image Hash Functions", 2010, compares such hashes).
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    if small.std() < FLAT:
        return None
    bits = small[:, 1:] > small[:, :-1]
    ones = int(bits.sum())
    return np.packbits(bits) if min(ones, bits.size - ones) >= LOPSIDED else None


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
    parser = argparse.ArgumentParser(prog="python -m scripts.clean_dataset", description=__doc__)
    parser.add_argument("dataset", type=Path, help="CSV with at least filepath, label, source and split")
    parser.add_argument("--out", type=Path, required=True, help="CSV in the same folder, so that its file paths hold")
    parser.add_argument("--smallest", type=int, default=SMALLEST, help="shorter side in px (default: %(default)s)")
    parser.add_argument("--near", type=int, default=NEAR, help="bits of 256 that copies may differ in")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

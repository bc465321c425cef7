"""Which images of a data set stay: what cannot be read, is tiny, or repeats another is dropped, with its reason.

Knows no folder layout and no command line: scripts.clean_dataset and training.build_dataset call it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ingress.sources import Ingress
from training.datasets import LABELS
from utils.contracts import RgbArray, Sample
from utils.errors import VerifyError
from utils.processes import process_pool
from utils.settings import load_settings

SMALLEST = 128  # px, the shorter side
HASH_SIDE = 16  # 256 bits
# Bits by which two pictures of the same scene differ at most. Of 256 bits, different pictures differ in about 128;
# re-compressed and rescaled copies of one in up to 10.
NEAR = 10
FLAT = 4.0  # grey levels; below this deviation the hash is that of noise
LOPSIDED = 32  # bits; with fewer ones, or fewer zeros, it is that of a gradient: any two clear skies would be copies


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
    judged = [index for index in usable if rows[index]["label"] in LABELS]  # a forgery resembles its original
    for index, other, how in copies(judged, seen, near):
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


def copies(order: Iterable[int], seen: Sequence[Seen], near: int) -> Iterable[tuple[int, int, str]]:
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


def repeats(one: Seen, others: Iterable[Seen], near: int = NEAR) -> bool:
    """Whether an image is one of the others: the same bytes or pixels, or nearly the same picture."""
    for other in others:
        if one.sha256 == other.sha256 or one.pixels_sha256 == other.pixels_sha256:
            return True
        if one.fingerprint is None or other.fingerprint is None:
            continue
        if int(np.bitwise_count(one.fingerprint ^ other.fingerprint).sum()) <= near:
            return True
    return False


# --- one file


def look_at_all(paths: Sequence[str], jobs: int) -> Iterable[Seen]:
    if jobs == 1:
        yield from map(look_at, paths)
        return
    with process_pool(jobs) as pool:
        yield from pool.map(look_at, paths, chunksize=8)


def look_at(path: str) -> Seen:
    """Decode one file as the product does; what it refuses, and what ends too early, is a problem."""
    cv2.setNumThreads(1)
    try:
        with Ingress(load_settings().decode) as ingress:
            sample = ingress.load(path)
    except VerifyError as error:
        return Seen(problem=error.code)
    return describe(sample)


def describe(sample: Sample) -> Seen:
    """What cleaning needs to know about a decoded image; one that ends too early is a problem."""
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

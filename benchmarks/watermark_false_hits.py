"""How often would the pixel watermarks be found where there are none? Prints the figures behind MARKS.

    python -m benchmarks.watermark_false_hits --manifest data/manifest.csv

The manifest needs the columns ``filepath`` (relative to it) and ``label``; manipulated images and images that are too
small to be marked are left out. Images that hold a mark would show as hits.
"""

from __future__ import annotations

import argparse
import csv
from math import comb
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from provenance.watermark import CHANNEL_ORDERS, MARKS, MIN_PIXELS, Mark, best_match, block_votes, decode_bits

RANDOM_PAYLOADS = 500


def chance(mark: Mark) -> float:
    """Probability that fair coins reach the threshold in one of the channel orders (union bound)."""
    bits = len(mark.payload)
    at_least = sum(comb(bits, matched) for matched in range(mark.required, bits + 1))
    return len(CHANNEL_ORDERS) * at_least / float(2**bits)


def best_periodic(mark: Mark) -> int:
    """Most bits that a pattern with a period of up to half the payload can match."""
    bits = mark.bits
    best = 0
    for period in range(1, bits.size // 2 + 1):
        phase = np.arange(bits.size) % period
        ones = np.bincount(phase, bits, period)
        best = max(best, int(np.maximum(ones, np.bincount(phase, minlength=period) - ones).sum()))
    return best


def load(manifest: Path, limit: int | None) -> list[Path]:
    with manifest.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in ("real", "ai")]
    return [manifest.parent / row["filepath"] for row in rows[:limit]]


def measure(paths: list[Path]) -> tuple[int, dict[str, list[int]], dict[str, NDArray[np.int64]]]:
    """Images measured, best matches per mark, and a histogram of matches with random payloads per mark."""
    generator = np.random.default_rng(0)
    randoms = {m.feature: generator.integers(0, 2, (RANDOM_PAYLOADS, len(m.payload))) for m in MARKS}
    matches: dict[str, list[int]] = {mark.feature: [] for mark in MARKS}
    histograms = {m.feature: np.zeros(len(m.payload) + 1, dtype=np.int64) for m in MARKS}
    images = 0
    for path in paths:
        with Image.open(path) as image:
            if image.width * image.height < MIN_PIXELS:
                continue
            rgb = np.asarray(image.convert("RGB"))
        images += 1
        votes = {order: block_votes(rgb, order) for order in CHANNEL_ORDERS}
        for mark in MARKS:
            match = best_match(votes, mark)
            if match is not None:
                matches[mark.feature].append(match[0])
            for blocks in votes.values():
                bits = decode_bits(blocks, len(mark.payload))
                if bits is not None:
                    agree = (randoms[mark.feature] == bits).sum(axis=1)
                    histograms[mark.feature] += np.bincount(agree, minlength=len(mark.payload) + 1)
    return images, matches, histograms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only the first rows")
    args = parser.parse_args()

    images, matches, histograms = measure(load(args.manifest, args.limit))
    print(
        f"{images} images; best of {len(CHANNEL_ORDERS)} channel orders; {RANDOM_PAYLOADS} random payloads per length"
    )
    print(f"{'mark':22}{'bits':>6}{'needs':>7}{'mean':>7}{'99 %':>6}{'99.9 %':>8}{'max':>5}{'hits':>6}", end="")
    print(f"{'random max':>12}{'random hits':>13}{'periodic max':>14}{'coins':>9}")
    for mark in MARKS:
        found = np.array(matches[mark.feature])
        random = histograms[mark.feature]
        p99, p999 = np.percentile(found, [99, 99.9])
        print(
            f"{mark.feature:22}{len(mark.payload):6}{mark.required:7}{found.mean():7.1f}{p99:6.0f}{p999:8.1f}", end=""
        )
        print(f"{found.max():5}{np.count_nonzero(found >= mark.required):6}{np.flatnonzero(random).max():12}", end="")
        print(f"{random[mark.required :].sum():13}{best_periodic(mark):14}{chance(mark):9.1e}")


if __name__ == "__main__":
    main()

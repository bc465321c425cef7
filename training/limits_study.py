"""Measures how often the label is wrong by an image's size and content: where the promise of a tier ends.

Each image is scaled to every long side that it has the pixels for and saved as JPEG, real and AI alike; content is
measured on the copies as large as CONTENT_SIDE. Provenance is left out: the pixels decide.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path

from fusion.decision import decide
from inference.detector import Verifier
from inference.limits import CONTENT, limits
from ingress.sources import Ingress
from training.datasets import LABELS, read_rows
from utils.contracts import Label, Tier
from utils.deliveries import encode_jpeg, shrink

SIDES = (64, 96, 128, 200, 256, 320, 384, 512, 768, 1024, 1600)
QUALITY = 90  # what editors and sites save small pictures with
CONTENT_SIDE = 512  # px: copies at least so large tell what content does, apart from size
FLAT_EDGES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
ENTROPY_EDGES = (0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)  # bits
REAL: tuple[Tier, ...] = ("real", "likely_real")
AI: tuple[Tier, ...] = ("likely_ai", "ai")


@dataclass(frozen=True, slots=True)
class Copy:
    """One image at one size: what it is, what was measured, and the tiers without and with the limits."""

    filepath: str
    label: str  # real or ai
    side: int  # px, the longer
    probability: float
    called: Label
    unlimited: Tier
    tier: Tier
    flat: float  # NaN: not measured
    entropy: float


def add_options(parser: argparse.ArgumentParser, images: int) -> None:
    """Of a command that draws images: which, and how many."""
    parser.add_argument("--manifest", type=Path, required=True, help="CSV: filepath,label,source,split")
    parser.add_argument(
        "--images", type=int, default=images, help="of each label, by source in turn (default: %(default)s)"
    )
    parser.add_argument("--split", default="val", choices=("train", "val", "all"))


def draw(manifest: Path, split: str, images: int) -> list[dict[str, str]]:
    """``images`` rows of each label: one of every source in turn, in the order of the manifest."""
    chosen: list[dict[str, str]] = []
    for label in LABELS:
        rows = [row for row in read_rows(manifest) if row["label"] == label and split in ("all", row["split"])]
        turn: dict[str, int] = {}
        for row in rows:
            turn[row["source"]] = turn.get(row["source"], 0) + 1
            row["turn"] = str(turn[row["source"]])
        chosen += sorted(rows, key=lambda row: int(row["turn"]))[:images]
    return chosen


def measure(rows: Sequence[Mapping[str, str]], folder: Path, verifier: Verifier, ingress: Ingress) -> Iterator[Copy]:
    """Every copy of every image, in order; an image that cannot be read raises as ``Ingress.load`` does."""
    thresholds = verifier.fusion.thresholds
    for row in rows:
        original = ingress.load(str(folder / row["filepath"])).upright
        longest = max(original.shape[:2])
        sides = [side for side in SIDES if side <= longest]
        raws = [encode_jpeg(shrink(original, side), QUALITY, subsampling=2) for side in sides]
        samples = [ingress.decode(raw, row["filepath"]) for raw in raws]
        for side, sample, (probability, features) in zip(
            sides, samples, verifier.estimate(samples, CONTENT), strict=True
        ):
            limited = decide(probability, thresholds, limits=limits(sample, features, verifier.fusion.inputs))
            flat, entropy = (features.get(name, math.nan) for name in CONTENT)
            unlimited = thresholds.tier(probability)
            called = limited.label
            yield Copy(row["filepath"], row["label"], side, probability, called, unlimited, limited.tier, flat, entropy)


def by_size(copies: Sequence[Copy]) -> str:
    """Markdown: a row for each long side."""
    ordered = sorted(copies, key=attrgetter("side"))
    return _table("long side, px", [(str(side), list(group)) for side, group in groupby(ordered, attrgetter("side"))])


def by_content(copies: Sequence[Copy], name: str, edges: Sequence[float]) -> str:
    """Markdown: a row for each bin of ``flat`` or ``entropy``, of the copies that are large enough."""
    value = attrgetter(name)
    large = [copy for copy in copies if copy.side >= CONTENT_SIDE and math.isfinite(value(copy))]
    rows = []
    for low, high in pairwise(edges):
        chosen = [copy for copy in large if low <= value(copy) < high or value(copy) == high == edges[-1]]
        rows.append((f"{low:g} to {high:g}", chosen))
    return _table(name, [(title, chosen) for title, chosen in rows if chosen])


def _table(what: str, rows: Sequence[tuple[str, Sequence[Copy]]]) -> str:
    lines = [
        f"| {what} | real images | called AI | likely AI or AI | inconclusive | with limits: likely AI or AI | "
        "inconclusive | AI images | called AI | likely real or real | with limits | wrong outside the band |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title, copies in rows:
        real, ai = ([copy for copy in copies if copy.label == label] for label in LABELS)
        cells = [
            title,
            str(len(real)),
            _share(copy.called == "AI" for copy in real),
            _share(copy.unlimited in AI for copy in real),
            _share(copy.unlimited == "inconclusive" for copy in real),
            _share(copy.tier in AI for copy in real),
            _share(copy.tier == "inconclusive" for copy in real),
            str(len(ai)),
            _share(copy.called == "AI" for copy in ai),
            _share(copy.unlimited in REAL for copy in ai),
            _share(copy.tier in REAL for copy in ai),
            _wrong(real, ai),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _wrong(real: Sequence[Copy], ai: Sequence[Copy]) -> str:
    """Of what gets a tier other than inconclusive, without the limits; both labels counting as equally frequent."""
    if not real or not ai:
        return "–"
    errors = sum(copy.unlimited in AI for copy in real) / len(real) + sum(copy.unlimited in REAL for copy in ai) / len(
        ai
    )
    told = sum(sum(copy.unlimited != "inconclusive" for copy in group) / len(group) for group in (real, ai))
    return f"{errors / told:.0%}" if told else "–"


def _share(hits: Iterator[bool]) -> str:
    values = list(hits)
    return f"{sum(values) / len(values):.0%}" if values else "–"

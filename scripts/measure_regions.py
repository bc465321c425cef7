"""How often pictures inside pictures are found: python -m scripts.measure_regions --manifest dataset.csv

Draws screenshots (phone and desktop, dark and light, in turn) around real and AI images, and counts how many of the
pictures are found where they lie; then searches real images, which hold none. With --judge the screenshots are judged
too: how many tiers are on the wrong side, with and without the search.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from inference.detector import Verifier, build_verifier
from inference.regions import Box, find
from ingress.sources import Ingress
from training.datasets import LABELS
from training.limits_study import AI, REAL
from training.limits_study import draw as choose
from training.screenshots import Screenshot, draw, encode
from utils.contracts import Sample
from utils.errors import VerifyError
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings

HIT = 0.7  # intersection over union from which on a box is the picture's


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    settings = load_settings()
    rows = choose(arguments.manifest, arguments.split, max(arguments.screens, arguments.photographs))
    real, ai = ([row for row in rows if row["label"] == label] for label in LABELS)
    half = arguments.screens // 2
    mixed = [row for pair in zip(real[:half], ai[:half], strict=False) for row in pair]
    with Ingress(settings.decode) as ingress:
        verifier = build_verifier(settings.models) if arguments.judge else None
        print(_screens(mixed, arguments, ingress, verifier))
        print(_photographs(real[: arguments.photographs], arguments, ingress))
    return Exit.DONE


def _screens(rows: Sequence[dict[str, str]], arguments: Namespace, ingress: Ingress, verifier: Verifier | None) -> str:
    rng = np.random.default_rng(arguments.seed)
    found, drawn, tiers = Counter[str](), Counter[str](), Counter[str]()
    for index, (row, sample) in enumerate(_read(rows, arguments.manifest.parent, ingress)):
        # Of each pair of a real and an AI image both get the same sort of screen.
        screen = draw(sample.upright, rng, phone=index // 2 % 2 == 0, dark=index // 4 % 2 == 0)
        saved = ingress.decode(encode(screen.rgb, rng), row["filepath"])
        drawn[screen.sort] += 1
        found[screen.sort] += _hit(screen, saved)
        if verifier is not None:
            tiers += _sides(row["label"], saved, verifier)
    lines = [f"| {sort} | {found[sort]} of {drawn[sort]} |" for sort in sorted(drawn)]
    text = "\n".join(["| screenshots | found |", "|---|---|", *lines, f"| all | {found.total()} of {drawn.total()} |"])
    return text + "".join(f"\n{what}: {count}" for what, count in sorted(tiers.items()))


def _hit(screen: Screenshot, saved: Sample) -> bool:
    return any(overlap(box, screen.box) >= HIT for box in find(saved.rgb).boxes)


def _sides(label: str, saved: Sample, verifier: Verifier) -> Counter[str]:
    (judged,) = verifier.verify([saved])
    ((probability, _),) = verifier.estimate([saved])
    wrong = AI if label == "real" else REAL
    tiers = {"with the search": judged.verdict.tier, "without": verifier.fusion.thresholds.tier(probability)}
    return Counter(
        f"{label}, {how}, {'wrong side' if tier in wrong else 'inconclusive' if tier == 'inconclusive' else 'right'}"
        for how, tier in tiers.items()
    )


def _photographs(rows: Sequence[dict[str, str]], arguments: Namespace, ingress: Ingress) -> str:
    searched, pictures, screens = 0, [], 0
    for row, sample in _read(rows, arguments.manifest.parent, ingress):
        inside = find(sample.rgb)
        searched += 1
        screens += inside.is_screen and not inside.boxes
        if inside.boxes:
            pictures.append(row["filepath"])
    text = f"real images searched: {searched}; with a picture inside: {len(pictures)}; like a screenshot: {screens}"
    return "\n".join([text, *pictures])


def _read(rows: Sequence[dict[str, str]], folder: Path, ingress: Ingress) -> Iterator[tuple[dict[str, str], Sample]]:
    for row in track(rows, "searching", console=Console(stderr=True)):
        try:
            yield row, ingress.load(str(folder / row["filepath"]))
        except VerifyError as error:
            print(f"left out: {row['filepath']}: {error}", file=sys.stderr)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes (x, y, width, height)."""
    sides = [max(0, min(one[at] + one[at + 2], other[at] + other[at + 2]) - max(one[at], other[at])) for at in (0, 1)]
    shared = sides[0] * sides[1]
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = command_parser("python -m scripts.measure_regions", __doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="CSV: filepath,label,source,split")
    parser.add_argument("--screens", type=int, default=60, help="to draw (default: %(default)s)")
    parser.add_argument("--photographs", type=int, default=500, help="real images to search (default: %(default)s)")
    parser.add_argument("--split", default="val", choices=("train", "val", "all"))
    parser.add_argument("--judge", action="store_true", help="judge the screenshots too")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

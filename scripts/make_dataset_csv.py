"""Folders of labelled images -> dataset.csv: python -m scripts.make_dataset_csv FOLDER... --out dataset.csv

A folder named real, nature, human or 0_real (ai, fake, generated or 1_fake) anywhere above an image gives its label;
the first other folder below the one named on the command line gives its source. So real/flickr/1.jpg,
progan/cat/0_real/1.png and Midjourney/train/ai/1.png are all understood. No source is on both sides of the split.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ingress.sources import IMAGE_SUFFIXES
from utils.errors import TableError
from utils.exits import Exit, command, command_parser

COLUMNS = ("filepath", "label", "split", "source", "generator", "delivery")
LABELS = {
    **dict.fromkeys(("real", "nature", "human", "0_real"), "real"),
    **dict.fromkeys(("ai", "fake", "generated", "1_fake"), "ai"),
}
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")  # name no source; their split is not by source


@dataclass(frozen=True, slots=True)
class Found:
    """One image below a folder that says its label."""

    path: Path
    label: str
    source: str


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    images = [each for folder in arguments.folders for each in find(folder)]
    if {each.label for each in images} != {"real", "ai"}:
        raise TableError("no images of one of the labels; name folders real and ai")
    splits = split_sources(images, arguments.val, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(_row(each, splits, arguments.out.parent) for each in images)
    for (label, split), count in sorted(Counter((each.label, splits[each.source]) for each in images).items()):
        sources = len({each.source for each in images if (each.label, splits[each.source]) == (label, split)})
        print(f"{label} {split}: {count} images of {sources} sources")
    return Exit.DONE


def find(folder: Path) -> list[Found]:
    """Every image file below a folder, sorted by path; files that no folder's name labels are left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.name.lower().endswith(IMAGE_SUFFIXES) or not path.is_file():
            continue
        parents = path.relative_to(folder).parts[:-1]
        labels = [LABELS[name.lower()] for name in (folder.name, *parents) if name.lower() in LABELS]
        if labels:
            names = [name for name in parents if name.lower() not in (*LABELS, *SPLIT_FOLDERS)]
            found.append(Found(path, labels[-1], names[0] if names else folder.resolve().name))
    return found


def split_sources(images: Iterable[Found], share: float, seed: int) -> dict[str, str]:
    """Source -> train or val, about ``share`` of the sources in val.

    A source's name and the seed alone decide, so that a new source moves no other and validates nothing that an older
    network was trained on. Only a label that would be on one side alone gives its smallest source to the other.
    """
    images = list(images)
    splits = {each.source: "val" if _draw(seed, each.source) < share else "train" for each in images}
    for label in ("real", "ai"):
        sizes = Counter(each.source for each in images if each.label == label)
        sides = {splits[source] for source in sizes}
        if len(sides) == 1 < len(sizes) and 0 < share < 1:
            smallest = min(sizes, key=lambda source: (sizes[source], _draw(seed, source)))
            splits[smallest] = "train" if sides == {"val"} else "val"
    for label in ("real", "ai"):  # a label's only source is for training
        if len(only := {each.source for each in images if each.label == label}) == 1:
            splits[only.pop()] = "train"
    return splits


def _draw(seed: int, source: str) -> float:
    """Between 0 and 1, the same wherever and whenever it is asked for."""
    digest = hashlib.sha256(f"{seed}:{source}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _row(image: Found, splits: Mapping[str, str], folder: Path) -> dict[str, str]:
    return {
        "filepath": os.path.relpath(image.path, folder),
        "label": image.label,
        "split": splits[image.source],
        "source": image.source,
        "generator": image.source if image.label == "ai" else "",
        "delivery": "clean",  # the file as it is
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.make_dataset_csv", __doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("dataset.csv"), help="default: %(default)s")
    parser.add_argument("--val", type=float, default=0.2, help="share of the sources to validate on: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

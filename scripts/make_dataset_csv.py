"""Folders of labelled images -> dataset.csv: python -m scripts.make_dataset_csv [FOLDER...] [--out dataset.csv]

Without arguments: data/, with data/real and data/ai. A folder named real, nature, human or 0_real (ai, fake, generated
or 1_fake) anywhere above an image gives its label; the first other folder below the one named on the command line gives
its source. So real/flickr/1.jpg, progan/cat/0_real/1.png and Midjourney/train/ai/1.png are all understood, and of
several folders named on the command line each is the source of what lies loose in it.

No source is on both sides of the split. An image without a source is one of its own, together with what nearly repeats
it; so is every image of a label with fewer than three sources. Figures measured by such images flatter, since pictures
of one camera or generator are on both sides: train_fusion says so.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ingress.sources import IMAGE_SUFFIXES
from training.cleaning import Seen, copies, look_at_all
from training.datasets import BY_IMAGE, DATASET, LABELS
from utils.errors import DatasetMissing
from utils.exits import Exit, command, command_parser

COLUMNS = ("filepath", "label", "split", "source", "generator", "delivery")
FOLDER_LABELS = {
    **dict.fromkeys(("real", "nature", "human", "0_real"), "real"),
    **dict.fromkeys(("ai", "fake", "generated", "1_fake"), "ai"),
}
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")  # name no source; their split is not by source
DATA = Path("data")
LAYOUT = "put the real images into {0}/real and those made by AI into {0}/ai, at best in a folder for each origin there"
FEWEST_SOURCES = 3  # of a label: two to cross-validate over, one to validate on
# Bits of 256 by which two pictures of one group differ at most. Wider than the 10 of copies: of 7,584 images of the
# catalogue, 13 have a stranger within 30 and 60 within 40; 116 pairs of one source are within 30. Joining strangers
# costs a little data, parting two frames of one scene a wrong figure.
SAME_SCENE = 30


@dataclass(frozen=True, slots=True)
class Found:
    """One image below a folder that says its label; ``source`` is empty where no folder names one."""

    path: Path
    label: str
    source: str


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    images = _find_all(arguments.folders)
    grouped = group_the_loose(images, arguments.out.parent, arguments.jobs)
    splits = split_sources(grouped, arguments.val, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(
            _row(image, known.source, splits, arguments.out.parent)
            for image, known in zip(grouped, images, strict=True)
        )
    _report(grouped, splits)
    print(
        f"read {len(images)} images in {', '.join(map(str, arguments.folders))}; wrote {arguments.out}; "
        f"next: python -m scripts.clean_dataset{'' if arguments.out == Path(DATASET) else f' {arguments.out}'}"
    )
    return Exit.DONE


def _find_all(folders: Sequence[Path]) -> list[Found]:
    """The images of all folders.

    Raises:
        DatasetMissing: a folder is not there, or a label has no image.
    """
    for folder in folders:
        if not folder.is_dir():
            raise DatasetMissing(f"no folder {folder}: {LAYOUT.format(folder)}, or name another folder")
    several = len(folders) > 1
    images = [each for folder in folders for each in find(folder, folder.resolve().name if several else "")]
    counts = Counter(each.label for each in images)
    if not (counts["real"] and counts["ai"]):
        raise DatasetMissing(
            f"{counts['real']} real and {counts['ai']} AI images in {', '.join(map(str, folders))}: "
            + LAYOUT.format(folders[0])
        )
    return images


def find(folder: Path, loose: str = "") -> list[Found]:
    """Every image file below a folder, sorted by path; files that no folder's name labels are left out.

    Args:
        loose: source of the images that no folder below names one for, unless it is a label's name.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.name.lower().endswith(IMAGE_SUFFIXES) or not path.is_file():
            continue
        parents = path.relative_to(folder).parts[:-1]
        above = (name.lower() for name in (folder.resolve().name, *parents))
        labels = [FOLDER_LABELS[name] for name in above if name in FOLDER_LABELS]
        if labels:
            names = [name for name in (*parents, loose) if name.lower() not in ("", *FOLDER_LABELS, *SPLIT_FOLDERS)]
            found.append(Found(path, labels[-1], names[0] if names else ""))
    return found


def group_the_loose(images: Sequence[Found], folder: Path, jobs: int = 1) -> list[Found]:
    """Give every image without a source, or of a label with too few, a source of its own.

    It is named after the first of the images that show nearly the same, as a path from ``folder``.
    """
    named = {(each.label, each.source) for each in images if each.source}
    few = {label for label in LABELS if sum(of == label for of, _ in named) < FEWEST_SOURCES}
    loose = [index for index, each in enumerate(images) if not each.source or each.label in few]
    if not loose:
        return list(images)
    paths = [str(images[index].path) for index in loose]
    seen = list(track(look_at_all(paths, jobs), "comparing", total=len(paths), console=Console(stderr=True)))
    first = _firsts(seen)
    grouped = list(images)
    for number, index in enumerate(loose):
        name = Path(os.path.relpath(paths[first.get(number, number)], folder)).as_posix()
        grouped[index] = replace(images[index], source=f"{BY_IMAGE}{name}")
    return grouped


def _firsts(seen: Sequence[Seen]) -> dict[int, int]:
    """Image -> the earlier one that it nearly repeats. What cannot be read repeats nothing."""
    readable = [index for index, each in enumerate(seen) if not each.problem]
    return {index: earlier for index, earlier, _ in copies(readable, seen, SAME_SCENE)}


def split_sources(images: Iterable[Found], share: float, seed: int) -> dict[str, str]:
    """Source -> train or val, about ``share`` of the sources in val.

    A source's name and the seed alone decide, so that a new source moves no other and validates nothing that an older
    network was trained on. Only a label that would be on one side alone gives its smallest source to the other.
    """
    images = list(images)
    splits = {each.source: "val" if _draw(seed, each.source) < share else "train" for each in images}
    for label in LABELS:
        sizes = Counter(each.source for each in images if each.label == label)
        sides = {splits[source] for source in sizes}
        if len(sides) == 1 < len(sizes) and 0 < share < 1:
            smallest = min(sizes, key=lambda source: (sizes[source], _draw(seed, source)))
            splits[smallest] = "train" if sides == {"val"} else "val"
    for label in LABELS:  # a label's only source is for training
        if len(only := {each.source for each in images if each.label == label}) == 1:
            splits[only.pop()] = "train"
    return splits


def _draw(seed: int, source: str) -> float:
    """Between 0 and 1, the same wherever and whenever it is asked for."""
    digest = hashlib.sha256(f"{seed}:{source}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _row(image: Found, generator: str, splits: Mapping[str, str], folder: Path) -> dict[str, str]:
    return {
        "filepath": os.path.relpath(image.path, folder),
        "label": image.label,
        "split": splits[image.source],
        "source": image.source,
        "generator": generator if image.label == "ai" else "",
        "delivery": "clean",  # the file as it is
    }


def _report(images: Sequence[Found], splits: Mapping[str, str]) -> None:
    for (label, split), count in sorted(Counter((each.label, splits[each.source]) for each in images).items()):
        sources = {each.source for each in images if (each.label, splits[each.source]) == (label, split)}
        single = sum(source.startswith(BY_IMAGE) for source in sources)
        named = [f"{len(sources) - single} sources"] * (len(sources) > single) + [f"{single} single images"] * bool(
            single
        )
        print(f"{label} {split}: {count} images of {' and '.join(named)}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.make_dataset_csv", __doc__)
    parser.add_argument("folders", type=Path, nargs="*", default=[DATA], help=f"default: {DATA}")
    parser.add_argument("--out", type=Path, default=Path(DATASET), help="default: %(default)s")
    parser.add_argument("--val", type=float, default=0.2, help="share of the sources to validate on: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes that compare images (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

"""Folders of labelled images as rows of a data set: labels and sources from folder names, splits by source. No command.

What the names mean is told in scripts/make_dataset_csv.py.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ingress.sources import IMAGE_SUFFIXES
from training.cleaning import Seen, copies, look_at_all
from training.datasets import BY_IMAGE, LABELS, write_rows
from utils.errors import DatasetMissing

COLUMNS = ("filepath", "label", "split", "source", "generator", "delivery")
FOLDER_LABELS = {
    **dict.fromkeys(("real", "nature", "human", "0_real"), "real"),
    **dict.fromkeys(("ai", "fake", "generated", "1_fake"), "ai"),
}
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")  # name no source; their split is not by source
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


def find_all(folders: Sequence[Path]) -> list[Found]:
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


def row_of(image: Found, generator: str, splits: Mapping[str, str], folder: Path) -> dict[str, str]:
    return {
        "filepath": os.path.relpath(image.path, folder),
        "label": image.label,
        "split": splits[image.source],
        "source": image.source,
        "generator": generator if image.label == "ai" else "",
        "delivery": "clean",  # the file as it is
    }


def write_dataset(
    folders: Sequence[Path], out: Path, share: float = 0.2, seed: int = 0, jobs: int = 1
) -> tuple[list[Found], dict[str, str]]:
    """Write the CSV of the images in ``folders``, split by source.

    Returns:
        The images, each with a source, and the split of every source.

    Raises:
        DatasetMissing: as ``find_all``.
    """
    images = find_all(folders)
    grouped = group_the_loose(images, out.parent, jobs)
    splits = split_sources(grouped, share, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    found = zip(grouped, images, strict=True)
    write_rows(out, (row_of(image, known.source, splits, out.parent) for image, known in found), COLUMNS)
    return grouped, splits

"""The catalogue of sources: where every labelled image comes from, what it shows, and how its label is known.

``training/catalogue/*.csv`` has one row per source: the files of one repository, package or folder that one pattern
names. ``vocabulary.toml`` beside them says which words a cell may hold, ``hashes/*.txt`` which images a build of the
data set must contain. Holds no image, and opens none.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from training.datasets import SPLITS
from utils.errors import TableError

CATALOGUE = Path(__file__).parent / "catalogue"
PLACES = ("github", "debian", "pypi", "npm", "folder")
HASH_DIGITS = 16  # of a sha256, in the hash files: 64 bits tell a few ten thousand images apart


@dataclass(frozen=True, slots=True)
class Source:
    """One row of the catalogue. Its images have one label, one origin and one way of being known."""

    id: str  # lower-case letters, digits and hyphens; never reused for something else
    address: str  # place:name, such as github:owner/name; the places are PLACES
    version: str  # the commit, or the version of the package, that was seen
    include: str  # regular expression; a path belongs to the source where it is found
    exclude: str  # likewise, for what does not
    require: str  # checks of the vocabulary, separated by spaces, that an image must pass besides
    history: str  # yes where the images lie in earlier commits
    label: str  # real | ai
    family: str  # of the generator; empty for a real source
    generator: str  # its version as the evidence has it; empty for a real source
    kind: str  # how the images came to be: phone, scan, render, ...
    content: str  # photo | art | mixed: what a trainer balances within the label
    subject: str  # what they show: people, food, ...
    group: str  # sources of one group share an author, prompts or motifs, and so a split
    evidence: str  # why the label is believed
    grade: str  # c2pa | metadata | stated | dated | evident
    licence: str  # "none stated" is a statement too
    images: str  # how many a build holds; empty before the first
    split: str  # train | fusion | val; empty before training.splits has drawn it
    notes: str

    @property
    def place(self) -> str:
        return self.address.partition(":")[0]

    @property
    def name(self) -> str:
        return self.address.partition(":")[2]


COLUMNS = tuple(field.name for field in fields(Source))


@cache
def vocabulary() -> Mapping[str, Mapping[str, str]]:
    """Column -> word -> what it means."""
    with (CATALOGUE / "vocabulary.toml").open("rb") as file:
        found: dict[str, dict[str, str]] = tomllib.load(file)
    return found


def read_catalogue(folder: Path = CATALOGUE) -> list[Source]:
    """Every source, sorted by id.

    Raises:
        TableError: a file cannot be read, or a row breaks a rule; the message names the row and the rule.
    """
    sources = [source for path in sorted(folder.glob("*.csv")) for source in read_file(path)]
    if not sources:
        raise TableError(f"no sources in {folder}/*.csv")
    counts: dict[str, int] = {}
    for source in sources:
        counts[source.id] = counts.get(source.id, 0) + 1
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise TableError(f"{folder}: the ids {', '.join(repeated)} are given more than once")
    return sorted(sources, key=lambda source: source.id)


def read_file(path: Path) -> list[Source]:
    """The sources of one file of the catalogue, in its order."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, strict=True)
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} cannot be read as CSV: {error}") from error
    if tuple(table.fieldnames or ()) != COLUMNS:
        raise TableError(f"{path}: the columns must be {','.join(COLUMNS)}")
    sources = []
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise TableError(f"{path}, line {number}: another number of cells than the header")
        source = Source(**row)
        if problem := check(source):
            raise TableError(f"{path}, line {number}, {source.id!r}: {problem}")
        sources.append(source)
    return sources


def write_file(path: Path, sources: Iterable[Source]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows([getattr(source, name) for name in COLUMNS] for source in sources)


def check(source: Source) -> str:
    """The rule that a row breaks, or nothing."""
    words: list[tuple[str, str, Collection[str]]] = [
        (column, getattr(source, column), allowed)
        for column, allowed in vocabulary().items()
        if column not in ("family", "require")
    ]
    words += [("require", word, vocabulary()["require"]) for word in source.require.split()]
    families = vocabulary()["family"] if source.label == "ai" else ("",)
    words += [("family", source.family, families), ("place of the address", source.place, PLACES)]
    words += [("history", source.history, ("yes", "")), ("split", source.split, (*SPLITS, ""))]
    for column, word, allowed in words:
        if word not in allowed:
            return f"{column} is {word!r}, not one of {', '.join(allowed)}"
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", source.id):
        return "the id must be lower-case letters and digits, joined by hyphens"
    for column in ("version", "include", "group", "evidence", "licence"):
        if not getattr(source, column):
            return f"{column} is empty"
    try:
        re.compile(source.include)
        re.compile(source.exclude)
    except re.error as error:
        return f"a pattern is no regular expression: {error}"
    return "" if re.fullmatch(r"\d*", source.images) else "images is no number"


# --- which images a build must contain


def read_hashes(folder: Path = CATALOGUE) -> dict[str, tuple[str, ...]]:
    """Source id -> the first HASH_DIGITS digits of each image's sha256, sorted."""
    found = {}
    for path in sorted((folder / "hashes").glob("*.txt")):
        for line in path.read_text(encoding="ascii").splitlines():
            source, *hashes = line.split()
            found[source] = tuple(hashes)
    return found


def write_hashes(path: Path, hashes: Mapping[str, Iterable[str]]) -> None:
    """One line per source: its id, then its images' hashes (sha256), cut and sorted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (" ".join((name, *sorted(each[:HASH_DIGITS] for each in hashes[name]))) for name in sorted(hashes))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")

"""Collect images of known origin: python -m lifecycle.collect SOURCE… --count 200 --out data/

SOURCE is NAME:WHAT; --list shows them. Images go into OUT/real/<source>/ and OUT/ai/<source>/ as make_dataset_csv reads
them, a folder for each author or generator; OUT/sources.csv keeps address, author, licence, date and the claim that
makes the label, and is what a stopped run goes on from. What is there already, by address, bytes, pixels or looks, is
not taken again. --since takes newer images only, and --keep-days drops what was collected longer ago: together a
rolling window of what generators make now.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np

from ingress.sources import Ingress
from lifecycle.sources import SOURCES, Item, open_source
from lifecycle.web import PER_SECOND, Web
from training.cleaning import SMALLEST, Seen, describe, repeats
from utils.errors import InputError, SetupError, TableError, VerifyError
from utils.exits import Exit, command, command_parser
from utils.persistence import safe_name, write_atomic
from utils.settings import Settings, load_settings

TABLE, REJECTED = "sources.csv", "rejected.csv"
DROPPED = "dropped by --keep-days"
HASH_DIGITS = 16  # of a file's name
OLDER = 1000  # images in a row that are too old: what a source offers after them is older still


@dataclass(frozen=True, slots=True)
class Record:
    """A line of sources.csv."""

    filepath: str
    label: str
    source: str
    generator: str
    url: str
    page: str
    author: str
    licence: str
    date: str
    claim: str
    collected: str  # ISO 8601, UTC
    sha256: str
    pixels_sha256: str
    fingerprint: str  # hex of the perceptual hash; empty where it would say too little

    @property
    def seen(self) -> Seen:
        bits = np.frombuffer(bytes.fromhex(self.fingerprint), np.uint8) if self.fingerprint else None
        return Seen(sha256=self.sha256, pixels_sha256=self.pixels_sha256, fingerprint=bits)


COLUMNS = tuple(each.name for each in fields(Record))

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Collection:
    """What is in a folder; every change is on the disk before the next."""

    folder: Path
    records: list[Record] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # address -> why, of earlier runs and this one

    @classmethod
    def at(cls, folder: Path) -> Collection:
        """
        Raises:
            TableError: there is a table that is not ours.
        """
        folder.mkdir(parents=True, exist_ok=True)
        found = cls(folder)
        try:
            found.records = [Record(**row) for row in _rows(folder / TABLE)]
        except TypeError as error:
            raise TableError(f"{folder / TABLE} is not a table of lifecycle.collect: {error}") from error
        found.refused = {row["url"]: row["reason"] for row in _rows(folder / REJECTED)}
        return found

    @property
    def addresses(self) -> set[str]:
        return {each.url for each in self.records} | self.refused.keys()

    def add(self, record: Record, raw: bytes) -> None:
        path = self.folder / record.filepath
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, raw)
        _append(self.folder / TABLE, COLUMNS, asdict(record))
        self.records.append(record)

    def refuse(self, url: str, reason: str) -> None:
        _append(self.folder / REJECTED, ("url", "reason"), {"url": url, "reason": reason})
        self.refused[url] = reason

    def drop_older(self, days: int) -> int:
        """Drop what was collected longer ago, files too; its addresses are not taken again. Returns how many."""
        limit = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        old = [each for each in self.records if each.collected < limit]
        if old:
            for each in old:  # files first: make_dataset_csv takes whatever lies there
                (self.folder / each.filepath).unlink(missing_ok=True)
                self.refuse(each.url, DROPPED)
            self.records = [each for each in self.records if each.collected >= limit]
            scratch = self.folder / f".{TABLE}"
            scratch.unlink(missing_ok=True)
            _append(scratch, COLUMNS, *(asdict(each) for each in self.records))
            scratch.replace(self.folder / TABLE)
        return len(old)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def _append(path: Path, columns: Sequence[str], *rows: dict[str, str]) -> None:
    begins = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        if begins:
            table.writeheader()
        table.writerows(rows)


async def collect(
    argument: str, count: int, collection: Collection, web: Web, settings: Settings, since: str = ""
) -> Counter[str]:
    """Take up to ``count`` new images of a source. Returns how many were taken, and why others were not.

    Args:
        since: ISO date; images whose date is older, or not stated, are passed over.

    Raises:
        SetupError: no such source, or a key that it needs is missing.
        VerifyError: the source itself cannot be read.
    """
    name, source, what = open_source(argument)
    told: Counter[str] = Counter()
    known, older = collection.addresses, 0
    with Ingress(settings.decode.for_strangers()) as ingress:
        async with aclosing(source.items(web, what, settings)) as items:  # type: ignore[type-var]
            async for item in items:
                if told["taken"] >= count or older >= OLDER:
                    break
                if item.url in known:
                    told["there already"] += 1
                elif since and item.date < since:
                    told["older"] += 1
                    older += 1
                else:
                    older = 0
                    known.add(item.url)
                    told[await _take(name, item, collection, web, ingress)] += 1
    return told


async def _take(name: str, item: Item, collection: Collection, web: Web, ingress: Ingress) -> str:
    """Fetch and keep one image; what happened to it. An address that failed for now is tried again another day."""
    try:
        raw = await item.read() if item.read else await web.image(item.url)
        sample = ingress.decode(raw, item.url)
    except SetupError:
        raise
    except VerifyError as error:
        if isinstance(error, InputError):
            collection.refuse(item.url, error.code)
        else:
            log.warning("%s: %s", item.url, error)
        return error.code
    seen = describe(sample)
    problem = seen.problem or ("tiny" if min(seen.width, seen.height) < SMALLEST else "")
    if not problem and repeats(seen, (each.seen for each in collection.records)):
        problem = "repeats another"
    if problem:
        collection.refuse(item.url, problem)
        return problem
    group = safe_name(f"{name}-{item.group}") if item.group else name
    file = f"{item.label}/{group}/{seen.sha256[:HASH_DIGITS]}.{seen.format.lower()}"
    record = Record(
        filepath=file,
        label=item.label,
        source=group,
        generator=item.generator,
        url=item.url,
        page=item.page,
        author=item.author,
        licence=item.licence,
        date=item.date,
        claim=item.claim,
        collected=datetime.now(UTC).isoformat(timespec="seconds"),
        sha256=seen.sha256,
        pixels_sha256=seen.pixels_sha256,
        fingerprint="" if seen.fingerprint is None else seen.fingerprint.tobytes().hex(),
    )
    collection.add(record, raw)
    return "taken"


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    if arguments.list:
        for name, about in SOURCES.items():
            print(f"{name:<12} {about}")
        return Exit.DONE
    return asyncio.run(_collect_all(arguments, load_settings()))


async def _collect_all(arguments: argparse.Namespace, settings: Settings) -> Exit:
    collection, web = Collection.at(arguments.out), Web(settings, arguments.per_second)
    status = Exit.DONE
    if arguments.keep_days is not None:
        print(f"{collection.drop_older(arguments.keep_days)} images older than {arguments.keep_days} days dropped")
    for argument in arguments.sources:
        try:
            told = await collect(argument, arguments.count, collection, web, settings, arguments.since)
        except SetupError:
            raise
        except VerifyError as error:  # one source in trouble does not cost the others
            print(f"{argument}: {error.code}: {error}", file=sys.stderr)
            status = Exit.FAILED
            continue
        print(f"{argument}: {', '.join(f'{count} {what}' for what, count in told.most_common()) or 'nothing'}")
    counts = Counter(each.label for each in collection.records)
    print(
        f"{counts['real']} real and {counts['ai']} AI images in {collection.folder}; "
        f"next: python -m scripts.make_dataset_csv {collection.folder}"
    )
    return status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.collect", __doc__)
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="NAME:WHAT; --list shows the names")
    parser.add_argument("--list", action="store_true", help="show the sources and end")
    parser.add_argument("--count", type=int, default=200, help="new images of each source (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder (default: %(default)s)")
    parser.add_argument("--since", default="", type=_day, metavar="DATE", help="only images of this day or later")
    parser.add_argument("--keep-days", type=int, metavar="N", help="first drop what was collected longer ago")
    parser.add_argument(
        "--per-second", type=float, default=PER_SECOND, help="requests to one host (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    if not arguments.sources and not arguments.list and arguments.keep_days is None:
        parser.error("name a source, or --list")
    return arguments


def _day(text: str) -> str:
    """YYYY-MM-DD, as argparse wants a type, which it asks about the default too."""
    try:
        return date.fromisoformat(text).isoformat() if text else ""
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; write it as 2026-11-30") from None


if __name__ == "__main__":
    sys.exit(main())

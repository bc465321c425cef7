"""Build the data set of the catalogue: python -m training.build_dataset --mirror DIR --out DIR

Reads every source of training/catalogue from git snapshots, packages and folders that lie in --mirror, and writes
OUT/images/<label>/<source>/, OUT/dataset.csv as every trainer takes it, and OUT/rejected.csv with the reason for every
file that was left out. The same snapshots give the same data set, on any number of processes; the hash files of the
catalogue say whether it is the one that we used. A stopped build goes on where it was, and a finished one has nothing
to do. --check reads nothing and says which sources cannot be had.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np

from ingress.decode import decode
from ingress.sources import IMAGE_SUFFIXES, limits_of
from provenance import generators
from training.cleaning import FLAT, Seen, clean, describe, repeats
from training.datasets import check_splits
from training.origins import open_origin
from training.sources import (
    CATALOGUE,
    HASH_DIGITS,
    Source,
    read_catalogue,
    read_file,
    read_hashes,
    write_file,
    write_hashes,
)
from utils.contracts import RgbArray, Sample
from utils.errors import TableError, VerifyError
from utils.exits import Exit, command, command_parser
from utils.processes import process_pool
from utils.settings import load_settings

# A linear head on frozen features is saturated by about ten images of a source; fine-tuning still gains from more.
CAP = 60
SMALLEST = 256  # px, the shorter side: below it little is left of a generator's traces after a delivery
LONGEST = 3.2  # times the shorter side: banners and strips are no pictures
FEWEST_BYTES = 6_000  # icons and place-holders
COLUMNS = (
    *("filepath", "label", "split", "source", "group", "generator", "family", "kind", "content", "subject"),
    *("delivery", "sha256", "format", "width", "height", "original"),
)


@dataclass(frozen=True, slots=True)
class Kept:
    """One image of a source: its path at the origin, and where it was written."""

    original: str
    filepath: str  # relative to the data set
    seen: Seen


@dataclass(frozen=True, slots=True)
class Record:
    """What a build made of one source; ``key`` changes when another build could make something else of it."""

    key: str
    version: str
    kept: tuple[Kept, ...]
    rejected: tuple[tuple[str, str], ...]  # path at the origin, reason


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    sources = read_catalogue(arguments.catalogue)
    if arguments.check:
        return _check(sources, arguments.mirror)
    return _build(sources, arguments)


def _check(sources: Sequence[Source], mirrors: Sequence[Path]) -> int:
    counts = Counter[str]()
    for source in sources:
        try:
            with open_origin(source, mirrors) as origin:
                found = "here" if origin.version == source.version else "here in another version"
        except TableError as error:
            found = "missing"
            print(f"missing: {source.id}: {error}")
        if found == "here in another version":
            print(f"{found}: {source.id}: {origin.version}, not {source.version}")
        counts[found] += 1
    print(", ".join(f"{count} sources {found}" for found, count in sorted(counts.items())))
    return Exit.FAILED if counts["missing"] else Exit.DONE


def _build(sources: Sequence[Source], arguments: argparse.Namespace) -> int:
    check_splits((each.group, each.split) for each in sources)
    if undrawn := [each.id for each in sources if not each.split]:
        raise TableError(f"{len(undrawn)} sources such as {undrawn[0]} have no split: run python -m training.splits")
    records, fresh, missing = collect_all(sources, arguments.mirror, arguments.out, arguments.cap, arguments.jobs)
    present = [each for each in sources if each.id in records]
    rows, rejected = assemble(present, records)
    changed = _write_if_new(arguments.out / "dataset.csv", COLUMNS, rows)
    changed |= _write_if_new(arguments.out / "rejected.csv", ("source", "path", "reason"), rejected)
    hashes = hashes_of(rows)
    if arguments.record:
        _record(arguments.catalogue, records, hashes)
    differing = _differing(read_hashes(arguments.catalogue), hashes, present)
    for source, message in sorted({**missing, **differing}.items()):
        print(f"{source}: {message}", file=sys.stderr)
    counts = Counter(row["label"] for row in rows)
    print(
        f"{len(rows)} images ({counts['real']} real, {counts['ai']} AI) of {len(hashes)} sources"
        f" in {arguments.out / 'dataset.csv'}; {len(rejected)} files left out; {len(missing)} sources missing;"
        f" hashes agree for {len(present) - len(differing)} of {len(present)}"
    )
    if not fresh and not changed:
        print("nothing to do: every source was built before")
    return Exit.FAILED if missing or differing else Exit.DONE


# --- one source


def collect_all(
    sources: Sequence[Source], mirrors: Sequence[Path], out: Path, cap: int, jobs: int
) -> tuple[dict[str, Record], int, dict[str, str]]:
    """Records by source, how many of them were made now, and why the others are missing."""
    records: dict[str, Record] = {}
    missing: dict[str, str] = {}
    todo: list[Source] = []
    for source in sources:
        try:
            with open_origin(source, mirrors) as origin:
                key = _key(source, origin.version, cap)
        except TableError as error:
            missing[source.id] = str(error)
            continue
        known = _read_record(_record_path(out, source))
        if known and known.key == key:
            records[source.id] = known
        else:
            todo.append(source)
    work = partial(collect, mirrors=mirrors, out=out, cap=cap)
    for number, (source, record) in enumerate(_run(work, todo, jobs), 1):
        records[source.id] = record
        print(f"{number}/{len(todo)} {source.id}: {_summary(record)}", flush=True)
    return records, len(todo), missing


def _run(work: Callable[[Source], Record], todo: Sequence[Source], jobs: int) -> Iterator[tuple[Source, Record]]:
    if jobs == 1 or len(todo) < 2:
        yield from ((source, work(source)) for source in todo)
        return
    with process_pool(jobs) as pool:
        running = {pool.submit(work, source): source for source in todo}
        for done in as_completed(running):
            yield running[done], done.result()


def collect(source: Source, mirrors: Sequence[Path], out: Path, cap: int = CAP) -> Record:
    """Write up to ``cap`` images of a source, spread over its paths, and the record of it.

    The record is written last, so that a source that was interrupted is made anew.
    """
    cv2.setNumThreads(1)
    folder = out / "images" / source.label / source.id
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.iterdir():
        leftover.unlink()
    kept: list[Kept] = []
    rejected: list[tuple[str, str]] = []
    with open_origin(source, mirrors) as origin:
        for path in spread(candidates(source, origin.paths())):
            if len(kept) == cap:
                rejected.append((path, f"over {cap} of its source"))
                continue
            raw = origin.read(path)
            seen = judge(raw, source) if raw is not None else Seen(problem="absent from the snapshot")
            problem = seen.problem or ("repeats its source" if repeats(seen, (each.seen for each in kept)) else "")
            if problem or raw is None:
                rejected.append((path, problem))
                continue
            file = folder / f"{seen.sha256[:HASH_DIGITS]}.{seen.format.lower()}"
            file.write_bytes(raw)
            kept.append(Kept(path, file.relative_to(out).as_posix(), seen))
        record = Record(_key(source, origin.version, cap), origin.version, tuple(kept), tuple(rejected))
    _write_record(_record_path(out, source), record)
    return record


def candidates(source: Source, paths: Iterable[str]) -> list[str]:
    """The image files that the source's patterns name, sorted."""
    include, exclude = re.compile(source.include), re.compile(source.exclude or r"(?!)")
    return sorted(
        path
        for path in paths
        if path.lower().endswith(IMAGE_SUFFIXES) and include.search(path) and not exclude.search(path)
    )


def spread(paths: Sequence[str]) -> list[str]:
    """In an order of which every beginning is spread over the whole: that of the mirrored bits of the position."""
    bits = max(1, (len(paths) - 1).bit_length())
    return [paths[i] for i in sorted(range(len(paths)), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))]


def judge(raw: bytes, source: Source) -> Seen:
    """Decode one file as the product does; ``problem`` says why it may not stay."""
    if len(raw) < FEWEST_BYTES:
        return Seen(problem=f"under {FEWEST_BYTES} bytes")
    try:
        sample = decode(raw, source.id, limits_of(load_settings().decode))
    except VerifyError as error:
        return Seen(problem=error.code)
    seen = describe(sample)
    return replace(seen, problem=seen.problem or _unfit(sample, source.require.split()))


def _unfit(sample: Sample, required: Sequence[str]) -> str:
    short, long = sorted((sample.width, sample.height))
    if short < SMALLEST:
        return f"under {SMALLEST} px"
    if long > LONGEST * short:
        return "a strip"
    if sample.frame_count > 1 and sample.format != "MPO":  # a camera's MPO holds previews besides the picture
        return "animated"
    thumbnail = cv2.resize(sample.rgb, (64, 64), interpolation=cv2.INTER_AREA)
    if thumbnail.std() < FLAT:
        return "flat"
    return next((f"not {name}" for name in required if not CHECKS[name](sample)), "")


# --- what a source may require of its images; the vocabulary says what each means


def _from_camera(sample: Sample) -> bool:
    exif = sample.metadata.exif
    return bool(exif and exif.text("Make").strip())


def _names_generator(sample: Sample) -> bool:
    return any(hit.kind == "generated" for hit in generators.find(sample.metadata))


def _is_single(sample: Sample) -> bool:
    """No straight edge across the whole picture, as between the parts of a collage.

    At 256 x 256 px an edge is a step of over 12 grey levels in over 72 % of the cells of a line in the inner part,
    while lines 6 px away have it in under 45 %: tuned on galleries of prompts with before-and-after pictures.
    """
    grey = cv2.resize(cv2.cvtColor(sample.upright, cv2.COLOR_RGB2GRAY), (256, 256), interpolation=cv2.INTER_AREA)
    for picture in (grey.astype(np.int16), grey.T.astype(np.int16)):
        share = (np.abs(picture[:, 2:] - picture[:, :-2]) > 12).mean(axis=0)
        if any(share[x] > 0.72 and max(share[x - 6], share[x + 6]) < 0.45 for x in range(30, 224)):
            return False
    return True


def _is_busy(sample: Sample) -> bool:
    """The commonest colour (5 bits a channel) covers at most half: screenshots, logos and flat graphics have one."""
    small: RgbArray = cv2.resize(sample.rgb, (64, 64), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    colours = (small.astype(np.int32) >> 3) @ np.array([1 << 10, 1 << 5, 1])
    return bool(np.unique(colours, return_counts=True)[1].max() <= colours.size / 2)


CHECKS: Mapping[str, Callable[[Sample], bool]] = {
    "camera": _from_camera,
    "generator": _names_generator,
    "single": _is_single,
    "busy": _is_busy,
}


# --- all sources


def assemble(
    sources: Sequence[Source], records: Mapping[str, Record]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The rows of dataset.csv and of rejected.csv; copies across sources are left out as clean_dataset does it."""
    rows, seen = [], []
    rejected = [
        {"source": source.id, "path": path, "reason": reason}
        for source in sources
        for path, reason in records[source.id].rejected
    ]
    for source in sources:
        for kept in sorted(records[source.id].kept, key=lambda kept: kept.original):
            rows.append(_row(source, kept))
            seen.append(kept.seen)
    staying, decisions = clean(rows, seen, SMALLEST)
    places = {row["filepath"]: (row["source"], row["original"]) for row in rows}
    for each in decisions:
        source_id, path = places[each.filepath]
        other = ": {} of {}".format(*reversed(places[each.other])) if each.other else ""
        rejected.append({"source": source_id, "path": path, "reason": each.reason + other})
    rejected.sort(key=lambda row: (row["source"], row["path"], row["reason"]))
    return [rows[index] for index in staying], rejected


def _row(source: Source, kept: Kept) -> dict[str, str]:
    facts = {name: str(getattr(source, name)) for name in COLUMNS if hasattr(source, name)}
    return {
        **facts,
        "filepath": kept.filepath,
        "source": source.id,
        "delivery": "clean",  # the file as published
        "sha256": kept.seen.sha256,
        "format": kept.seen.format,
        "width": str(kept.seen.width),
        "height": str(kept.seen.height),
        "original": kept.original.encode(errors="replace").decode(),
    }


def hashes_of(rows: Iterable[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """Source -> the hashes of its images as the catalogue keeps them."""
    found = defaultdict(list)
    for row in rows:
        found[row["source"]].append(row["sha256"][:HASH_DIGITS])
    return {source: tuple(sorted(hashes)) for source, hashes in found.items()}


def _differing(
    expected: Mapping[str, Sequence[str]], found: Mapping[str, Sequence[str]], sources: Iterable[Source]
) -> dict[str, str]:
    differing = {}
    for source in sources:
        ours, theirs = set(expected.get(source.id, ())), set(found.get(source.id, ()))
        if ours != theirs:
            differing[source.id] = (
                f"{len(ours - theirs)} images of the catalogue are not here, {len(theirs - ours)} are not in it"
            )
    return differing


def _record(folder: Path, records: Mapping[str, Record], hashes: Mapping[str, Sequence[str]]) -> None:
    """Write what this build found of each source into the catalogue: version, number of images, hashes."""
    for path in sorted(folder.glob("*.csv")):
        known = read_hashes(folder)
        sources = [
            replace(each, version=records[each.id].version, images=str(len(hashes.get(each.id, ()))))
            if each.id in records
            else each
            for each in read_file(path)
        ]
        write_file(path, sources)
        ours = {each.id: hashes.get(each.id, ()) if each.id in records else known.get(each.id, ()) for each in sources}
        write_hashes(folder / "hashes" / f"{path.stem}.txt", ours)


# --- files of the build


def _key(source: Source, version: str, cap: int) -> str:
    facts = (source.address, version, source.include, source.exclude, source.require, source.history, source.label)
    rules = (cap, SMALLEST, LONGEST, FEWEST_BYTES)
    return sha256(json.dumps([facts, rules]).encode()).hexdigest()


def _record_path(out: Path, source: Source) -> Path:
    return out / "records" / f"{source.id}.json"


def _write_record(path: Path, record: Record) -> None:
    known = asdict(record)
    for kept in known["kept"]:
        found = kept["seen"]["fingerprint"]
        kept["seen"]["fingerprint"] = None if found is None else found.tobytes().hex()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_suffix(".part")
    partial_file.write_text(json.dumps(known), encoding="utf-8")
    partial_file.replace(path)


def _read_record(path: Path) -> Record | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    kept = []
    for each in known["kept"]:
        found = each["seen"].pop("fingerprint")
        fingerprint = None if found is None else np.frombuffer(bytes.fromhex(found), np.uint8)
        kept.append(Kept(each["original"], each["filepath"], Seen(**each["seen"], fingerprint=fingerprint)))
    rejected = tuple((path, reason) for path, reason in known["rejected"])
    return Record(known["key"], known["version"], tuple(kept), rejected)


def _write_if_new(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bool:
    """Whether the file had to be written."""
    old = path.read_bytes() if path.exists() else None
    part = path.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows({name: value.encode(errors="replace").decode() for name, value in row.items()} for row in rows)
    part.replace(path)
    return path.read_bytes() != old


def _summary(record: Record) -> str:
    reasons = Counter(reason for _, reason in record.rejected)
    return ", ".join([f"{len(record.kept)} kept", *(f"{count} {reason}" for reason, count in reasons.most_common())])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m training.build_dataset", __doc__)
    parser.add_argument(
        "--mirror", type=Path, nargs="+", action="extend", required=True, help="folders with snapshots and packages"
    )
    parser.add_argument("--out", type=Path, help="folder of the data set")
    parser.add_argument("--check", action="store_true", help="only say which sources cannot be had")
    parser.add_argument("--record", action="store_true", help="write versions, counts and hashes into the catalogue")
    parser.add_argument("--cap", type=int, default=CAP, help="images of a source at most: %(default)s")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE)
    arguments = parser.parse_args(argv)
    if not arguments.check and not arguments.out:
        parser.error("--out is needed unless --check")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

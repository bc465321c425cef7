"""Does an archive survive its killers? scripts.judge_archive beside the worker, on the same images, in one run.

    python -m benchmarks.archive FOLDER --images 5000

From the photographs below FOLDER: different crops of 320 to 512 pixels, JPEG, PNG and WebP, one in a hundred damaged, a
third each as files, WebDataset tars and Parquet. Two actors of a local Ray judge them; at a fifth of the parts one
actor is killed, at the half the driver with all that it is (SIGKILL), and the same command is started again. Then
every image must have exactly one row, and a sample the verdicts of the command line. The worker judges a sample from a
Valkey server of its own before and after, as the benchmark does. CPU time tells what a busy machine hides.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow
from PIL import Image
from pyarrow import parquet

from inference.detector import build_verifier
from scripts.benchmark import ROOT, Queue, cpu_name
from utils.profiles import PROFILES
from utils.settings import load_settings
from utils.threads import limit_library_threads

SHARD = 500  # images of a tar or Parquet file
PER_PART = 50
TICKS = os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    with tempfile.TemporaryDirectory(prefix="imgv-archive-") as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        images = list(make(arguments.folder, arguments.images, arguments.seed))
        expected = write(images, work / "archive")
        wrong = chaos(arguments, work, images, expected)
    print("wrong: " + "; ".join(wrong) if wrong else "every image has one row, and every compared verdict is the same")
    return len(wrong)


def chaos(arguments: argparse.Namespace, work: Path, images: Sequence[bytes], expected: dict[str, int]) -> list[str]:
    """Everything that is measured. What is wrong."""
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {cpu_name()}, profile {arguments.profile}")
    damaged = range(99, len(images), 100)
    good = [number for number in range(len(images)) if number not in damaged]
    drawn = [*random.Random(arguments.seed).sample(good, min(arguments.compare, len(good))), *damaged]
    (work / "sample").mkdir()
    paths = [work / "sample" / f"{number:05}.jpg" for number in drawn]  # what it is, the first bytes say
    for number, path in zip(drawn, paths, strict=True):
        path.write_bytes(images[number])
    said = command_line(arguments.profile, paths)
    before = worker(arguments.profile, paths[: -len(damaged) or None])
    archive = Archive(arguments, work)
    archive.judge_and_kill()
    after = worker(arguments.profile, paths[: -len(damaged) or None])
    show(archive, before, after, len(images))
    found = rows_of(work / "out")
    return [
        *once(found, expected, images),
        *compared(found, expected, {n: said[p] for n, p in zip(drawn, paths, strict=True)}),
    ]


# --- the archive


def make(folder: Path, count: int, seed: int) -> Iterator[bytes]:
    """Different images; the last hundredth is damaged, in four ways."""
    originals = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png", ".webp"))
    draw, seen = random.Random(seed), set()
    number = 0
    while number < count:
        with Image.open(originals[number % len(originals)]) as image:
            rgb = image.convert("RGB")
        rgb.thumbnail((1024, 1024))
        width, height = (min(draw.randint(320, 512), side) for side in rgb.size)
        left, top = draw.randint(0, rgb.width - width), draw.randint(0, rgb.height - height)
        file = io.BytesIO()
        form = draw.choice(("JPEG", "JPEG", "WEBP", "PNG"))
        rgb.crop((left, top, left + width, top + height)).save(file, form, quality=draw.randint(60, 95))
        raw = file.getvalue()
        if number % 100 == 99:
            raw = (raw[:200], b"no image %d" % number, raw[: len(raw) // 2], b"<html>%d" % number)[number // 100 % 4]
        if raw not in seen:
            seen.add(raw)
            number += 1
            yield raw


def write(images: Sequence[bytes], archive: Path) -> dict[str, int]:
    """A third each as files, tars and Parquet. The number of each image by the name that its row must have."""
    numbers: dict[str, int] = {}
    forms: tuple[list[int], ...] = tuple(list(range(form, len(images), 3)) for form in range(3))
    files, tars, tables = forms
    for number in files:
        path = archive / "files" / f"{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images[number])
        numbers[str(path)] = number
    for first in range(0, len(tars), SHARD):
        path = archive / f"shard-{first // SHARD:03}.tar"
        with tarfile.open(path, "w") as tar:
            for number in tars[first : first + SHARD]:
                for name, raw in ((f"{number:05}.jpg", images[number]), (f"{number:05}.json", b"{}")):
                    info = tarfile.TarInfo(name)
                    info.size = len(raw)
                    tar.addfile(info, io.BytesIO(raw))
                numbers[f"{path}#{number:05}.jpg"] = number
    for first in range(0, len(tables), SHARD):
        path = archive / f"shard-{first // SHARD:03}.parquet"
        held = tables[first : first + SHARD]
        rows = [{"bytes": images[number], "path": f"{number:05}.jpg"} for number in held]
        parquet.write_table(pyarrow.table({"image": rows}), path, row_group_size=PER_PART)
        numbers |= {f"{path}#{row}": number for row, number in enumerate(held)}
    return numbers


class Archive:
    """The command, killed and started again."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.workers = arguments.workers
        self.out = work / "out"
        self.command = [
            *(sys.executable, "-m", "scripts.judge_archive", str(work / "archive"), "--out", str(self.out)),
            *("--profile", arguments.profile, "--workers", str(self.workers), "--rows", str(PER_PART)),
        ]
        self.cpu_seconds = 0.0
        self.seconds = 0.0
        self.spans: list[tuple[int, float]] = []  # of each start: images between its first and last part, seconds

    def judge_and_kill(self) -> None:
        with self._driver() as driver:
            self._await(driver, 1)
            parts = len(list((self.out / "parts").iterdir()))
            self._await(driver, parts // 5)
            (actor, *_) = actors_of(driver.pid)
            os.kill(actor, signal.SIGKILL)
            killed_at = self._parts_done()
            self._await(driver, parts // 2)
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            print(f"{parts} parts; an actor killed after {killed_at}, the driver after {self._parts_done()}")
        first = self._times()
        with self._driver() as driver:
            status = driver.wait()
        print(f"started again, it ended with {status}")
        kept = {name: at for name, at in self._times().items() if name in first}
        assert kept == first, "a part that was done was judged again"

    @contextmanager
    def _driver(self) -> Iterator[subprocess.Popen[bytes]]:
        """One start, with what it took."""
        before, started = set(self._times()), time.time()
        driver = subprocess.Popen(self.command, cwd=ROOT, start_new_session=True)
        ended = threading.Event()
        watching = threading.Thread(target=self._add_cpu, args=(driver.pid, ended))
        watching.start()
        try:
            yield driver
        finally:
            if driver.poll() is None:
                driver.kill()
            ended.set()
            watching.join()
            self.seconds += time.time() - started
            await_end(driver.pid)
            times = sorted((at, name) for name, at in self._times().items() if name not in before)
            if len(times) > self.workers:
                later = times[self.workers :]  # the first part of each actor waits for its models
                seconds = (later[-1][0] - times[self.workers - 1][0]) / 1e9
                self.spans.append((sum(self._images(name) for _, name in later), seconds))

    def _await(self, driver: subprocess.Popen[bytes], count: int) -> None:
        while self._parts_done() < count:
            assert driver.poll() is None, "the driver ended by itself"
            time.sleep(0.2)

    def _parts_done(self) -> int:
        return len(self._times())

    def _times(self) -> dict[str, int]:
        done = self.out / "done"
        return {path.name: path.stat().st_mtime_ns for path in done.glob("*.json")} if done.exists() else {}

    def _images(self, name: str) -> int:
        return sum(json.loads((self.out / "done" / name).read_text()).values())

    def _add_cpu(self, session: int, ended: threading.Event) -> None:
        """CPU time of every process of a session, as far as it was seen: also of those that are killed."""
        spent: dict[int, float] = {}
        while not ended.wait(0.5):
            for process, fields, _ in of_session(session):
                spent[process] = (int(fields[11]) + int(fields[12])) / TICKS
        self.cpu_seconds += sum(spent.values())


def of_session(session: int) -> Iterator[tuple[int, list[str], bytes]]:
    """Process, fields of its ``stat`` after the name, command line."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            title = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            yield int(path.parent.name), fields, title


def actors_of(driver: int) -> list[int]:
    return [process for process, _, title in of_session(driver) if title.startswith(b"ray::") and b"PartJudge" in title]


def await_end(session: int) -> None:
    """Ray's processes end with their driver; say so when they do not."""
    deadline = time.monotonic() + 60
    while left := [title.split(b"\0")[0].decode(errors="replace") for _, _, title in of_session(session)]:
        if time.monotonic() > deadline:
            print(f"a minute after its driver's end there is still {', '.join(left)}")
            return
        time.sleep(0.5)


# --- who judges the same images


def worker(profile: str, paths: Sequence[Path]) -> tuple[float, float]:
    """Images a second through a Valkey server, and CPU milliseconds of the worker for each."""
    settings = load_settings(profile=profile)
    verifier = build_verifier(settings.models)
    limit_library_threads()
    with Queue(settings, verifier) as queue:
        queue.judge(paths[:20])
        started, cpu = time.perf_counter(), cpu_with_children()
        queue.judge(paths)
        rate = len(paths) / (time.perf_counter() - started)
        milliseconds = (cpu_with_children() - cpu) / len(paths) * 1000
    print(f"worker: {rate:.2f} images/s, {milliseconds:.0f} CPU ms an image")
    return rate, milliseconds


def cpu_with_children() -> float:
    """Of this process and those that it has now."""
    spent = time.process_time()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            spent += (int(fields[11]) + int(fields[12])) / TICKS
    return spent


def command_line(profile: str, paths: Sequence[Path]) -> dict[Path, dict[str, object]]:
    """What ``img_ml_verify.py --json`` says of each file."""
    command = (sys.executable, "img_ml_verify.py", "--json", "--profile", profile, str(paths[0].parent))
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    return {Path(said["source"]): said for said in lines}


# --- what must hold


def rows_of(out: Path) -> list[dict[str, object]]:
    return [
        {**row, "tier": path.parent.name.removeprefix("tier=")}
        for path in (out / "verdicts").rglob("*.parquet")
        for row in parquet.ParquetFile(path).read().to_pylist()
    ]


def once(found: Sequence[dict[str, object]], expected: dict[str, int], images: Sequence[bytes]) -> list[str]:
    rows = Counter(str(row["source"]) for row in found)
    wrong = [f"{len(set(expected) - set(rows))} images without a row"] if set(expected) - set(rows) else []
    if set(rows) - set(expected):
        wrong.append(f"{len(set(rows) - set(expected))} rows of no image")
    if twice := sum(count > 1 for count in rows.values()):
        wrong.append(f"{twice} images with more than one row")
    others = [
        row
        for row in found
        if row["sha256"] and row["sha256"] != hashlib.sha256(images[expected[str(row["source"])]]).hexdigest()
    ]
    if others:
        wrong.append(f"{len(others)} rows with the hash of another image")
    damaged = {number for number in range(len(images)) if number % 100 == 99}
    refused = {expected[str(row["source"])] for row in found if row["tier"] == "error"}
    codes = Counter(str(row["error"]) for row in found if row["tier"] == "error")
    print(f"{len(found)} rows, {len(rows)} sources; {len(damaged)} damaged: {dict(codes)}")
    if refused - damaged:
        wrong.append(f"{len(refused - damaged)} good images refused")
    return wrong


def compared(
    found: Sequence[dict[str, object]], expected: dict[str, int], said: dict[int, dict[str, object]]
) -> list[str]:
    """Verdicts of a sample beside the command line's: all but the name of the file and the times."""
    ours = {expected[str(row["source"])]: row for row in found}
    wrong, forms = [], Counter[str]()
    for number, theirs in said.items():
        row = ours[number]
        if isinstance(error := theirs.get("error"), dict):
            same = (row["tier"], row["error"]) == ("error", error["code"])
        else:
            same = bool(row["verdict"]) and bare(json.loads(str(row["verdict"]))) == bare(theirs)
        forms[("tar" if ".tar#" in str(row["source"]) else "Parquet" if "#" in str(row["source"]) else "files")] += 1
        if not same:
            wrong.append(f"{row['source']} differs from the command line")
    errors = sum("error" in theirs for theirs in said.values())
    print(f"{len(said)} compared with the command line ({dict(forms)}, {errors} of them errors): {len(wrong)} differ")
    return wrong


def bare(verdict: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in verdict.items() if name not in ("source", "timings_ms")}


def show(archive: Archive, before: tuple[float, float], after: tuple[float, float], count: int) -> None:
    images, seconds = (sum(each) for each in zip(*archive.spans, strict=True))
    theirs = [statistics.mean(each) for each in zip(before, after, strict=True)]
    ours = (images / seconds, archive.cpu_seconds / count * 1000)
    print("| | images/s | CPU ms an image |\n|---|---|---|")
    print(
        f"| worker, before | {before[0]:.2f} | {before[1]:.0f} |\n| worker, after | {after[0]:.2f} | {after[1]:.0f} |"
    )
    print(f"| archive, while both actors judge | {ours[0]:.2f} | |")
    print(
        f"| archive, with two starts of Ray and what was judged again | {count / archive.seconds:.2f} | {ours[1]:.0f} |"
    )
    print(f"| archive : worker | {ours[0] / theirs[0]:.2f} | {ours[1] / theirs[1]:.2f} |")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="photographs to cut the images from")
    parser.add_argument("--images", type=int, default=5000, help="default: %(default)s")
    parser.add_argument(
        "--compare",
        type=int,
        default=150,
        help="good images that the worker and, with all damaged ones, the command line judge too",
    )
    parser.add_argument("--workers", type=int, default=2, help="actors (default: %(default)s)")
    parser.add_argument("--profile", choices=tuple(PROFILES), default="light", help="default: %(default)s")
    parser.add_argument("--work", type=Path, help="empty folder that keeps images and verdicts")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

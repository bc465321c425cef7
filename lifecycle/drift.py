"""Watch for drift: python -m lifecycle.drift [VERDICTS…] [--window 200] [--baseline VERDICTS] [--report drift.html]

Reads verdicts from the results stream in a consumer group of its own, so that nobody else misses one, or from files and
folders of verdict JSON. Each window, and the last three together, is compared with the reference in the release that
judges (lifecycle/shift.py): single signals, all of them at once, and how the images are delivered. When something
moved, a report says what, IMGV_NOTIFY_URL gets a signed POST, and the gauges of --metrics (deploy/rules.yaml has the
alerts) say so.

The reference is made of validation images; where your traffic is of another mix from the start, give verdicts of a time
that you trust as --baseline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from redis.exceptions import RedisError, ResponseError

from inference.detector import promoted
from lifecycle.notify import notify
from lifecycle.reference import Reference
from lifecycle.registry import Registry
from lifecycle.shift import Shift, Window, compare, window_of
from utils.contracts import Json
from utils.errors import DatasetMissing, QueueUnreachable, ReleaseUnusable
from utils.exits import Exit, command, command_parser
from utils.pages import template
from utils.persistence import write_atomic
from utils.releases import REFERENCE
from utils.settings import Settings, load_settings
from worker.connect import Client, connect
from worker.embedded import find_url
from worker.stream import Keys, rows_of

GROUP = "drift"
WINDOW, TOGETHER = 200, 3
_BLOCK_MS = 2000
_READ = 100

Verdict = Mapping[str, Json]


class Gauges:
    """What Prometheus scrapes of the watch."""

    def __init__(self) -> None:
        self.registry = at = CollectorRegistry()
        self._alarm = Gauge("imgv_drift_alarm", "1 when the last window moved, by cause", ["cause"], registry=at)
        self._distance = Gauge("imgv_drift_distance", "how far the strongest moved", ["signal"], registry=at)
        self._tier = Gauge("imgv_drift_tier_share", "share of a tier in the last window", ["tier"], registry=at)
        self._windows = Gauge("imgv_drift_windows", "windows that were compared", registry=at)

    def show(self, shift: Shift, window: Window) -> None:
        self._windows.inc()
        for cause in ("delivery", "content"):
            self._alarm.labels(cause).set(cause in shift.cause)
        self._distance.clear()
        for each in shift.moves[:10]:
            self._distance.labels(each.name).set(each.distance)
        for tier in np.unique(window.tiers):
            self._tier.labels(str(tier)).set(float(np.mean(window.tiers == tier)))


class Watch:
    """Compares window after window.

    Args:
        size: verdicts of a window.
    """

    def __init__(self, reference: Reference, size: int = WINDOW) -> None:
        self.reference = reference
        self.size = size
        self._verdicts: list[Verdict] = []
        self._earlier: list[Window] = []

    def add(self, verdicts: Iterable[Verdict]) -> Iterator[tuple[Window, Shift]]:
        """Take verdicts; each window that they fill is compared, alone and together with those before it."""
        for verdict in verdicts:
            self._verdicts.append(verdict)
            if len(self._verdicts) < self.size:
                continue
            window = window_of(self._verdicts, self.reference.signals)
            self._verdicts.clear()
            together = window.joined(self._earlier)
            shift = compare(self.reference, window)
            if not shift.alarm and self._earlier:
                shift = compare(self.reference, together)  # less far, for longer
            self._earlier = [*self._earlier, window][-TOGETHER + 1 :]
            yield window, shift


# --- where verdicts come from


def read_verdicts(paths: Iterable[Path]) -> Iterator[Verdict]:
    """Verdicts in files of JSON, or of a JSON object a line; errors among them are passed over.

    Raises:
        DatasetMissing: no such file, or one that holds no JSON.
    """
    for path in paths:
        found = sorted(path.rglob("*.json*")) if path.is_dir() else [path]
        if not found or not found[0].exists():
            raise DatasetMissing(f"no verdicts at {path}: a file or folder of JSON, as img_ml_verify.py --json writes")
        for file in found:
            text = file.read_text(encoding="utf-8")
            try:
                said = [json.loads(text)]
            except ValueError:
                try:
                    said = [json.loads(line) for line in text.splitlines() if line.strip()]
                except ValueError as error:
                    raise DatasetMissing(f"{file} holds no verdicts: {error}") from error
            yield from (each for each in said if isinstance(each, dict) and "fusion_prob" in each)


async def stream_verdicts(client: Client, keys: Keys) -> AsyncIterator[list[Verdict]]:
    """New verdicts as workers give them, for ever; those that the watch was given and did not use come first again."""
    try:
        await client.xgroup_create(keys.results, GROUP, id="$", mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
    cursor = "0"  # what was read and not acknowledged, then what is new
    while True:
        answer: Any = await client.xreadgroup(
            GROUP, "watch", {keys.results: cursor}, count=_READ, block=_BLOCK_MS, noack=False
        )
        rows = rows_of(answer)
        if not rows:
            cursor = ">"
            continue
        yield [json.loads(fields[b"verdict"]) for _, _, fields in rows if fields.get(b"verdict")]
        await client.xack(keys.results, GROUP, *(entry for _, entry, _ in rows))
        cursor = ">" if cursor == ">" else rows[-1][1].decode()


def reference_of(settings: Settings) -> tuple[Reference, str]:
    """Of the release that judges, and its name.

    Raises:
        ReleaseUnusable: no release was promoted, or it has none.
    """
    release = promoted(settings.models) or Registry(settings).champion()
    if release is None:
        raise ReleaseUnusable(
            "no release was promoted yet: python -m lifecycle.retrain, then lifecycle.registry promote"
        )
    if not (release.folder / REFERENCE).is_file():
        raise ReleaseUnusable(f"release {release.name} has no reference; retrain, or give --baseline verdicts")
    return Reference.load(release.folder / REFERENCE), release.name


def baseline_of(verdicts: Sequence[Verdict]) -> Reference:
    """A reference from traffic that is trusted."""
    if len(verdicts) < WINDOW:
        raise DatasetMissing(f"{len(verdicts)} verdicts are no baseline; give {WINDOW} or more")
    signals = tuple(name for name in verdicts[0]["signals"])
    window = window_of(verdicts, signals)
    sources = np.array([str(verdict.get("source", "")) for verdict in verdicts])
    return Reference(signals, window.values.astype(np.float32), window.probabilities, window.deliveries, sources)


# --- what is told


def report(path: Path, reference: Reference, window: Window, shift: Shift, release: str) -> None:
    """An HTML page that shows what moved, each signal's two distributions side by side."""
    bars = []
    for move in shift.moved[:12]:
        if move.name in reference.signals:
            column = reference.signals.index(move.name)
            old, new = reference.values[:, column].astype(float), window.values[:, column]
        elif move.name == "fusion_prob":
            old, new = reference.probabilities, window.probabilities
        else:
            continue
        bars.append((move, _bars(old[np.isfinite(old)], new[np.isfinite(new)])))
    text = template("lifecycle", "drift.html").render(shift=shift, bars=bars, release=release)
    write_atomic(path, text.encode())


def _bars(old: Any, new: Any) -> list[tuple[int, int]]:
    """Percent of the reference and of the window in each of twelve equal bins."""
    if not len(old) or not len(new):
        return []
    edges = np.linspace(min(old.min(), new.min()), max(old.max(), new.max()), 13)
    counts = [np.histogram(values, edges)[0] / len(values) * 100 for values in (old, new)]
    return [(round(float(one)), round(float(two))) for one, two in zip(*counts, strict=True)]


def tell(arguments: argparse.Namespace, settings: Settings, watch: Watch, release: str, gauges: Gauges) -> Any:
    """A function that tells of each window."""

    def each(window: Window, shift: Shift) -> None:
        gauges.show(shift, window)
        names = ", ".join(f"{move.name} ({move.distance:.2f})" for move in shift.moved[:5])
        print(f"{shift.images} images: {shift.cause}{f' moved: {names}' if shift.alarm else ''}", flush=True)
        if shift.alarm:
            report(arguments.report, watch.reference, window, shift, release)
            moved = [asdict(move) for move in shift.moved[:10]]
            notify(settings, {"event": "drift", "release": release, "cause": shift.cause, "moved": moved})

    return each


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    settings = load_settings()
    if arguments.baseline:
        reference, release = baseline_of(list(read_verdicts([arguments.baseline]))), str(arguments.baseline)
    else:
        reference, release = reference_of(settings)
    watch, gauges = Watch(reference, arguments.window), Gauges()
    told = tell(arguments, settings, watch, release, gauges)
    if arguments.metrics:
        host, _, port = arguments.metrics.rpartition(":")
        start_http_server(int(port), host or "127.0.0.1", gauges.registry)
    if arguments.verdicts:
        alarms = 0
        for window, shift in watch.add(read_verdicts(arguments.verdicts)):
            told(window, shift)
            alarms += shift.alarm
        return Exit.FAILED if alarms else Exit.DONE
    url = find_url(settings.queue.redis_url.get_secret_value(), settings.queue.embedded_dir)
    return asyncio.run(_follow(watch, told, connect(url), Keys(settings.queue.prefix)))


async def _follow(watch: Watch, told: Any, client: Client, keys: Keys) -> int:
    try:
        async with client:
            async for verdicts in stream_verdicts(client, keys):
                for window, shift in watch.add(verdicts):
                    await asyncio.to_thread(told, window, shift)
    except (RedisError, OSError) as error:
        raise QueueUnreachable(f"{error}; check REDIS_URL") from error
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.drift", __doc__, "            3 also when files showed drift\n")
    parser.add_argument("verdicts", nargs="*", type=Path, help="files or folders; default: the results stream")
    parser.add_argument("--window", type=int, default=WINDOW, help="verdicts of a window (default: %(default)s)")
    parser.add_argument("--baseline", type=Path, help="verdicts to compare with, instead of the release's reference")
    parser.add_argument("--report", type=Path, default=Path("drift.html"), help="default: %(default)s")
    parser.add_argument("--metrics", default="", metavar="HOST:PORT", help="serve gauges for Prometheus")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

"""Watch for drift: python -m lifecycle.drift [VERDICTS…] [--window 200] [--baseline VERDICTS] [--report drift.html]

Reads verdicts from the results stream in a consumer group of its own, so that nobody else misses one, or from files and
folders of verdict JSON. Each window, and the last three together, is of one release, and is compared with the reference
in that release (lifecycle/shift.py): single signals, all of them at once, and how images are delivered. When something
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
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from redis.exceptions import RedisError, ResponseError

from inference.detector import promoted
from lifecycle.notify import notify
from lifecycle.reference import Reference
from lifecycle.registry import Registry
from lifecycle.shift import FEWEST, Shift, Window, compare, window_of
from utils.contracts import Json
from utils.emf import Emf
from utils.errors import DatasetMissing, QueueUnreachable, ReleaseUnusable
from utils.exits import Exit, command, command_parser
from utils.pages import template
from utils.persistence import write_atomic
from utils.releases import REFERENCE, Release
from utils.settings import Settings, load_settings
from utils.verdict_json import numbers_of
from worker.connect import Client, connect
from worker.embedded import find_url
from worker.stream import Keys, rows_of

GROUP = "drift"
WINDOW, TOGETHER = 200, 3
RELEASES = 5  # whose verdicts are watched at a time: the present one, and those that workers leave behind
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


@dataclass(frozen=True, slots=True)
class Seen:
    """A window that was compared."""

    release: str  # that gave its verdicts
    reference: Reference
    window: Window
    shift: Shift


@dataclass(slots=True)
class _Waiting:
    """The traffic of one release."""

    reference: Reference | None  # None: nothing to compare it with
    verdicts: list[Verdict] = field(default_factory=list)
    earlier: list[Window] = field(default_factory=list)


class Watch:
    """Compares window after window; one window is of one release, because another one gives other numbers.

    Args:
        reference_of: a release's name, as verdicts have it (empty: none was promoted) -> what to compare it with; None
            where there is nothing.
        size: verdicts of a window.
    """

    def __init__(self, reference_of: Callable[[str], Reference | None], size: int = WINDOW) -> None:
        self.size = size
        self._reference_of = reference_of
        self._releases: dict[str, _Waiting] = {}  # the one that judged last comes last

    def add(self, verdicts: Iterable[Verdict]) -> Iterator[Seen]:
        """Take verdicts; each window that they fill is compared, alone and together with those before it."""
        for verdict in verdicts:
            waiting = self._of(release := release_of(verdict))
            if waiting.reference is None:
                continue
            waiting.verdicts.append(verdict)
            if len(waiting.verdicts) < self.size:
                continue
            window = window_of(waiting.verdicts, waiting.reference.signals)
            waiting.verdicts.clear()
            together = window.joined(waiting.earlier)
            shift = compare(waiting.reference, window)
            if not shift.alarm and waiting.earlier:
                shift = compare(waiting.reference, together)  # less far, for longer
            waiting.earlier = [*waiting.earlier, window][-TOGETHER + 1 :]
            yield Seen(release, waiting.reference, window, shift)

    def _of(self, release: str) -> _Waiting:
        if release not in self._releases:
            self._releases[release] = _Waiting(self._reference_of(release))
            if len(self._releases) > RELEASES:
                del self._releases[next(iter(self._releases))]
        return self._releases[release]


def release_of(verdict: Verdict) -> str:
    return str(verdict.get("models", {}).get("release", ""))


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


def reference_of(settings: Settings, name: str = "") -> tuple[Reference, str]:
    """Of a release, and its name; without a name, of the release that judges.

    Raises:
        ReleaseUnusable: no release was promoted, there is none of that name, or it has no reference.
    """
    registry = Registry(settings)
    if name:
        release: Release | None = registry.published.open(name)
    else:
        release = promoted(settings.models) or registry.champion()
    if release is None:
        raise ReleaseUnusable(
            "no release was promoted yet: python -m lifecycle.retrain, then lifecycle.registry promote"
        )
    if not (release.folder / REFERENCE).is_file():
        raise ReleaseUnusable(f"release {release.name} has no reference; retrain, or give --baseline verdicts")
    return Reference.load(release.folder / REFERENCE), release.name


def references(settings: Settings) -> Callable[[str], Reference | None]:
    """Each release's own. Verdicts without a release are compared with the one that judges.

    Raises:
        ReleaseUnusable: there is none that judges, so that nothing could be watched.
    """
    reference_of(settings)

    def of(name: str) -> Reference | None:
        try:
            found, release = reference_of(settings, name)
        except ReleaseUnusable as error:
            print(f"verdicts of release {name} are not watched: {error}", file=sys.stderr, flush=True)
            return None
        if (images := len(found.probabilities)) < FEWEST:
            print(
                f"the reference of {release} has {images} images; single signals need {FEWEST}: alarms will seldom say "
                "what moved, until a retraining has more images of split val",
                file=sys.stderr,
                flush=True,
            )
        return found

    return of


def baseline_of(verdicts: Sequence[Verdict]) -> Callable[[str], Reference | None]:
    """References from traffic that is trusted: of each release that gave enough of its verdicts.

    Raises:
        DatasetMissing: no release did.
    """
    by_release: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_release.setdefault(release_of(verdict), []).append(verdict)
    found = {name: _reference(own) for name, own in by_release.items() if len(own) >= WINDOW}
    if not found:
        most = max(map(len, by_release.values()), default=0)
        raise DatasetMissing(f"{most} verdicts of one release are no baseline; give {WINDOW} or more")

    def of(name: str) -> Reference | None:
        if name not in found:
            print(f"verdicts of release {name or '(none)'} are not watched: the baseline has too few", file=sys.stderr)
        return found.get(name)

    return of


def _reference(verdicts: Sequence[Verdict]) -> Reference:
    signals = tuple(numbers_of(verdicts[0]))
    window = window_of(verdicts, signals)
    sources = np.array([str(verdict.get("source", "")) for verdict in verdicts])
    values, shown = window.values.astype(np.float32), window.embeddings
    kept = (None, None) if shown is None else (shown.astype(np.float32), sources)
    return Reference(signals, values, window.probabilities, window.deliveries, sources, *kept)


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


def tell(arguments: argparse.Namespace, settings: Settings, gauges: Gauges) -> Callable[[Seen], None]:
    """A function that tells of each window."""

    def each(seen: Seen) -> None:
        shift = seen.shift
        gauges.show(shift, seen.window)
        if settings.log.metrics_seconds:
            Emf(gauges.registry).print()
        names = ", ".join(f"{move.name} ({move.distance:.2f})" for move in shift.moved[:5])
        by = f" by {seen.release}" if seen.release else ""
        print(f"{shift.images} images{by}: {shift.cause}{f' moved: {names}' if shift.alarm else ''}", flush=True)
        if shift.alarm:
            report(arguments.report, seen.reference, seen.window, shift, seen.release or "what judges")
            moved = [asdict(move) for move in shift.moved[:10]]
            notify(settings, {"event": "drift", "release": seen.release, "cause": shift.cause, "moved": moved})

    return each


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    settings = load_settings()
    trusted = arguments.baseline
    found = baseline_of(list(read_verdicts([trusted]))) if trusted else references(settings)
    watch, gauges = Watch(found, arguments.window), Gauges()
    told = tell(arguments, settings, gauges)
    if arguments.metrics:
        host, _, port = arguments.metrics.rpartition(":")
        start_http_server(int(port), host or "127.0.0.1", gauges.registry)
    if arguments.verdicts:
        alarms = 0
        for seen in watch.add(read_verdicts(arguments.verdicts)):
            told(seen)
            alarms += seen.shift.alarm
        return Exit.FAILED if alarms else Exit.DONE
    url = find_url(settings.queue.redis_url.get_secret_value(), settings.queue.embedded_dir)
    return asyncio.run(_follow(watch, told, connect(url), Keys(settings.queue.prefix)))


async def _follow(watch: Watch, told: Callable[[Seen], None], client: Client, keys: Keys) -> int:
    try:
        async with client:
            async for verdicts in stream_verdicts(client, keys):
                for seen in watch.add(verdicts):
                    await asyncio.to_thread(told, seen)
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

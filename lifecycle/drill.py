"""An incident on purpose: python -m lifecycle.drill (--dataset CSV --family NAME | --generated 192) [--out drill/]

A generator family that no model was trained on appears in the traffic of a running worker. The drill goes the whole
way, with a server, a registry and a store of its own below --out: it trains a champion without the family and starts a
worker with it; the traffic is quiet; the family comes, the watch for drift raises an alarm and its report names what
moved; samples of the family are added; a retraining runs; the gate decides; the running worker takes the promoted
release over. postmortem.md has the figures before, during and after. Nothing outside --out is touched.

Ends with 3 when drift was not seen, the gate refused, or the worker did not take the release over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ingress.decode import read_file
from ingress.sources import Ingress
from lifecycle.drift import Seen, Watch, references, report, stream_verdicts
from lifecycle.pictures import NEW, make_pictures
from lifecycle.retrain import DECISION, Params, Run, open_run, run_steps
from training.cleaning import clean, look_at_all
from training.datasets import DATASET, LABELS, read_rows, write_rows
from training.deliveries import TAUGHT
from utils.contracts import Json
from utils.deliveries import deliver
from utils.errors import DatasetMissing, FetchTimeout, QueueUnreachable
from utils.exits import Exit, command, command_parser
from utils.persistence import write_atomic
from utils.settings import Settings, load_settings
from worker.connect import Client, connect
from worker.embedded import EmbeddedServer
from worker.stream import Keys
from worker.submit import enqueue

ROOT = Path(__file__).parents[1]
TRAFFIC, VALIDATION = 0, 1  # of every four sources, one each; the others train
# Inputs that a few dozen pictures are enough for. Of the statistics not those that JPEG itself moves (chroma_detail,
# histogram_comb, unique_colours): pictures that are all made as PNG cannot teach that it does.
FEW: tuple[str, ...] = (
    "spectrum*",
    *("statistics.saturation*", "statistics.colourfulness", "statistics.channel_correlation", "statistics.*exposed"),
    *("statistics.equal_neighbours", "statistics.cooccurrence_entropy", "statistics.cross_band_information"),
    *("statistics.sharpness", "statistics.flat_area"),
)
_PATIENCE = 600.0  # seconds for the worker to answer, to start, to take a release over
_LOOK = 0.2
_BEHIND = 3.0  # that the watch may be, behind the last verdict

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Material:
    """The data set, parted by sources."""

    known: list[Row]  # with splits: what the first champion is trained and compared on
    traffic: list[Row]  # real images and AI of known families that nothing is trained on
    samples: list[Row]  # of the new family: found in the incident, then trained on
    held_out: list[Row]  # of the new family: in the traffic, never trained on
    family: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One image of the traffic and its verdict."""

    row: Row
    verdict: Mapping[str, Json]

    @property
    def right(self) -> bool:
        return (self.verdict["label"] == "AI") == (self.row["label"] == "ai")


@dataclass(slots=True)
class Incident:
    """What happened."""

    family: str
    began: float = field(default_factory=time.time)
    events: list[tuple[float, str]] = field(default_factory=list)
    phases: dict[str, list[Answer]] = field(default_factory=dict)
    windows: dict[str, list[Seen]] = field(default_factory=dict)
    releases: list[str] = field(default_factory=list)  # before, after
    decision: Json = None
    taken_over: bool = False

    def tell(self, text: str) -> None:
        self.events.append((time.time(), text))
        print(f"{time.time() - self.began:6.0f} s  {text}", flush=True)

    def alarms(self, phase: str) -> list[Seen]:
        return [each for each in self.windows.get(phase, ()) if each.shift.alarm]

    @property
    def went_well(self) -> bool:
        return bool(self.alarms("during")) and bool(self.decision["promote"]) and self.taken_over


# --- the material


def part(dataset: Path, family: str, per_source: int, jobs: int) -> Material:
    """Part a data set by sources, without images that repeat another.

    Args:
        family: a generator, or a source, of AI images.
        per_source: images of each source at most.

    Raises:
        DatasetMissing: there are too few images of the family, or none beside it.
    """
    taken: dict[str, int] = {}
    rows: list[Row] = []
    for row in read_rows(dataset):
        generator = row.get("generator") or row.get("generator_or_camera", "")
        own = family in (generator, row["source"])
        if row["label"] in LABELS and (own or taken.get(row["source"], 0) < per_source):
            taken[row["source"]] = taken.get(row["source"], 0) + 1
            path = str(dataset.parent.absolute() / row["filepath"])
            known = {key: row.get(key, "") for key in ("kind", "licence")}
            new = {"generator": generator if row["label"] == "ai" else "", "family": "new" if own else ""}
            rows.append({**known, "filepath": path, "label": row["label"], "source": row["source"], "split": "", **new})
    kept, _ = clean(rows, list(look_at_all([row["filepath"] for row in rows], jobs)))
    rows = [rows[index] for index in kept]
    of_family = [row for row in rows if row["family"]]
    others = _parted([row for row in rows if not row["family"]])
    if len(of_family) < 8 or {row["label"] for row in others if row["split"] == "train"} != set(LABELS):
        raise DatasetMissing(
            f"{dataset}: {len(of_family)} images of {family!r}; it takes 8, and known ones beside them"
        )
    return Material(
        [row for row in others if row["split"] != "traffic"],
        [row for row in others if row["split"] == "traffic"],
        *_halves(of_family),
        family,
    )


def _parted(rows: Sequence[Row]) -> list[Row]:
    """Every fourth source of a label is traffic, every fourth is val."""
    sides: dict[str, str] = {}
    for label in LABELS:
        for number, source in enumerate(sorted({row["source"] for row in rows if row["label"] == label})):
            sides[source] = {TRAFFIC: "traffic", VALIDATION: "val"}.get(number % 4, "train")
    return [{**row, "split": sides[row["source"]]} for row in rows]


def _halves(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """By sources where there are several; else by images."""
    key = "source" if len({row["source"] for row in rows}) > 1 else "filepath"
    first = set(sorted({row[key] for row in rows})[::2])
    return [row for row in rows if row[key] in first], [row for row in rows if row[key] not in first]


# --- the running system


@contextmanager
def running_worker(settings: Settings, url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process that follows the store."""
    given = {
        "REDIS_URL": url,
        "IMGV_PROFILE": settings.models.profile,
        "IMGV_RELEASE": settings.models.release,
        "IMGV_RELEASE_REFRESH_SECONDS": "1",
        "IMGV_PIPELINE_STUCK_SECONDS": f"{_PATIENCE:.0f}",
        "IMGV_LOG_LEVEL": "INFO",
    }
    with log.open("wb") as file:
        code = [sys.executable, "-m", "worker"]
        process = subprocess.Popen(code, env=os.environ | given, stdout=file, stderr=file, cwd=ROOT)  # noqa: S603
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class System:
    """The server, the worker and the watch, as the drill talks to them."""

    def __init__(self, client: Client, settings: Settings, incident: Incident, window: int) -> None:
        self.client = client
        self.settings = settings
        self.keys = Keys(settings.queue.prefix)
        self.incident = incident
        self.watch = Watch(references(settings), window)
        self._jobs = 0

    async def send(self, phase: str, rows: Sequence[Row], deliveries: Sequence[str]) -> None:
        """Send each image as each delivery brings it, in an order by chance, and wait for every verdict."""
        chosen = [(row, delivery) for row in rows for delivery in deliveries]
        jobs: dict[str, Row] = {}
        with Ingress(self.settings.decode) as ingress:
            for index in np.random.default_rng(0).permutation(len(chosen)):
                row, delivery = chosen[index]
                raw = read_file(Path(row["filepath"]), self.settings.decode.max_bytes)
                if delivery != "clean":
                    raw = deliver(ingress.decode(raw, row["filepath"]).upright, delivery)
                self._jobs += 1
                job = f"drill-{self._jobs}"
                await enqueue(self.client, self.settings.queue, job, {"image": raw, "filename": row["filepath"]})
                jobs[job] = row
        answers = [Answer(row, verdict) for job, row in jobs.items() if (verdict := await self._verdict(job))]
        self.incident.phases.setdefault(phase, []).extend(answers)

    async def _verdict(self, job: str) -> Mapping[str, Json] | None:
        """None for an image that cannot be judged."""
        deadline = time.monotonic() + _PATIENCE
        while (raw := await self.client.get(self.keys.verdict(job))) is None:
            if time.monotonic() > deadline:
                raise FetchTimeout(f"the worker gave no answer to {job}; its log is in worker.log")
            await asyncio.sleep(_LOOK)
        said: Mapping[str, Json] = json.loads(raw)
        return said if "fusion_prob" in said else None

    async def follow(self, phase: Sequence[str]) -> None:
        """Compare windows as verdicts come; ``phase[-1]`` is what happens now."""
        async for verdicts in stream_verdicts(self.client, self.keys):
            for seen in self.watch.add(verdicts):
                self.incident.windows.setdefault(phase[-1], []).append(seen)
                moved = ", ".join(move.name for move in seen.shift.moved[:3])
                alarm = f"ALARM, {seen.shift.cause}: {moved}" if seen.shift.alarm else "quiet"
                self.incident.tell(f"drift over {seen.shift.images} verdicts: {alarm}")

    async def taken_over(self, release: str, row: Row) -> bool:
        """Whether verdicts come from the release, asked until they do or patience ends."""
        deadline = time.monotonic() + _PATIENCE
        raw = read_file(Path(row["filepath"]), self.settings.decode.max_bytes)
        while time.monotonic() < deadline:
            self._jobs += 1
            await enqueue(self.client, self.settings.queue, f"drill-{self._jobs}", {"image": raw, "filename": "probe"})
            found = await self._verdict(f"drill-{self._jobs}")
            if found and found["models"].get("release") == release:
                return True
            await asyncio.sleep(1)
        return False


# --- the drill


def drill(
    incident: Incident, material: Material, folder: Path, settings: Settings, params: Params, window: int
) -> None:
    """Go the whole way; every step is told, and noted in the incident."""
    dataset = folder / DATASET
    write_rows(dataset, material.known)
    champion = _train(incident, settings, replace(params, dataset=str(dataset)), "without the family")
    if champion.registry.champion() is None or champion.registry.published.pointer().release != champion.release.name:
        champion.registry.promote(champion.release.name)
        incident.tell("the gate refused it against the shipped models; for the drill it is promoted by hand")
    incident.releases.append(champion.release.name)
    short = Path(tempfile.mkdtemp(prefix="imgv"))  # a socket's path has about 100 bytes
    try:
        with EmbeddedServer(short) as server, running_worker(settings, server.url, folder / "worker.log"):
            asyncio.run(_live(incident, material, folder, settings, params, window, server.url))
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _train(incident: Incident, settings: Settings, params: Params, what: str) -> Run:
    incident.tell(f"retraining {what} begins")
    run = open_run(settings, params)
    run_steps(run)
    incident.tell(f"retraining {what} is done: {run.release.name}")
    return run


async def _live(
    incident: Incident,
    material: Material,
    folder: Path,
    settings: Settings,
    params: Params,
    window: int,
    url: str,
) -> None:
    deliveries = tuple(params.deliveries["val"])
    phase = ["before"]
    async with connect(url) as client, AsyncExitStack() as stack:
        system = System(client, settings, incident, window)
        watching = asyncio.create_task(system.follow(phase))
        stack.callback(watching.cancel)
        await asyncio.sleep(_LOOK)  # the watch's group must be there before the first verdict
        await system.send("before", material.traffic, deliveries)
        await asyncio.sleep(_BEHIND)
        incident.tell(f"the worker answers; {_share(incident.phases['before'], 'real')} real images called real")
        phase.append("during")
        await system.send("during", [*material.traffic, *material.samples, *material.held_out], deliveries)
        await asyncio.sleep(_BEHIND)
        incident.tell(f"{material.family} is in the traffic; {_share(incident.phases['during'], 'new')} of it is found")
        if alarms := incident.alarms("during"):
            last = alarms[-1]
            report(folder / "drift.html", last.reference, last.window, last.shift, last.release)
        samples = [{**row, "split": "train"} for row in material.samples]
        dataset = folder / "dataset-with-samples.csv"
        write_rows(dataset, [*material.known, *samples])
        incident.tell(f"{len(samples)} samples of it are labelled and added")
        more = replace(params, dataset=str(dataset))
        run = await asyncio.to_thread(_train, incident, settings, more, "with the samples")
        incident.decision = json.loads(run.path(DECISION).read_text(encoding="utf-8"))
        incident.releases.append(run.release.name)
        if incident.decision["promote"]:
            incident.taken_over = await system.taken_over(run.release.name, material.traffic[0])
            incident.tell(f"the worker {'judges' if incident.taken_over else 'does NOT judge'} with {run.release.name}")
            phase.append("after")
            await system.send("after", [*material.traffic, *material.held_out], deliveries)
            await asyncio.sleep(_BEHIND)
        else:
            incident.tell(f"the gate refused it: {'; '.join(incident.decision['reasons'])}")


# --- what is told


def _chosen(answers: Sequence[Answer], what: str) -> list[Answer]:
    """Answers about real images, AI of known families, or the new family; each image counts once in ``_share``."""
    if what == "new":
        return [each for each in answers if each.row["family"]]
    return [each for each in answers if not each.row["family"] and each.row["label"] == what]


def _rates(answers: Sequence[Answer]) -> list[float]:
    """Of each image the share of its deliveries that was judged rightly."""
    images: dict[str, list[bool]] = {}
    for each in answers:
        images.setdefault(each.row["filepath"], []).append(each.right)
    return [float(np.mean(each)) for each in images.values()]


def _share(answers: Sequence[Answer], what: str) -> str:
    """In per cent, with a 95 % interval by resampling images."""
    rates = np.array(_rates(_chosen(answers, what)))
    if not len(rates):
        return "–"
    drawn = np.random.default_rng(0).choice(rates, (2000, len(rates))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{rates.mean():.0%} [{low:.0%}, {high:.0%}] of {len(rates)}"


def postmortem(incident: Incident, material: Material, machine: str) -> str:
    """The story and its figures, in Markdown."""
    held_out = {row["filepath"] for row in material.held_out}
    during = incident.phases.get("during", [])
    unseen = [each for each in during if not each.row["family"] or each.row["filepath"] in held_out]
    shown = {"before": incident.phases.get("before", []), "during": unseen, "after": incident.phases.get("after", [])}
    lines = [
        f"# Post-mortem: {incident.family} in the traffic",
        "",
        f"A drill on {datetime.fromtimestamp(incident.began, UTC):%Y-%m-%d}, {machine}. {_outcome(incident)}",
        "",
        "## Figures",
        "",
        "Shares of images judged rightly, with 95 % intervals over images. Images of the new family in this table were "
        "never trained on.",
        "",
        "| | before | during | after |",
        "|---|---|---|---|",
        f"| release | {_release(incident, 0)} | {_release(incident, 0)} | {_release(incident, 1)} |",
    ]
    names = {"new": f"AI found, {incident.family}", "ai": "AI found, known families", "real": "real called real"}
    for what, name in names.items():
        lines.append(f"| {name} | " + " | ".join(_share(answers, what) for answers in shown.values()) + " |")
    tiers = (_inconclusive(answers) for answers in shown.values())
    lines.append(f"| inconclusive | {' | '.join(tiers)} |")
    lines += ["", "## What moved", "", *_moved(incident), "", "## The gate", "", *_gate(incident), "", "## Time", ""]
    lines += [
        "| seconds | |",
        "|---|---|",
        *(f"| {at - incident.began:.0f} | {text} |" for at, text in incident.events),
    ]
    return "\n".join(lines) + "\n"


def _release(incident: Incident, number: int) -> str:
    return incident.releases[number] if number < len(incident.releases) else "–"


def _outcome(incident: Incident) -> str:
    seen = incident.alarms("during")
    said = f"Drift was seen in window {1 + incident.windows['during'].index(seen[0])}" if seen else "Drift was NOT seen"
    if not incident.decision:
        return f"{said}; it broke off before the gate was asked."
    if not incident.decision["promote"]:
        return f"{said}; the gate refused the retrained release, and the old one goes on."
    took = "took it over without a restart" if incident.taken_over else "did NOT take it over"
    return f"{said}; the retrained release passed the gate, and the running worker {took}."


def _inconclusive(answers: Sequence[Answer]) -> str:
    return f"{np.mean([each.verdict['tier'] == 'inconclusive' for each in answers]):.0%}" if answers else "–"


def _moved(incident: Incident) -> list[str]:
    lines = []
    for phase, windows in incident.windows.items():
        alarms = incident.alarms(phase)
        lines.append(f"{phase.capitalize()}: {len(alarms)} alarms in {len(windows)} windows.")
    for each in incident.alarms("during")[-1:]:
        lines += ["", f"Cause: {each.shift.cause}.", "", "| signal | test | distance | p |", "|---|---|---|---|"]
        lines += [f"| {m.name} | {m.test} | {m.distance:.2f} | {m.p:.1e} |" for m in each.shift.moved[:10]]
    return lines


def _gate(incident: Incident) -> list[str]:
    if not incident.decision:
        return ["It was not asked."]
    champion, challenger = incident.decision["champion"], incident.decision["challenger"]
    lines = [*(f"- {reason}" for reason in incident.decision["reasons"])] or ["No reason against it."]
    lines += ["", f"| figure | {champion} | {challenger} |", "|---|---|---|"]
    lines += [f"| {name} | {old:.3f} | {new:.3f} |" for name, (old, new) in incident.decision["compared"].items()]
    return lines


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    out: Path = arguments.out.absolute()
    if out.exists() and any(out.iterdir()):
        raise DatasetMissing(f"{out} is not empty; a drill begins in an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    given: dict[str, object] = {"lifecycle_dir": out / "lifecycle", "release": str(out / "releases"), "notify_url": ""}
    if arguments.generated:
        dataset, family, model, inputs = make_pictures(out / "pictures", arguments.generated), NEW, "logistic", FEW
        given |= {"min_images_per_class": 5, "min_sources_per_class": 2}
        gate = {"real": 0.8, "real_kind": 0.8, "calibration": 0.3}  # a dozen images cannot hold the bounds of hundreds
    else:
        dataset, family, gate, model, inputs = arguments.dataset, arguments.family, {}, Params().model, Params().inputs
    settings = load_settings(profile=arguments.profile, **given)
    material = part(dataset, family, arguments.per_source, arguments.jobs)
    params = Params(
        profile=arguments.profile,
        deliveries={"train": TAUGHT, "val": ("clean", "web")},  # see TAUGHT: as published they would teach containers
        model=model,
        inputs=inputs,
        jobs=arguments.jobs,
        rounds=1,
        gate=gate,
    )
    incident = Incident(material.family)
    try:
        drill(incident, material, out, settings, params, arguments.window)
    except OSError as error:
        raise QueueUnreachable(f"the drill's own server or worker broke off: {error}") from error
    finally:  # one that broke off is told as far as it came
        text = postmortem(incident, material, f"{os.cpu_count()} cores")
        write_atomic(out / "postmortem.md", text.encode())
        print(f"\n{text}\nwrote {out / 'postmortem.md'}")
    return Exit.DONE if incident.went_well else Exit.FAILED


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.drill", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", type=Path, help="CSV of labelled images")
    what.add_argument("--generated", type=int, metavar="N", help="about N pictures that are made here instead")
    parser.add_argument("--family", help="the generator, or the source, that nothing is trained on at first")
    parser.add_argument("--out", type=Path, default=Path("drill"), help="an empty folder (default: %(default)s)")
    parser.add_argument("--profile", default=Params().profile, help="which detectors run (default: %(default)s)")
    parser.add_argument("--per-source", type=int, default=3, help="images of each source (default: %(default)s)")
    parser.add_argument("--window", type=int, default=60, help="verdicts of a window of drift (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes that measure (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.dataset and not arguments.family:
        parser.error("--dataset needs --family")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

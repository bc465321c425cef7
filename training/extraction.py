"""Runs the production conductor over labelled images: one table of features for fusion. Knows no fusion model.

What is measured goes into a journal beside the table, so a stopped run goes on; the table itself is written at the end,
in the manifest's order: the same images give the same bytes, on any number of processes and with either engine.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.progress import track
from threadpoolctl import threadpool_limits

from fusion.estimators import FloatArray
from inference.ensemble import Ensemble, build_ensemble
from inference.registry import DETECTORS, feature_meanings, select_detectors
from ingress.sources import Ingress
from training.datasets import LABELS, read_rows
from training.deliveries import LOSSY, Deliveries, deliver_at_random
from training.feature_table import PARQUET, numbers, read_columns
from training.shards import ImageTable, Span, blocks, read, span_of
from utils.actors import LOCAL, check_ray, through_actors
from utils.contracts import Json, Sample
from utils.deliveries import DELIVERIES, FIXED, deliver
from utils.errors import BadSettings, TableError, VerifyError
from utils.processes import process_pool
from utils.settings import DecodeSettings, ModelSettings
from utils.threads import limit_library_threads

KEYS = ("filepath", "delivery", "label", "source", "split", "generator", "models")  # models: versions that measured
_LOCAL_BLOCK = 4  # images that a process answers for at a time
RAY_BLOCK = 16  # images at most that a Ray actor answers for at a time: what a stopped run measures again

Key: TypeAlias = tuple[str, str]  # filepath, delivery


@dataclass(frozen=True, slots=True)
class Task:
    """One image under one delivery. ``random1``, ``random2``, ... are drawn from the image's own bytes and the seed."""

    folder: str
    filepath: str
    delivery: str
    seed: int
    span: Span | None = None  # in a shard; None: it is a file


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """What is known about an image and what was measured of it."""

    known: Mapping[str, str]  # by KEYS
    values: FloatArray  # d, NaN = missing


def extract(
    manifest: ImageTable,
    out: Path,
    models: ModelSettings,
    decode: DecodeSettings,
    *,
    split: str = "all",
    deliveries: Deliveries = DELIVERIES,
    skip: Sequence[str] = (),
    engine: str = "local",
    jobs: int = 2,
    seed: int = 0,
    keep_others: bool = True,
) -> tuple[list[Row], list[str]]:
    """Measure the images of a manifest and write their rows to ``out``; rows of the same weights there are kept.

    Args:
        out: .parquet, else CSV.
        split: rows of the manifest to measure, or "all".
        deliveries: of ``utils.deliveries.DELIVERIES``, or random1, random2, ...; a mapping has those of each split
            that is measured.
        skip: forensic modules to leave out.
        engine: "local", or "ray" for the cluster of RAY_ADDRESS.
        jobs: processes, or Ray actors, that measure.
        seed: of the random deliveries.
        keep_others: rows of an earlier table that are not asked for stay in it.

    Returns:
        Every row of the table, and a line for each image that could not be read.

    Raises:
        TableError: the manifest, or an earlier table or journal, cannot be used.
        SetupError: as ``build_ensemble``, or a package that is not installed.
    """
    names = tuple(feature_meanings())
    journal = out.with_name(f"{out.name}.journal")
    select_detectors(models.profile, models.detectors)  # a wrong name is better told here than by a process
    _check_installed(out, engine)
    listed = read_rows(manifest)
    wanted, spans = _wanted(listed, split, deliveries), {row["filepath"]: span_of(manifest, row) for row in listed}
    kept = _kept(out, names)
    known = _current(kept | _journalled(journal, names), models, decode)
    folder = str(Path(manifest).parent.absolute())
    tasks = [Task(folder, *key, seed, spans[key[0]]) for key in wanted if key not in known]
    measured = _on_ray if engine == "ray" else _on_this_machine
    lines = measured(tasks, jobs, models, decode, skip)
    failures = []
    with journal.open("a", encoding="utf-8") as file:
        file.write("\n")  # ends a line that a killed run left half-written
        for line in track(lines, "measuring", total=len(tasks), console=Console(stderr=True)):
            found = json.loads(line)
            if "error" in found:
                failures.append(f"{found['filepath']} ({found['delivery']}): {found['error']}")
                continue
            file.write(f"{line}\n")
            file.flush()
            known[found["filepath"], found["delivery"]] = _row(found, names)
    rows = _merged(wanted, kept if keep_others else {}, known)
    _write(out, names, rows)
    journal.unlink()
    return rows, failures


def _check_installed(out: Path, engine: str) -> None:
    """Say so before hours of work, not after."""
    if out.suffix == PARQUET and find_spec("pyarrow") is None:
        raise BadSettings(f"{out}: writing Parquet needs pyarrow: pip install pyarrow")
    if engine == "ray":
        check_ray("--engine ray")


def read_keys(table: Path) -> dict[str, tuple[str, ...]]:
    """Each image of a table, and under which deliveries it was measured.

    Raises:
        TableError: the table cannot be used.
    """
    found: dict[str, tuple[str, ...]] = {}
    for filepath, delivery in _kept(table, tuple(feature_meanings())):
        found[filepath] = (*found.get(filepath, ()), delivery)
    return found


def fill(
    table: Path,
    values: Mapping[Key, Mapping[str, float]],
    others: Mapping[Key, tuple[Mapping[str, float], Mapping[str, str]]],
    version: str,
) -> None:
    """Write a model's features into the rows of a table, as if this version of it had measured them with the others.

    Args:
        values: by feature, of every row of the table.
        others: values and what is known of images that the table lacks: they get rows with these features alone.

    Raises:
        TableError: the table cannot be used, or a row gets no values.
    """
    names = tuple(feature_meanings())
    column_of = {name: column for column, name in enumerate(names)}
    rows = _kept(table, names)
    if absent := next((key for key in rows if key not in values), None):
        raise TableError(f"{table}: no values for {' under '.join(absent)}")
    filled = []
    for key, row in rows.items():
        for name, value in values[key].items():
            row.values[column_of[name]] = value
        models = [each for each in row.known["models"].split() if each.partition("@")[0] != version.partition("@")[0]]
        filled.append(Row({**row.known, "models": " ".join([version, *models])}, row.values))
    for (filepath, delivery), (own, about) in others.items():
        numbers_of = np.full(len(names), np.nan)
        for name, value in own.items():
            numbers_of[column_of[name]] = value
        known = {**dict.fromkeys(KEYS, ""), **about, "filepath": filepath, "delivery": delivery, "models": version}
        filled.append(Row(known, numbers_of))
    _write(table, names, filled)


# --- what is there already


def _wanted(listed: Iterable[dict[str, str]], split: str, deliveries: Deliveries) -> dict[Key, dict[str, str]]:
    """What the manifest's rows say of each image to measure, in their order."""
    wanted: dict[Key, dict[str, str]] = {}
    for row in listed:
        if row["label"] in LABELS and split in ("all", row["split"]):
            row["generator"] = row.get("generator") or row.get("generator_or_camera", "")
            known = {key: row.get(key, "") for key in KEYS}
            chosen = deliveries.get(row["split"], ()) if isinstance(deliveries, Mapping) else deliveries
            wanted |= {(row["filepath"], each): {**known, "delivery": each} for each in chosen}
    return wanted


def _kept(out: Path, names: Sequence[str]) -> dict[Key, Row]:
    """The rows of an earlier table. It may be from before there was some detector: which ones measured, a row says."""
    if not out.exists():
        return {}
    columns = read_columns(out)
    unmeasured = set(names) - columns.keys()
    of_detectors = {name for spec in DETECTORS.values() for name in spec.features}
    if tuple(columns) != (*KEYS, *(name for name in names if name not in unmeasured)) or unmeasured - of_detectors:
        raise TableError(f"{out} has other columns than this version measures; move it away and run again")
    nothing = np.full(len(columns[KEYS[0]]), np.nan)
    matrix = np.column_stack([nothing if name in unmeasured else numbers(name, columns[name]) for name in names])
    cells = zip(*(map(str, columns[key]) for key in KEYS), strict=True)
    known = [dict(zip(KEYS, each, strict=True)) for each in cells]
    return {(each["filepath"], each["delivery"]): Row(each, values) for each, values in zip(known, matrix, strict=True)}


def _journalled(journal: Path, names: Sequence[str]) -> dict[Key, Row]:
    """The rows of a run that was stopped; a line that it had not finished is left out."""
    rows: dict[Key, Row] = {}
    if not journal.exists():
        return rows
    with journal.open(encoding="utf-8") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if not set(found["features"]) <= set(names):
                raise TableError(f"{journal} has other columns than this version measures; delete it and run again")
            rows[found["filepath"], found["delivery"]] = _row(found, names)
    return rows


def _current(rows: Mapping[Key, Row], models: ModelSettings, decode: DecodeSettings) -> dict[Key, Row]:
    """Those that the installed weights measured; the others must be measured again.

    Raises:
        SetupError: as ``build_ensemble``.
    """
    if not rows:
        return {}
    versions = Measurer(models, decode, ()).versions
    current = {key: row for key, row in rows.items() if row.known["models"] == versions}
    if len(current) < len(rows):
        print(f"{len(rows) - len(current)} rows are of other weights; those asked for are measured again")
    return current


def _row(found: Mapping[str, Json], names: Sequence[str]) -> Row:
    values = [found["features"].get(name, math.nan) for name in names]
    return Row({"models": found["models"]}, np.array(values, float))


def _merged(wanted: Mapping[Key, Mapping[str, str]], kept: Mapping[Key, Row], measured: Mapping[Key, Row]) -> list[Row]:
    """Kept rows that were not asked for, then those of the manifest in its order and with what it says of them."""
    rows = [row for key, row in kept.items() if key not in wanted]
    for key, known in wanted.items():
        if key in measured:
            rows.append(Row({**known, "models": measured[key].known["models"]}, measured[key].values))
    return rows


# --- the table


def _write(out: Path, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Replace the table in one go."""
    scratch = out.with_name(f"{out.name}.new")
    if out.suffix == PARQUET:
        import pyarrow
        from pyarrow import parquet

        matrix = np.array([row.values for row in rows]).reshape(len(rows), len(names))
        columns = {key: pyarrow.array([row.known[key] for row in rows], pyarrow.string()) for key in KEYS}
        columns |= {name: pyarrow.array(column, from_pandas=True) for name, column in zip(names, matrix.T, strict=True)}
        parquet.write_table(pyarrow.table(columns), scratch)
    else:
        with scratch.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow([*KEYS, *names])
            for row in rows:
                cells = ("" if math.isnan(value) else repr(value) for value in row.values.tolist())
                table.writerow([*(row.known[key] for key in KEYS), *cells])
    scratch.replace(out)


# --- engines: tasks in, one line of JSON for each out


def _on_this_machine(
    tasks: Sequence[Task], jobs: int, models: ModelSettings, decode: DecodeSettings, skip: Sequence[str]
) -> Iterator[str]:
    """Processes, not threads: most of the work holds the interpreter's lock."""
    parts = blocks(tasks, _span, _LOCAL_BLOCK)
    if jobs == 1:
        measurer = Measurer(models, decode, skip)
        yield from (line for part in parts for line in _lines(measurer, part))
        return
    with process_pool(jobs, _start, (models, decode, skip)) as pool:
        yield from (line for lines in pool.map(_measure, parts) for line in lines)


_measurer: Measurer


def _start(models: ModelSettings, decode: DecodeSettings, skip: Sequence[str]) -> None:
    global _measurer
    _measurer = Measurer(models, decode, skip)


def _measure(part: Sequence[Task]) -> list[str]:
    return list(_lines(_measurer, part))


def _span(task: Task) -> Span | None:
    return task.span


def _lines(measurer: Measurer, part: Sequence[Task]) -> Iterator[str]:
    """Of the tasks of one block."""
    raws = read(list(dict.fromkeys(task.span for task in part if task.span)))
    return (measurer(task, raws[task.span] if task.span else None) for task in part)


def _on_ray(
    tasks: Sequence[Task], jobs: int, models: ModelSettings, decode: DecodeSettings, skip: Sequence[str]
) -> Iterator[str]:
    """A pool of ``jobs`` actors, each of one CPU, and of one GPU where IMGV_DEVICE asks for CUDA."""
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    gpus = 1 if models.device.startswith("cuda") else 0
    most = max(1, min(RAY_BLOCK, len(tasks) // jobs))
    parts = [{"tasks": json.dumps([asdict(task) for task in part])} for part in blocks(tasks, _span, most)]
    found = through_actors(parts, RayMeasurer, (models, decode, skip), address, actors=jobs, gpus=gpus)
    return (line for row in found for line in row["lines"])


class Measurer:
    """The ensemble of one process, built once. One thread: the processes share the cores."""

    def __init__(self, models: ModelSettings, decode: DecodeSettings, skip: Sequence[str]) -> None:
        self.decode = decode
        built = build_ensemble(models.model_copy(update={"threads": 1}), inputs=feature_meanings())  # all forensics
        built.close()  # what it was built of goes into one without the parts to skip
        forensics = [each for each in built.forensics if each.name not in skip]
        self.ensemble = Ensemble(built.detectors, forensics, built.unavailable, threads=1)
        self.versions = " ".join(detector.version for detector in built.detectors)
        limit_library_threads()
        threadpool_limits(1)  # of every other library too
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)

    def __call__(self, task: Task, raw: bytes | None = None) -> str:
        """Measure one image, whose bytes are ``raw`` where it is no file.

        Returns:
            A line of JSON: features without the missing ones, or the error that it cannot be read.
        """
        found: dict[str, object] = {"filepath": task.filepath, "delivery": task.delivery}
        try:
            with Ingress(self.decode) as ingress:
                sample = delivered(task, ingress, raw)
        except VerifyError as error:
            return json.dumps(found | {"error": f"{error.code}: {error}"})
        (findings,) = self.ensemble.measure([sample])
        features = {name: float(value) for name, value in findings.features.items() if not math.isnan(value)}
        return json.dumps(found | {"models": self.versions, "features": features})


class RayMeasurer:
    """The same as Ray Data calls it."""

    def __init__(self, models: ModelSettings, decode: DecodeSettings, skip: Sequence[str]) -> None:
        self.measure = Measurer(models, decode, skip)

    def __call__(self, row: dict[str, Any]) -> dict[str, list[str]]:
        part = [Task(**each | {"span": each["span"] and Span(**each["span"])}) for each in json.loads(row["tasks"])]
        return {"lines": list(_lines(self.measure, part))}


def delivered(task: Task, ingress: Ingress, raw: bytes | None = None) -> Sample:
    """The image of a task as its delivery brings it; ``raw`` where it is no file.

    Raises:
        VerifyError: as ``Ingress.load``.
    """
    source = str(Path(task.folder, task.filepath))
    sample = ingress.load(source) if raw is None else ingress.decode(raw, source)
    if task.delivery == "clean":
        return sample
    if task.delivery in FIXED:
        return ingress.decode(deliver(sample.upright, task.delivery), sample.source)
    digest = sha256(f"{task.seed}:{task.delivery}:{sample.sha256}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    raw = deliver_at_random(sample.upright, rng, compressed_before=sample.format in LOSSY)
    return ingress.decode(raw, sample.source)

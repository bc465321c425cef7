"""Retrain, and judge the result: python -m lifecycle.retrain [STEP…] [--run FOLDER] [--params params.yaml]

The steps, in order: validate, models, extract, fusion, labels, evaluate, release, compare, promote. Each is done when
its output is there, made from the same inputs, and writes it in one go; so a run that was killed goes on where it was,
and registers one version, and with other data or parameters whatever they reach is done again. Data that fails
validation is refused. The gate promotes a challenger or refuses it with every reason; both are a run
that went well. A run that fails ends with 3, is told to IMGV_NOTIFY_URL, and shows in the gauges beside the run.

Without --run: the newest run that is not finished, else a new one below IMGV_LIFECYCLE_DIR/runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import yaml

from fusion import train_fusion
from fusion.meta_model import FusionModel
from inference.detector import fusion_folder
from lifecycle import golden
from lifecycle.gate import Decision, bounds_from, decide, markdown
from lifecycle.notify import gauges, log_to, notify
from lifecycle.reference import Reference, embed
from lifecycle.registry import Registry
from lifecycle.release import copy_models, make_release
from lifecycle.validate import doubtful, validate
from lifecycle.validate import markdown as validation_page
from models.loaders import Weights
from training import train_clip_b16
from training.datasets import read_rows
from training.deliveries import TAUGHT
from training.evaluation import Judged, judge, measure, tiers
from training.evaluation_page import head, plot
from training.evaluation_page import markdown as evaluation_page
from training.extraction import extract
from training.feature_table import read_table
from utils.contracts import Json
from utils.deliveries import DELIVERIES
from utils.errors import DataRefused, ReleaseUnusable, TableError
from utils.exits import Exit, command, command_parser
from utils.persistence import write_atomic
from utils.profiles import PROFILES
from utils.releases import Release, Store
from utils.settings import ModelSettings, Settings, load_settings

PARAMS = "params.yaml"  # here, else the one that the code brings
BEGUN, MADE_FROM = "begun.json", "made_from"
IMAGES = "images.json"  # path -> sha256 of each image, as validation saw it
FEATURES, MODELS, FUSION, RELEASE = "features.parquet", "models", "fusion", "release"
VALIDATION, LABELS, EVALUATION = "validation.md", "labels.json", "evaluation"
REGISTERED, DECISION, PROMOTED = "registered.json", "decision.json", "promoted.json"


@dataclass(frozen=True, slots=True)
class Params:
    """Every choice of a run: params.yaml."""

    dataset: str = "dataset.csv"
    profile: str = "embedded"
    heads: tuple[str, ...] = ()  # that are trained anew: clip_b16
    deliveries: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"train": TAUGHT, "val": DELIVERIES})
    model: str = "best"
    inputs: tuple[str, ...] = ()  # patterns of features that fusion may read; none: as the shipped artifact
    drop: float = 0.3
    target_real: float = 0.95
    seed: int = 0
    jobs: int = 2
    gate: Mapping[str, float] = field(default_factory=dict)  # lifecycle.gate.Bounds
    rounds: int = golden.ROUNDS

    @classmethod
    def read(cls, path: Path) -> Self:
        """
        Raises:
            TableError: it is no YAML, or has a parameter that we do not know.
        """
        try:
            given: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            known: dict[str, Any] = {
                name: tuple(value) if name in ("heads", "inputs") else value for name, value in given.items()
            }
            params = cls(**known)
            bounds_from(dict(params.gate))
        except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
            raise TableError(f"{path} cannot be used: {error}") from error
        if params.profile not in PROFILES or set(params.heads) - {"clip_b16"}:
            raise TableError(
                f"{path}: profile is one of {', '.join(PROFILES)}; of heads only clip_b16 can be retrained"
            )
        return params


class Run:
    """One retraining; its folder holds whatever its steps made."""

    def __init__(self, folder: Path, params: Params, settings: Settings) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        begun, known = _beginning(params), _begun(folder)
        if not known.items() >= begun.items():
            write_atomic(folder / BEGUN, json.dumps({"day": f"{datetime.now(UTC):%Y-%m-%d}", **begun}).encode())
        self.folder = folder
        self.params = params
        self.settings = settings
        self.registry = Registry(settings)
        self.dataset = Path(params.dataset)
        self.name = folder.name
        self.day: str = _begun(folder)["day"]
        self.data: str = begun["dataset"]
        self.step = ""  # that is being done
        self.log = log_to(folder / "log.jsonl", run=self.name)

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def artifact(self) -> Path:
        return self.path(FUSION) / f"{self.params.profile}-{self.name}"

    def measured_with(self, models: Path | None = None) -> ModelSettings:
        """What images are measured with: the run's own networks and heads, or those of another folder."""
        folder = models or self.path(MODELS)
        changed = {"profile": self.params.profile, "weights_dir": folder, "release": "", "fusion": ""}
        return self.settings.models.model_copy(update=changed)

    def make(self, name: str, write: Callable[[Path], object]) -> None:
        """Let ``write`` make a folder, which gets its name when it is whole."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=f".{name}-") as scratch:
            made = Path(scratch) / name
            made.mkdir()
            write(made)
            made.rename(self.path(name))

    def say(self, name: str, said: Json) -> None:
        write_atomic(self.path(name), (json.dumps(said, indent=1) + "\n").encode())

    @cached_property
    def release(self) -> Release:
        """The one that this run made."""
        (name,) = (path.name for path in self.path(RELEASE).iterdir() if path.is_dir())
        return Store(self.path(RELEASE)).open(name)


# --- the steps


def _validate(run: Run) -> None:
    findings, rows, images = validate(run.dataset, run.settings.lifecycle, jobs=run.params.jobs)
    page = validation_page(run.dataset, rows, findings)
    errors = [str(each) for each in findings if each.level == "error"]
    if errors:
        write_atomic(run.path("refused.md"), page.encode())
        raise DataRefused(f"{run.dataset} must not be trained on: {'; '.join(errors)}")
    run.say(IMAGES, images)
    write_atomic(run.path(VALIDATION), page.encode())


def _models(run: Run) -> None:
    """The networks and heads of this run: those that are installed, and over them the heads that are trained anew."""

    def write(folder: Path) -> None:
        models = run.settings.models.model_copy(update={"profile": run.params.profile})
        copy_models(folder, Weights.at(models.weights_dir), models)
        if "clip_b16" in run.params.heads:
            cache = run.settings.lifecycle.folder / "tokens"
            train_clip_b16.main(
                [
                    *("--dataset", str(run.dataset), "--out", str(folder / "clip_b16"), "--cache", str(cache)),
                    *("--seed", str(run.params.seed), "--jobs", str(run.params.jobs)),
                ]
            )

    run.make(MODELS, write)


def _extract(run: Run) -> None:
    """The same images that an earlier run measured with the same models are not measured again."""
    table = run.path(f"measuring-{FEATURES}")
    earlier = sorted(run.folder.parent.glob(f"*/{FEATURES}"), key=lambda path: path.stat().st_mtime)
    if earlier and not table.exists():
        _take_over(earlier[-1], run)
    params = run.params
    _, failures = extract(
        run.dataset,
        table,
        run.measured_with(),
        run.settings.decode,
        deliveries=params.deliveries,
        jobs=params.jobs,
        keep_others=False,
    )
    for failure in failures:
        run.log.warning("left out", image=failure)
    table.replace(run.path(FEATURES))


def _take_over(earlier: Path, run: Run) -> None:
    """Rows of images that still are the same files."""
    from pyarrow import parquet

    images = earlier.with_name(IMAGES)
    if not images.exists():
        return
    then, now = (json.loads(path.read_text(encoding="utf-8")) for path in (images, run.path(IMAGES)))
    table = parquet.read_table(earlier)
    same = [path in now and then.get(path) == now[path] for path in table["filepath"].to_pylist()]
    scratch = run.path(f".{FEATURES}")
    parquet.write_table(table.filter(same), scratch)
    scratch.replace(run.path(f"measuring-{FEATURES}"))


def _fusion(run: Run) -> None:
    params = run.params
    inputs = params.inputs or FusionModel.load(fusion_folder(run.measured_with())).inputs
    code = train_fusion.main(
        [
            *("--table", str(run.path(FEATURES)), "--out", str(run.artifact), "--profile", params.profile),
            *("--model", params.model, "--drop", str(params.drop), "--seed", str(params.seed)),
            *("--target-real", str(params.target_real), "--inputs", *inputs),
        ]
    )
    if code:
        raise TableError("no fusion model could be trained; see above")


def _labels(run: Run) -> None:
    findings = list(doubtful(run.path(FEATURES)))
    if errors := [str(each) for each in findings if each.level == "error"]:
        raise DataRefused(f"{run.dataset}: {'; '.join(errors)}; look at them, then mend labels or leave images out")
    run.say(LABELS, [asdict(each) for each in findings])


def _evaluate(run: Run) -> None:
    def write(folder: Path) -> None:
        judged = judge(run.path(FEATURES), run.dataset, run.artifact, "val")
        measured = measure(judged)
        page = "\n\n".join(
            [head(judged, run.artifact, ["--manifest", run.dataset.name]), *evaluation_page(judged, measured)]
        )
        (folder / "evaluation.md").write_text(page + "\n", encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps({**measured, "Tiers": tiers(judged)}), encoding="utf-8")
        plot(judged, folder / "plots.png")
        shutil.copyfile(run.artifact / "README.md", folder / "card.md")

    run.make(EVALUATION, write)


def _release(run: Run) -> None:
    def write(folder: Path) -> None:
        scratch = folder / "made"
        scratch.mkdir()
        model, table = FusionModel.load(run.artifact), read_table(run.path(FEATURES))
        reference = Reference.of(model, table)
        if run.settings.models.embedding and "clip_b16" in PROFILES[run.params.profile].detectors:
            found = Weights.at(run.path(MODELS))
            reference = embed(reference, run.dataset, run.params.deliveries["val"], found, run.settings.decode)
        release = make_release(scratch, run.day, run.artifact, run.measured_with(), reference=reference)
        scratch.rename(folder / release.name)

    if run.registry.champion() is None:
        _first_champion(run)
    if not run.path(RELEASE).exists():  # else a run was killed while it registered
        run.make(RELEASE, write)
    parameters: dict[str, Json] = {**asdict(run.params), "run": run.name, "code": run.release.code}
    metrics = _flat(json.loads((run.path(EVALUATION) / "metrics.json").read_text(encoding="utf-8")))
    entry = run.registry.register(run.release, parameters, metrics, run.path(EVALUATION))
    run.say(REGISTERED, {"release": entry.release, "version": entry.version})


def _compare(run: Run) -> None:
    champion, challenger, params = run.registry.champion(), run.release, run.params
    if champion is None:
        raise ReleaseUnusable("the champion went away; promote one: python -m lifecycle.registry promote NAME")
    before, after = _judged(run, champion), _judged(run, challenger)
    old, new = (golden.measure(each.folder, run.settings, params.rounds) for each in (champion, challenger))
    decision = decide(before, after, old, new, bounds_from(dict(params.gate)), params.seed)
    if champion.name == challenger.name:
        decision = Decision((f"{challenger.name} is the champion itself",), decision.compared)
    write_atomic(run.path("decision.md"), markdown(decision, champion.name, challenger.name).encode())
    run.registry.decide(challenger.name, "; ".join(decision.reasons) or "passed the gate")
    for reason in decision.reasons:
        run.log.warning("refused", reason=reason)
    said = {"champion": champion.name, "challenger": challenger.name, "promote": decision.promote}
    run.say(DECISION, {**said, **asdict(decision)})


def _promote(run: Run) -> None:
    champion, decision = run.registry.champion(), _decision(run)
    if champion is None or champion.name not in (decision["champion"], decision["challenger"]):
        run.log.warning("another champion came since the comparison", release=champion.name if champion else "")
        _compare(run)
        decision = _decision(run)
    if decision["promote"]:
        run.registry.promote(decision["challenger"])
        run.log.info("promoted", release=decision["challenger"])
    run.say(PROMOTED, {"promoted": decision["challenger"] if decision["promote"] else None})


def _decision(run: Run) -> Json:
    return json.loads(run.path(DECISION).read_text(encoding="utf-8"))


def _first_champion(run: Run) -> None:
    """What the code ships, as a release: there is always something to compare with, and to roll back to."""
    settings = run.settings.models.model_copy(update={"profile": run.params.profile, "release": ""})
    artifact = fusion_folder(settings)
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".shipped-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        reference = Reference.of(FusionModel.load(artifact), read_table(run.path(FEATURES)))
        release = make_release(made, "shipped", artifact, settings, reference=reference)
        run.registry.register(release, {"artifact": artifact.name}, {})
        run.registry.decide(release.name, "shipped with the code")
        run.registry.promote(release.name)


def _judged(run: Run, release: Release) -> Judged:
    """A release on the validation rows, measured with its own networks."""
    table = run.path(FEATURES)
    if release.weights != run.release.weights:
        table = run.path(f"features-{release.name}-{made_from(run, 'extract')[:8]}.parquet")
        if not table.exists():
            scratch = table.with_name(f"measuring-{table.name}")
            models, deliveries = run.measured_with(release.models), {"val": run.params.deliveries["val"]}
            decode, jobs = run.settings.decode, run.params.jobs
            extract(run.dataset, scratch, models, decode, split="val", deliveries=deliveries, jobs=jobs)
            scratch.replace(table)
    return judge(table, run.dataset, release.fusion, "val")


@dataclass(frozen=True, slots=True)
class Step:
    """What a step makes, and from what: dvc.yaml says the same (a test compares)."""

    output: str
    do: Callable[[Run], None]
    params: tuple[str, ...] = ()
    after: tuple[str, ...] = ()  # steps whose outputs it reads
    data: bool = False  # whether it reads the data set
    beside: tuple[str, ...] = ()  # what else it leaves: goes with the output


STEPS: dict[str, Step] = {
    "validate": Step(VALIDATION, _validate, ("dataset",), data=True, beside=(IMAGES,)),
    "models": Step(MODELS, _models, ("profile", "heads", "seed"), ("validate",), data=True),
    "extract": Step(
        *(FEATURES, _extract, ("profile", "deliveries", "seed"), ("validate", "models")),
        data=True,
        beside=(f"measuring-{FEATURES}*",),
    ),
    "fusion": Step(FUSION, _fusion, ("profile", "model", "inputs", "drop", "target_real", "seed"), ("extract",)),
    "labels": Step(LABELS, _labels, after=("extract",)),
    "evaluate": Step(EVALUATION, _evaluate, after=("extract", "fusion"), data=True),
    "release": Step(
        *(REGISTERED, _release, (), ("models", "extract", "fusion", "labels", "evaluate")), beside=(RELEASE,)
    ),
    "compare": Step(
        *(DECISION, _compare, ("gate", "rounds", "seed"), ("release",)),
        data=True,
    ),
    "promote": Step(PROMOTED, _promote, after=("compare",)),
}


def made_from(run: Run, name: str) -> str:
    """A hash of all that a step's output depends on; the code is not among it."""
    step, params = STEPS[name], asdict(run.params)
    said = {
        "params": {each: params[each] for each in step.params},
        "data": run.data if step.data else "",
        "after": [made_from(run, each) for each in step.after],
    }
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _is_done(run: Run, name: str) -> bool:
    """Whether its output is there and made from what there is now; else what it left is removed."""
    step, record = STEPS[name], run.path(MADE_FROM) / f"{name}.txt"
    wanted = made_from(run, name)
    if record.is_file() and record.read_text(encoding="utf-8") == wanted:
        return run.path(step.output).exists() and (step.output != FUSION or (run.artifact / "manifest.json").exists())
    for pattern in (step.output, *step.beside):
        for path in run.folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    record.parent.mkdir(exist_ok=True)
    write_atomic(record, wanted.encode())
    return False


def _flat(metrics: Mapping[str, Json], start: str = "") -> dict[str, float]:
    """Names with dots; an interval becomes its value, .low and .high."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        key = "".join(char if char.isalnum() or char in "_-. /" else "_" for char in f"{start}{name}")
        if isinstance(value, Mapping):
            found |= _flat(value, f"{key}.")
        elif isinstance(value, list) and len(value) == 3:
            found |= {key: value[0], f"{key}.low": value[1], f"{key}.high": value[2]}
        elif isinstance(value, int | float):
            found[key] = float(value)
    return found


# --- the run


def run_steps(run: Run, names: Sequence[str] = ()) -> None:
    """Do what is not done yet.

    Raises:
        VerifyError: a step failed; what was done before it stays.
    """
    for name in names or STEPS:
        run.step = name
        if _is_done(run, name):
            run.log.info("was done before", step=name)
            continue
        run.log.info("begins", step=name)
        began = time.monotonic()
        try:
            STEPS[name].do(run)
        except Exception as error:
            run.log.error("failed", step=name, error=f"{getattr(error, 'code', type(error).__name__)}: {error}")
            raise
        run.log.info("done", step=name, seconds=round(time.monotonic() - began, 2))


def open_run(settings: Settings, params: Params, folder: Path | None = None) -> Run:
    """The run of a folder; without one the newest that is not finished, else a new one.

    A run that began with other parameters or another data set does not go on as this one, unless its folder is named.
    """
    runs = settings.lifecycle.folder / "runs"
    if folder is None:
        wanted = _beginning(params)
        waiting = [path.parent for path in sorted(runs.glob(f"*/{BEGUN}")) if not (path.parent / PROMOTED).exists()]
        same = [path for path in waiting if _begun(path).items() >= wanted.items()]
        folder = same[-1] if same else runs / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}"
    return Run(folder, params, settings)


def _begun(folder: Path) -> dict[str, Json]:
    path = folder / BEGUN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _beginning(params: Params) -> dict[str, Json]:
    """What must be the same for a run to go on."""
    return {"params": json.loads(json.dumps(asdict(params))), "dataset": data_hash(Path(params.dataset))}


def data_hash(dataset: Path) -> str:
    """Of the table, and of the size and time of each file that it names; empty where there is no table."""
    if not dataset.is_file():
        return ""
    digest = sha256(dataset.read_bytes())
    for row in read_rows(dataset, ("filepath",)):
        try:
            found = (dataset.parent / row["filepath"]).stat()
            digest.update(f"{found.st_size} {found.st_mtime_ns};".encode())
        except OSError:  # validation says which file and why
            digest.update(b"absent;")
    return digest.hexdigest()


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    settings = load_settings()
    run: Run | None = None
    try:
        params = Params.read(arguments.params)
        run = open_run(settings, params, arguments.run)
        run_steps(run, arguments.steps)
    except Exception as error:
        tell_failure(settings, error, run)
        raise
    if not arguments.steps or arguments.steps[-1] == "promote":
        gauges(settings, failed=False)
    if run.path(DECISION).exists():
        print(run.path("decision.md").read_text(encoding="utf-8"))
    print(f"{run.name}: done; {run.folder}")
    return Exit.DONE


def tell_failure(settings: Settings, error: Exception, run: Run | None) -> None:
    """Gauges and notification of a run that failed, also before its first step."""
    if run:
        print(f"{run.name}: stopped; {run.path('log.jsonl')} has the steps; the same command goes on", file=sys.stderr)
    gauges(settings, failed=True)
    about = {"run": run.name if run else "", "step": run.step if run else ""}
    notify(settings, {"event": "retrain_failed", **about, "error": str(error)})


def default_params() -> Path:
    here = Path(PARAMS)
    return here if here.is_file() else Path(__file__).parents[1] / PARAMS


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.retrain", __doc__)
    parser.add_argument("steps", nargs="*", choices=[[], *STEPS], metavar="STEP", help="only these (default: all)")
    parser.add_argument("--run", type=Path, help="folder of the run")
    parser.add_argument("--params", type=Path, default=default_params(), help="default: %(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

"""Train a fusion artifact from a feature table: python -m fusion.train_fusion [--table features.csv] [--out FOLDER]

Where there is no table, the images of dataset.csv are measured first, with the detectors of the profile and as they
reach people; what was measured before is not measured again. Without --out the artifact gets a new name of its own.
Training itself sees names and numbers only.
"""
# ruff: noqa: T201 - a command line prints

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import count
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fusion.calibration import Calibration
from fusion.decision import Thresholds
from fusion.estimators import Estimator, FloatArray
from fusion.meta_model import QUANTILES, FusionModel
from training import fusion_card as report
from training.datasets import BY_IMAGE, DATASET, SPLITS, check_enough, check_splits, fusion_split, read_rows
from training.deliveries import TAUGHT
from training.feature_table import IntArray, Table, families, read_table, source_weights
from training.meta_models import KINDS, fit, fit_calibration, fit_subsets, trainable, without
from training.metrics import evaluate, log_loss, plain
from training.reference import measure_reference
from training.shards import ImageTable, image_table
from training.thresholds import choose_thresholds, measure_tiers
from utils.contracts import Json
from utils.deliveries import DELIVERIES
from utils.errors import DatasetMissing, TableError, TooFewImages
from utils.exits import Exit, command, command_parser
from utils.profiles import DEFAULT_PROFILE, PROFILES
from utils.settings import load_settings

FOLDS = 5
HELD_OUT = (
    "the training split, each source scored by a fusion model that did not see it; the detectors saw none of them "
    "where the table was made as docs/fusion.md says"
)
TABLE = Path("features.csv")
EXTRACT_HINT = f"python -m scripts.extract_features --manifest {DATASET} --out {TABLE}"
SAVED_MODELS = Path(__file__).parents[1] / "models" / "saved_models"  # where IMGV_FUSION finds a name

Metrics: TypeAlias = dict[str, list[float]]  # value, low, high


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One kind of model, cross-validated over the training sources."""

    kind: str
    fold_models: tuple[Estimator, ...]
    calibration: Calibration  # fitted to all out-of-fold log-odds
    held_out: FloatArray  # n, each calibrated without its own fold
    thresholds: Thresholds  # chosen on all out-of-fold log-odds, calibrated
    loss: float  # log loss of held_out


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    out: Path = arguments.out or _new_folder()
    _refuse_foreign_folder(out)
    path, read = _find_table(arguments)
    table = read_table(path, arguments.inputs, arguments.exclude)
    model, table, probabilities = train(
        table,
        out.name,
        arguments.profile,
        arguments.model,
        arguments.drop,
        arguments.seed,
        arguments.target_real,
        arguments.subsets,
    )
    text = report.readme(model, arguments.drop, arguments.seed, arguments.target_real, arguments.about)
    _install(model, out, text)
    print(text)
    if arguments.report:
        _plot(arguments.report / f"{model.name}.png", model, table, probabilities)
    flatter = f"; {report.FLATTER}" if model.metrics["data"].get("by_image") else ""
    print(f"read {read}; wrote {_shown(out)}{flatter}; next: {_next_step(out, arguments.profile)}")
    return Exit.DONE


def _find_table(arguments: argparse.Namespace) -> tuple[Path, str]:
    """The table to train from, and what it is in words; made here where only the images are known.

    Raises:
        DatasetMissing: neither is there.
    """
    if arguments.table or (not arguments.dataset and TABLE.is_file()):
        path: Path = arguments.table or TABLE
        if not path.is_file():
            raise DatasetMissing(f"no table at {path}; make one: {EXTRACT_HINT}")
        return path, str(path)
    dataset: ImageTable = arguments.dataset or Path(DATASET)
    if isinstance(dataset, Path) and not dataset.is_file():
        raise DatasetMissing(
            f"no table {TABLE} and no {dataset}: put images into data/real and data/ai and run "
            "python -m scripts.make_dataset_csv"
        )
    return _measure(dataset, arguments.profile, arguments.jobs)


def _measure(dataset: ImageTable, profile: str, jobs: int) -> tuple[Path, str]:
    from training.extraction import extract  # loads every detector

    rows = read_rows(dataset)
    splits = {row["split"] for row in rows}
    if others := splits - set(SPLITS):
        raise TableError(f"{dataset} has splits other than {', '.join(SPLITS)}: {', '.join(sorted(others))}")
    check_enough(rows)
    check_splits((row["source"], row["split"]) for row in rows)
    beside_it = dataset if isinstance(dataset, Path) else Path(dataset).name  # of S3: here
    path = Path(beside_it).with_suffix(".features.csv")
    settings = load_settings(profile=profile)
    deliveries = {fusion_split(splits): TAUGHT, "val": DELIVERIES}
    measured, failures = extract(
        dataset, path, settings.models, settings.decode, deliveries=deliveries, jobs=jobs, keep_others=False
    )
    for failure in failures[:5]:
        print(f"train_fusion: left out: {failure}", file=sys.stderr)
    return path, f"{dataset} ({len(rows)} images, measured as {len(measured)} rows of {path})"


def _new_folder() -> Path:
    """A name that no model has yet, below models/saved_models."""
    names = (f"own-{date.today()}{f'-{number}' if number > 1 else ''}" for number in count(1))
    return next(SAVED_MODELS / name for name in names if not (SAVED_MODELS / name).exists())


def _shown(folder: Path) -> Path:
    """As short as it can be named from here."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _next_step(folder: Path, profile: str) -> str:
    name = folder.name if folder.parent == SAVED_MODELS else folder
    setting = "" if profile == DEFAULT_PROFILE else f"IMGV_PROFILE={profile} "
    return f"{setting}IMGV_FUSION={name} python img_ml_verify.py photo.jpg"


def train(
    table: Table,
    name: str,
    profile: str = DEFAULT_PROFILE,
    kind: str = "best",
    drop: float = 0.3,
    seed: int = 0,
    target_real: float = 0.95,
    subsets: bool = False,
) -> tuple[FusionModel, Table, FloatArray]:
    """Cross-validate every kind, fit the chosen one to all training rows, and measure it.

    The rows of split ``train`` make the model, the calibration and the thresholds; those of ``val`` only measure it.

    Args:
        subsets: calibrate each subset of the parts apart, for where detectors are missing.

    Returns:
        The model, the rows it is reported on (val, or train where there is none), and their probabilities (for train
        rows out of fold).

    Raises:
        TooFewImages: too few sources to cross-validate, or a validation split of one label.
        TableError: a source in both splits.
    """
    if len(np.unique(table.labels[table.splits == "val"])) == 1:
        raise TooFewImages("the val split holds one label only; add sources of the other, or move those to train")
    check_splits(zip(table.sources, table.splits, strict=True))
    table = _without_dead_columns(table)
    training = table.rows(table.splits == "train")
    validation = table.rows(table.splits == "val")
    folds = assign_folds(training, seed)
    candidates = {name: _cross_validate(name, training, folds, drop, seed, target_real) for name in trainable()}
    chosen = min(candidates.values(), key=lambda each: each.loss) if kind == "best" else candidates[kind]
    weights = source_weights(training.labels, training.sources)
    estimator = fit(chosen.kind, table.inputs, training.matrix, training.labels, weights, drop, seed)

    def held_out_odds(matrix: FloatArray) -> FloatArray:
        return _out_of_fold(chosen.fold_models, matrix, folds)

    apart = (
        fit_subsets(table.inputs, training.matrix, training.labels, training.sources, folds, held_out_odds)
        if subsets
        else None
    )

    def calibrated(matrix: FloatArray, log_odds: FloatArray) -> FloatArray:
        return apart(matrix, log_odds, chosen.calibration) if apart else chosen.calibration(log_odds)

    def probabilities(rows: Table) -> FloatArray:
        return calibrated(rows.matrix, estimator.log_odds(rows.matrix))

    def out_of_fold(rows: Table) -> FloatArray:
        return calibrated(rows.matrix, held_out_odds(rows.matrix))

    has_validation = len(validation) > 0
    measured, score = (validation, probabilities) if has_validation else (training, out_of_fold)
    metrics: dict[str, Json] = {
        "data": _describe(table),
        "comparison": {
            each.kind: plain(evaluate(training.labels, each.held_out, training.sources, each.thresholds.label, seed))
            for each in candidates.values()
        },
        "log_loss": {each.kind: round(each.loss, 5) for each in candidates.values()},
        "out_of_fold": _by_delivery(training, chosen.held_out, chosen.thresholds.label, seed),
        "validation": _by_delivery(validation, score(validation), chosen.thresholds.label, seed)
        if has_validation
        else {},
        "tiers": measure_tiers(measured, score(measured), chosen.thresholds),
        "tiers_measured_on": "validation" if has_validation else "training",
        "without": _without_each_family(measured, score, chosen.thresholds.label, seed),
        "predictions_sha256": _hash(probabilities(table)),
    }
    model = FusionModel(
        name=name,
        profile=profile,
        inputs=table.inputs,
        estimator=estimator,
        calibration=chosen.calibration,
        thresholds=chosen.thresholds,
        quantiles={label: _quantiles(training, value) for label, value in (("real", 0), ("ai", 1))},
        metrics=metrics,
        reference=measure_reference(training, chosen.held_out, HELD_OUT, seed),
        subsets=apart,
    )
    return model, measured, score(measured)


def assign_folds(table: Table, seed: int) -> IntArray:
    """A fold for each row; all rows of a source share one.

    Raises:
        TooFewImages: fewer than two sources of a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(np.unique(table.sources[table.labels == label])) for label in (0, 1))
    if fewest < 2:
        raise TooFewImages("cross-validation needs at least two training sources of each label; add some")
    folds = np.empty(len(table), np.int64)
    splitter = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    for fold, (kept, held) in enumerate(splitter.split(table.matrix, table.labels, table.sources)):
        if len(np.unique(table.labels[kept])) < 2:
            raise TooFewImages("one source holds nearly all images of a label; more sources are needed")
        folds[held] = fold
    return folds


def _cross_validate(kind: str, table: Table, folds: IntArray, drop: float, seed: int, target_real: float) -> Candidate:
    weights = source_weights(table.labels, table.sources)
    models = []
    for fold in range(int(folds.max()) + 1):
        kept = folds != fold
        fold_weights = source_weights(table.labels[kept], table.sources[kept])
        models.append(fit(kind, table.inputs, table.matrix[kept], table.labels[kept], fold_weights, drop, seed))
    log_odds = _out_of_fold(models, table.matrix, folds)
    calibration, held_out = fit_calibration(log_odds, table.labels, weights, len(np.unique(table.sources)), folds)
    return Candidate(
        kind=kind,
        fold_models=tuple(models),
        calibration=calibration,
        held_out=held_out,
        thresholds=choose_thresholds(table, held_out, target_real),
        loss=float(log_loss(table.labels, held_out, weights[None])[0]),
    )


def _out_of_fold(models: Sequence[Estimator], matrix: FloatArray, folds: IntArray) -> FloatArray:
    log_odds = np.empty(len(matrix))
    for fold, model in enumerate(models):
        log_odds[folds == fold] = model.log_odds(matrix[folds == fold])
    return log_odds


def _without_dead_columns(table: Table) -> Table:
    """Leave out inputs that training never saw, or saw with one value only: nothing can be learnt from them."""
    training = table.matrix[table.splits == "train"]
    alive = np.array([len(np.unique(column[np.isfinite(column)])) > 1 for column in training.T])
    if not alive.any():
        raise TableError("no feature column varies in the train split")
    dead = [name for name, keep in zip(table.inputs, alive, strict=True) if not keep]
    if dead:
        print(f"train_fusion: left out, without two different values in training: {', '.join(dead)}", file=sys.stderr)
    inputs = tuple(name for name, keep in zip(table.inputs, alive, strict=True) if keep)
    return replace(table, inputs=inputs, matrix=table.matrix[:, alive])


def _by_delivery(table: Table, probabilities: FloatArray, threshold: float, seed: int) -> dict[str, Metrics]:
    rows_of = {str(delivery): table.deliveries == delivery for delivery in np.unique(table.deliveries)}
    if len(rows_of) > 1:
        rows_of["all"] = np.ones(len(table), bool)
    return {
        delivery: plain(evaluate(table.labels[rows], probabilities[rows], table.sources[rows], threshold, seed))
        for delivery, rows in rows_of.items()
        if len(np.unique(table.labels[rows])) == 2
    }


def _without_each_family(
    table: Table, score: Callable[[Table], FloatArray], threshold: float, seed: int
) -> dict[str, Metrics]:
    measured = {}
    columns = families(table.inputs)
    for name in columns:
        lacking = score(replace(table, matrix=without(table.matrix, columns, columns.keys() - {name})))
        measured[name] = plain(evaluate(table.labels, lacking, table.sources, threshold, seed))
    return measured


def _quantiles(table: Table, label: int) -> FloatArray:
    """d x 5; NaN for an input without a value in this class."""
    columns = (column[np.isfinite(column)] for column in table.matrix[table.labels == label].T)
    rows = [np.quantile(column, QUANTILES) if len(column) else np.full(len(QUANTILES), np.nan) for column in columns]
    return np.array([[float(f"{value:.6g}") for value in row] for row in rows])


def _describe(table: Table) -> dict[str, Json]:
    groups = []
    for split in ("train", "val"):
        for label, name in ((0, "real"), (1, "ai")):
            rows = (table.splits == split) & (table.labels == label)
            sources = len(np.unique(table.sources[rows]))
            groups.append({"split": split, "label": name, "rows": int(rows.sum()), "sources": sources})
    found = {"table_sha256": table.sha256, "deliveries": np.unique(table.deliveries).tolist(), "groups": groups}
    by_image = int(np.char.startswith(table.sources, BY_IMAGE).sum())
    return found | ({"by_image": by_image} if by_image else {})


def _hash(probabilities: FloatArray) -> str:
    return hashlib.sha256("\n".join(f"{value:.6f}" for value in probabilities).encode()).hexdigest()


def _refuse_foreign_folder(folder: Path) -> None:
    if folder.exists() and not (folder / "manifest.json").is_file() and any(folder.iterdir()):
        raise TableError(f"{folder} holds other files than a fusion artifact; choose another --out")


def _install(model: FusionModel, folder: Path, text: str) -> None:
    """Replace the artifact in one go: a reader finds the old one, none, or the new one, never a mixture."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        model.save(fresh, text)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    FusionModel.load(folder)


def _plot(path: Path, model: FusionModel, table: Table, probabilities: FloatArray) -> None:
    weights = source_weights(table.labels, table.sources)
    try:
        report.plot(path, table, probabilities, weights, model.thresholds.label)
    except ImportError as error:
        print(f"train_fusion: no plot, {error.name} is not installed: pip install {error.name}", file=sys.stderr)
    else:
        print(f"wrote {path}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m fusion.train_fusion", __doc__)
    parser.add_argument("--table", type=Path, help=f"features (default: {TABLE} if there); made by: {EXTRACT_HINT}")
    parser.add_argument(
        "--dataset",
        type=image_table,
        help=f"images to measure where there is no table, also in S3 (default: {DATASET})",
    )
    parser.add_argument("--out", type=Path, help="artifact folder (default: a new one in models/saved_models)")
    parser.add_argument(
        "--profile",
        choices=tuple(PROFILES),
        default=DEFAULT_PROFILE,
        help="profile the artifact is for (default: %(default)s)",
    )
    parser.add_argument("--model", choices=(*KINDS, "best"), default="best", help="best: lowest out-of-fold log loss")
    parser.add_argument(
        "--inputs", nargs="+", default=["*"], metavar="PATTERN", help="feature columns to use, e.g. 'noise.*'"
    )
    parser.add_argument("--exclude", nargs="+", default=[], metavar="PATTERN", help="feature columns not to use")
    parser.add_argument(
        "--drop", type=_share, default=0.3, help="chance that a family of inputs is missing (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--target-real",
        type=_share,
        default=0.95,
        help="real images called real, worst delivery (default: %(default)s)",
    )
    parser.add_argument(
        "--subsets", action="store_true", help="calibrate every subset of detectors apart, for where some are missing"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes that measure images (default: %(default)s)")
    parser.add_argument("--about", default="", help="what the images are, one paragraph for the model card")
    parser.add_argument("--report", type=Path, help="folder for a plot (needs matplotlib)")
    arguments = parser.parse_args(argv)
    for kind in set(KINDS).difference(trainable()):  # now, not after the images were measured
        if arguments.model == kind:
            parser.exit(Exit.SETUP, f"--model {kind} is not installed: pip install xgboost\n")
        print(f"train_fusion: {kind} is not tried: pip install xgboost", file=sys.stderr)
    return arguments


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("must be at least 0 and less than 1")
    return value


if __name__ == "__main__":
    sys.exit(main())

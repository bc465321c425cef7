"""Train the head of the DINOv2 detector: python -m scripts.train_dino_svm --manifest dataset.csv

The manifest is a CSV with filepath, label (real | ai), source and, if it has one, split (train | val). Every image is
embedded as it is and as the web delivers it, so that a format or a quality says nothing about the label. Splits, folds
and the calibration are by source. The rows of split train make the head; those of val only measure it.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from threadpoolctl import threadpool_limits

from fusion.calibration import Calibration
from fusion.estimators import FloatArray
from fusion.train_fusion import assign_folds
from inference.dino import EMBEDDING, HEAD, Head, load_backbone, views
from models.loaders import Weights, cards, record_card
from training.embeddings import embed_manifest
from training.feature_table import IntArray, Table, source_weights
from training.fusion_card import markdown_table
from training.heads import log_odds, plain_head
from training.meta_models import fit_calibration
from training.metrics import THRESHOLD, evaluate, log_loss, plain
from utils.contracts import Sample
from utils.deliveries import DELIVERIES
from utils.device import get_device
from utils.errors import TableError
from utils.exits import Exit, command, command_parser
from utils.persistence import WEIGHTS, sha256_file
from utils.settings import load_settings


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One setting of a head, cross-validated over the training sources."""

    pipeline: Pipeline  # not fitted
    calibration: Calibration  # fitted to all out-of-fold log-odds
    held_out: FloatArray  # probability of each training row, from a head and a calibration without its fold
    loss: float  # log loss of held_out


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    settings = load_settings()
    weights = Weights.at(settings.models.weights_dir)
    device = get_device(settings.models.device)
    backbone = load_backbone(weights, arguments.backbone).to(device)
    card = weights.card(arguments.backbone)

    def embed(sample: Sample) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(backbone(views(sample).to(device)).mean(dim=0).float().cpu())

    identity = f"{card.name}-{card.sha256[:12]}-{EMBEDDING.partition(':')[0]}"
    cache = settings.models.weights_dir / "embeddings" / f"{identity}.npz"
    table = embed_manifest(arguments.manifest, arguments.deliveries, embed, cache, settings.decode)
    head, measured = train(table, arguments.head, arguments.grid, arguments.seed, card.name, card.sha256)
    out: Path = arguments.out or settings.models.weights_dir / HEAD
    head.save(
        out,
        {
            "command": f"--head {arguments.head}{' --grid' * arguments.grid} --seed {arguments.seed}",
            "data": describe(table),
            "metrics": measured,
        },
    )
    text = readme(head, table, measured)
    (out / "README.md").write_text(text, encoding="utf-8")
    print(text)
    _install(out / WEIGHTS, settings.models.weights_dir)
    return Exit.DONE


def train(
    table: Table, kind: str, grid: bool, seed: int, backbone: str, backbone_sha256: str
) -> tuple[Head, dict[str, dict[str, list[float]]]]:
    """Cross-validate each setting, fit the best to all training rows, calibrate and measure it.

    Returns:
        The head, and its metrics by what they were measured on.

    Raises:
        TableError: too few sources to cross-validate.
    """
    training, validation = (table.rows(table.splits == split) for split in ("train", "val"))
    if len(np.unique(training.labels)) < 2:
        raise TableError("the train split holds one label only")
    folds = assign_folds(training, seed)
    with threadpool_limits(1):  # sums in a fixed order: the same head on any number of cores
        # Threads: scikit-learn's solvers let go of Python's lock, and every candidate reads the same rows.
        tries = [delayed(cross_validate)(each, training, folds) for each in settings_of(kind, grid, seed)]
        best = min(Parallel(n_jobs=-1, prefer="threads")(tries), key=_loss)
        estimator = _fit(best.pipeline, training)
    head = Head(backbone, backbone_sha256, plain_head(estimator), best.calibration, str(estimator["head"]))
    measured = _measure("train, out of fold", training, best.held_out, seed)
    if len(np.unique(validation.labels)) == 2:
        probabilities = best.calibration(log_odds(estimator, validation.matrix))
        measured |= _measure("val", validation, probabilities, seed)
    return head, measured


def settings_of(kind: str, grid: bool, seed: int) -> list[Pipeline]:
    """The pipelines to compare; without ``grid`` only the first, which is the default."""
    heads: dict[str, list[tuple[Any, Mapping[str, Sequence[Any]]]]] = {
        "svm": [
            # Linear first: it is small, and linear probes carry over to unseen generators (Ojha et al., CVPR 2023).
            (LinearSVC(dual=False, random_state=seed), {"C": [1e-3, 1e-4, 1e-2, 1e-1]}),
            (SVC(kernel="rbf", gamma="auto"), {"C": [1.0, 10.0]}),
        ],
        "logistic": [(LogisticRegression(max_iter=1000), {"C": [1e-3, 1e-4, 1e-2, 1e-1]})],
        "forest": [
            (RandomForestClassifier(500, random_state=seed, n_jobs=-1), {"min_samples_leaf": [4, 1, 16]}),
        ],
    }
    pipelines = [
        Pipeline([("scale", StandardScaler()), ("head", clone(head).set_params(**setting))])
        for head, choices in heads[kind]
        for setting in ParameterGrid(choices)
    ]
    return pipelines if grid else pipelines[:1]


def cross_validate(pipeline: Pipeline, table: Table, folds: IntArray) -> Candidate:
    """Out-of-fold log-odds of every row, and the calibration they give; no source is on both sides of a fold."""
    odds = np.empty(len(table))
    for fold in np.unique(folds):
        fitted = _fit(clone(pipeline), table.rows(folds != fold))
        odds[folds == fold] = log_odds(fitted, table.matrix[folds == fold])
    weights = source_weights(table.labels, table.sources)
    calibration, held_out = fit_calibration(odds, table.labels, weights, len(np.unique(table.sources)), folds)
    return Candidate(pipeline, calibration, held_out, float(log_loss(table.labels, held_out, weights[None])[0]))


def _fit(pipeline: Pipeline, table: Table) -> Pipeline:
    weights = source_weights(table.labels, table.sources) * len(table)  # mean 1, so that C means the same everywhere
    return pipeline.fit(table.matrix, table.labels, head__sample_weight=weights)


def _loss(candidate: Candidate) -> float:
    return candidate.loss


def _measure(name: str, table: Table, probabilities: FloatArray, seed: int) -> dict[str, dict[str, list[float]]]:
    measured = {}
    for delivery in np.unique(table.deliveries):
        rows = table.deliveries == delivery
        measured[f"{name}, {delivery}"] = plain(
            evaluate(table.labels[rows], probabilities[rows], table.sources[rows], THRESHOLD, seed)
        )
    return measured


def describe(table: Table) -> dict[str, Any]:
    """What the head was made from, for people."""
    counts = {
        f"{split} {name}": [int(rows.sum()), len(np.unique(table.sources[rows]))]
        for split in ("train", "val")
        for label, name in ((0, "real"), (1, "ai"))
        if (rows := (table.splits == split) & (table.labels == label)).any()
    }
    return {"manifest_sha256": table.sha256, "rows_and_sources": counts}


def readme(head: Head, table: Table, measured: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The head's card as Markdown."""
    counts = describe(table)["rows_and_sources"].items()
    sections = [
        f"# {HEAD}: {head.classifier.kind} on {head.backbone}",
        f"`{head.settings}` on standardised embeddings, {head.calibration.kind} calibration. Classes weigh "
        "the same, and so does every source within its class: the probability is for equally frequent classes.",
        f"Backbone sha256 `{head.backbone_sha256}`. Embedding {EMBEDDING}.",
        "## Data",
        f"Manifest sha256 `{table.sha256}`: "
        + "; ".join(f"{name} {rows} rows of {sources} sources" for name, (rows, sources) in counts)
        + ". Splits, folds and calibration are by source.",
        "## Measured",
        "95 % bootstrap intervals over sources.",
        markdown_table(f"called AI from {THRESHOLD}", measured),
        f"Trained with scikit-learn {sklearn.__version__}, NumPy {np.__version__} on {platform.system()} "
        f"{platform.machine()}.",
    ]
    return "\n\n".join(sections) + "\n"


def _install(path: Path, weights_dir: Path) -> None:
    """Make the head a card of this installation, if it lies in the weights folder."""
    if not path.resolve().is_relative_to(weights_dir.resolve()):
        print(f"wrote {path.parent}; to use it, train with --out inside {weights_dir}")
        return
    file = path.resolve().relative_to(weights_dir.resolve()).as_posix()
    record_card(HEAD, {"file": file, "size": path.stat().st_size, "sha256": sha256_file(path)}, weights_dir)
    print(f"installed {path.parent}")


def _deliveries(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in DELIVERIES]:
        raise argparse.ArgumentTypeError(f"unknown deliveries {unknown}; known: {', '.join(DELIVERIES)}")
    return names


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.train_dino_svm", __doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="CSV: filepath,label,source[,split]")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: {HEAD} in IMGV_WEIGHTS_DIR, and installed")
    parser.add_argument(
        "--backbone", default=cards()[HEAD].backbone, metavar="CARD", help="weights card (default: %(default)s)"
    )
    parser.add_argument("--head", choices=("svm", "logistic", "forest"), default="svm")
    parser.add_argument(
        "--grid", action="store_true", help="compare settings by cross-validation, not only the default"
    )
    parser.add_argument(
        "--deliveries", type=_deliveries, default=DELIVERIES, help="comma separated (default: clean,web,hard)"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

"""Fits heads to embeddings: settings compared on held-out sources, calibrated, measured, reported. Knows no image.

Rows of the splits train and fusion make a head, those of val only measure it. Splits, folds and calibration are by
source: no source is on both sides of anything.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report, confusion_matrix
from sklearn.model_selection import ParameterGrid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from threadpoolctl import threadpool_limits

from fusion.calibration import Calibration
from fusion.estimators import FloatArray
from fusion.meta_model import QUANTILES
from fusion.train_fusion import assign_folds
from inference.frozen import Head
from training import fusion_card
from training.embeddings import Embedded
from training.feature_table import IntArray, Table, source_weights
from training.heads import log_odds, plain_head
from training.meta_models import fit_calibration
from training.metrics import evaluate, log_loss, plain
from training.thresholds import choose_thresholds
from utils.errors import TableError

KINDS = ("svm", "logistic", "forest", "mlp")
HIDDEN = 32  # units of the MLP
TARGET_REAL = 0.95  # real images called real in the worst delivery, at the threshold of a head that judges alone
PLOT = "roc.png"


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One setting of a head, cross-validated over the training sources."""

    pipeline: Pipeline  # not fitted
    calibration: Calibration  # fitted to all out-of-fold log-odds
    held_out: FloatArray  # probability of each training row, from a head and a calibration without its fold
    loss: float  # log loss of held_out


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A head, and how well it judges what it did not see."""

    head: Head
    probabilities: FloatArray  # of every row: out of fold where the head learnt from it
    compared: Mapping[str, float]  # setting -> log loss out of fold
    metrics: Mapping[str, Mapping[str, list[float]]]  # by what they were measured on


def fit(embedded: Embedded, kind: str, grid: bool = True, seed: int = 0) -> Fitted:
    """Cross-validate each setting, fit the best to all training rows, calibrate and measure it.

    Args:
        kind: of KINDS.
        grid: compare settings; else the first of them is taken.

    Raises:
        TableError, TooFewImages: one label only, or too few sources to cross-validate.
    """
    table = embedded.table
    learnt = table.splits != "val"
    training, validation = table.rows(learnt), table.rows(~learnt)
    if len(np.unique(training.labels)) < 2:
        raise TableError("the train split holds one label only")
    folds = assign_folds(training, seed)
    with threadpool_limits(1):  # sums in a fixed order: the same head on any number of cores
        # Threads: scikit-learn's solvers let go of Python's lock, and every candidate reads the same rows.
        tries = [delayed(cross_validate)(each, training, folds) for each in settings_of(kind, grid, seed)]
        candidates = Parallel(n_jobs=-1, prefer="threads")(tries)
        best = min(candidates, key=_loss)
        estimator = _fit(best.pipeline, training)
    thresholds = choose_thresholds(training, best.held_out, TARGET_REAL)
    head = Head(
        embedded.about["backbone"],
        embedded.about["backbone_sha256"],
        embedded.about["embedding"],
        plain_head(estimator),
        best.calibration,
        _words(best.pipeline),
        thresholds,
        {
            label: tuple(
                round(float(each), 6) for each in np.quantile(best.held_out[training.labels == value], QUANTILES)
            )
            for label, value in (("real", 0), ("ai", 1))
        },
    )
    probabilities = np.empty(len(table))
    probabilities[learnt] = best.held_out
    probabilities[~learnt] = head.probabilities(validation.matrix) if len(validation) else ()
    measured = _measure("train, out of fold", training, best.held_out, thresholds.label, seed)
    if len(np.unique(validation.labels)) == 2:
        measured |= _measure("val", validation, probabilities[~learnt], thresholds.label, seed)
    return Fitted(head, probabilities, {_words(each.pipeline): each.loss for each in candidates}, measured)


def settings_of(kind: str, grid: bool, seed: int) -> list[Pipeline]:
    """The pipelines to compare; without ``grid`` only the first, which is the default."""
    heads: dict[str, list[tuple[Any, Mapping[str, Sequence[Any]]]]] = {
        "svm": [
            # Linear first: it is small, and linear probes carry over to unseen generators (Ojha et al., CVPR 2023).
            (LinearSVC(dual="auto", random_state=seed, max_iter=5000), {"C": [1e-3, 1e-5, 1e-4, 1e-2]}),
            (SVC(kernel="rbf", gamma="auto"), {"C": [1.0, 10.0]}),
        ],
        "logistic": [(LogisticRegression(max_iter=1000), {"C": [1e-3, 1e-4, 1e-2, 1e-1]})],
        "forest": [
            (
                RandomForestClassifier(300, max_features="sqrt", random_state=seed),
                {"min_samples_leaf": [4, 1, 16]},
            ),
        ],
        "mlp": [
            # No early stopping: held-out rows of its own would share sources with those it learns from.
            (
                MLPClassifier((HIDDEN,), solver="lbfgs", max_iter=150, random_state=seed),
                {"alpha": [10.0, 1.0, 100.0]},
            ),
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
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    weights = source_weights(table.labels, table.sources) * len(table)  # mean 1, so that C means the same everywhere
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of steps is part of a setting
        return pipeline.fit(table.matrix, table.labels, head__sample_weight=weights)


def _loss(candidate: Candidate) -> float:
    return candidate.loss


def _words(pipeline: Pipeline) -> str:
    return " ".join(str(pipeline["head"]).split())


def _measure(
    name: str, table: Table, probabilities: FloatArray, threshold: float, seed: int
) -> dict[str, dict[str, list[float]]]:
    measured = {}
    for delivery in np.unique(table.deliveries):
        rows = table.deliveries == delivery
        measured[f"{name}, {delivery}"] = plain(
            evaluate(table.labels[rows], probabilities[rows], table.sources[rows], threshold, seed)
        )
    return measured


# --- what a person reads


def describe(table: Table) -> dict[str, Any]:
    """What the head was made from."""
    counts = {
        f"{split} {name}": [int(rows.sum()), len(np.unique(table.sources[rows]))]
        for split in np.unique(table.splits).tolist()
        for label, name in ((0, "real"), (1, "ai"))
        if (rows := (table.splits == split) & (table.labels == label)).any()
    }
    return {"manifest_sha256": table.sha256, "rows_and_sources": counts}


def readme(fitted: Fitted, table: Table) -> str:
    """The head's card as Markdown, with the classification report and the confusion matrix."""
    head, counts = fitted.head, describe(table)["rows_and_sources"].items()
    sections = [
        f"# {head.classifier.kind} on {head.backbone}",
        f"`{head.settings}` on standardised embeddings, {head.calibration.kind} calibration, AI from "
        f"{head.thresholds.label:.4f} where this head judges alone: {TARGET_REAL:.0%} of real images called real, out "
        "of fold, in the worst delivery. Classes weigh the same, and so does every source within its class.",
        f"Backbone sha256 `{head.backbone_sha256}`. Embedding {head.embedding}.",
        "## Data",
        f"Manifest sha256 `{table.sha256}`: "
        + "; ".join(f"{name} {rows} rows of {sources} sources" for name, (rows, sources) in counts)
        + ". Splits, folds and calibration are by source.",
        "## Settings compared",
        "Log loss out of fold.",
        "\n".join(["| setting | log loss |", "|---|---|"])
        + "".join(f"\n| `{setting}` | {loss:.4f} |" for setting, loss in fitted.compared.items()),
        "## Measured",
        "95 % bootstrap intervals over sources.",
        fusion_card.markdown_table(f"called AI from {head.thresholds.label:.3f}", fitted.metrics),
        *_report(fitted, table),
        f"Trained with scikit-learn {sklearn.__version__}, NumPy {np.__version__} on {platform.system()} "
        f"{platform.machine()}.",
    ]
    return "\n\n".join(sections) + "\n"


def _report(fitted: Fitted, table: Table) -> list[str]:
    """On validation sources where both labels have some, else out of fold; every row counts once here."""
    rows, where = measured_rows(table)
    labels, called = table.labels[rows], (fitted.probabilities[rows] >= fitted.head.thresholds.label).astype(int)
    names = ["real", "ai"]
    report = classification_report(labels, called, labels=[0, 1], target_names=names, digits=3, zero_division=0)
    (right_real, false_alarms), (missed, right_ai) = confusion_matrix(labels, called, labels=[0, 1]).tolist()
    return [
        f"## Classification report, {where}",
        f"Rows, not sources, count here. {PLOT} has the ROC curves.",
        f"```\n{report.rstrip()}\n```",
        "## Confusion matrix",
        "\n".join(
            [
                "| | called real | called AI |",
                "|---|---|---|",
                f"| real | {right_real} | {false_alarms} |",
                f"| AI | {missed} | {right_ai} |",
            ]
        ),
    ]


def measured_rows(table: Table) -> tuple[Any, str]:
    validation = table.splits == "val"
    if len(np.unique(table.labels[validation])) == 2:
        return validation, "validation sources"
    return ~validation, "training sources, out of fold"


def write(fitted: Fitted, table: Table, folder: Path, command: str) -> str:
    """Write a head's folder: weights and card, README, metrics and plot. Returns the README."""
    facts = {"command": command, "data": describe(table)}
    fitted.head.save(folder, facts)
    text = readme(fitted, table)
    (folder / "README.md").write_text(text, encoding="utf-8")
    found = {"compared": fitted.compared, "metrics": fitted.metrics, **facts}
    (folder / "metrics.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows, _ = measured_rows(table)
    measured = table.rows(rows)
    weights = source_weights(measured.labels, measured.sources)
    fusion_card.plot(folder / PLOT, measured, fitted.probabilities[rows], weights, fitted.head.thresholds.label)
    return text

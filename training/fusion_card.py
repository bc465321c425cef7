"""The artifact's README and plot, from the metrics that training measured. Computes nothing itself."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fusion.estimators import FloatArray
from fusion.meta_model import FusionModel
from training.feature_table import Table
from training.metrics import ECE_BINS
from utils.contracts import Json

METRICS = {  # key in model.json -> heading; false alarms first, because they are what hurts people
    "real_called_real": "real called real",
    "ai_called_ai": "AI called AI",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "ece": "ECE",
    "brier": "Brier",
}

FLATTER = (
    "figures by image flatter: pictures of one camera or generator are on both sides of the split; put each origin's "
    "images into a folder of its own (data/real/ORIGIN) for figures that hold"
)


SUBSETS = (
    "Where detectors are missing, or all forensics, what is left is calibrated by itself, "
    "fitted out of fold with the other parts taken away."
)


def _xgboost() -> str:
    """Its version, where it is installed: otherwise it was not tried."""
    return f"XGBoost {version('xgboost')}, " if find_spec("xgboost") else ""


def readme(model: FusionModel, drop: float, seed: int, target_real: float, about: str) -> str:
    """The model card as Markdown."""
    metrics, cuts = model.metrics, model.thresholds
    sections = [
        f"# {model.name}",
        f"Fusion artifact of the `{model.profile}` profile: {model.estimator.kind} over {_inputs(model)}, "
        f"{model.calibration.kind} calibration, label AI from {cuts.label:.4f}.",
        "## Data and split",
        *([about] if about else []),
        _data(metrics["data"]),
        "## Recipe",
        f"Seed {seed}; each family of inputs missing with probability {drop:g} in two thirds of the training rows; "
        "the classes weigh the same, and so does every source within its class: the probability is for equally "
        f"frequent classes. Trained with scikit-learn {version('scikit-learn')}, {_xgboost()}NumPy "
        f"{version('numpy')} on {platform.system()} {platform.machine()}.",
        *([SUBSETS] if model.subsets else []),
        "## Kinds compared",
        "Out-of-fold over grouped folds of the training sources, calibrated on the other folds, each kind at the "
        f"threshold that calls {target_real:.0%} of real images real in its worst delivery. Log loss, by which "
        "the best is known: " + ", ".join(f"{kind} {loss:.3f}" for kind, loss in metrics["log_loss"].items()) + ".",
        markdown_table("kind", metrics["comparison"]),
        "## Shipped model, out of fold",
        "Training sources, each scored by a model that did not see it. The threshold was chosen on these rows.",
        markdown_table("delivery", metrics["out_of_fold"]),
    ]
    if metrics["validation"]:
        sections += [
            "## Shipped model, validation sources",
            "Seen by nothing above: not by the model, the calibration or the threshold.",
            markdown_table("delivery", metrics["validation"]),
        ]
    sections += [
        "## Tiers",
        f"Cuts: real < {cuts.real:.4f}, likely_real < {cuts.likely_real:.4f}, inconclusive < {cuts.likely_ai:.4f}, "
        f"likely_ai < {cuts.ai:.4f} <= ai (1 = never). Measured on the {metrics['tiers_measured_on']} sources, classes "
        "equally frequent; the error is that of the label.",
        _tiers(metrics["tiers"]),
        *(_without(metrics) if len(metrics["without"]) > 1 else []),
        "## Limits",
        "Intervals are 95 % bootstrap intervals over sources; that of the ECE may lie above its value, since an error "
        "that is never negative grows with every resampling. The probability holds for images like those of the table: "
        "its generators, cameras and deliveries. An input that was computed by a network trained on the table's own "
        "images looks better here than it is.",
        f"Hash of the predictions on the whole table: `{metrics['predictions_sha256']}`.",
    ]
    return "\n\n".join(sections) + "\n"


def markdown_table(key: str, rows: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """One line per row, one column per metric, value and interval."""
    lines = [f"| {key} | " + " | ".join(METRICS.values()) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name, metrics in rows.items():
        cells = ("{:.3f} [{:.3f}, {:.3f}]".format(*metrics[metric]) for metric in METRICS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _inputs(model: FusionModel) -> str:
    count = len(model.inputs)
    return f"{count} inputs" if count > 1 else f"`{model.inputs[0]}` alone"


def _without(metrics: Mapping[str, Json]) -> list[str]:
    return [
        "## With a family of inputs missing",
        f"Measured on the {metrics['tiers_measured_on']} sources.",
        markdown_table("without", metrics["without"]),
    ]


def _data(data: Mapping[str, Json]) -> str:
    lines = ["| split | label | rows | sources |", "|---|---|---|---|"]
    lines += ["| {split} | {label} | {rows} | {sources} |".format(**group) for group in data["groups"]]
    note = f"Feature table sha256 `{data['table_sha256']}`; deliveries: {', '.join(data['deliveries'])}."
    how = " Splits and folds are by source."
    if data.get("by_image"):
        how += f" {data['by_image']} rows are of images without a source, split by image: {FLATTER}."
    return note + how + "\n\n" + "\n".join(lines)


def _tiers(tiers: Mapping[str, Mapping[str, float | None]]) -> str:
    lines = ["| tier | share of images | wrong among them |", "|---|---|---|"]
    for name, row in tiers.items():
        error = "none seen" if row["error"] is None else f"{row['error']:.1%}"
        lines.append(f"| {name} | {row['coverage']:.1%} | {error} |")
    return "\n".join(lines)


def plot(path: Path, table: Table, probabilities: FloatArray, weights: FloatArray, threshold: float) -> None:
    """ROC by delivery, reliability and score distribution as one PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    figure = Figure(figsize=(15, 5), layout="constrained")
    roc, reliability, scores = figure.subplots(1, 3)
    for delivery in np.unique(table.deliveries):
        rows = table.deliveries == delivery
        if 0 < table.labels[rows].sum() < rows.sum():
            false_alarms, found, _ = roc_curve(table.labels[rows], probabilities[rows], sample_weight=weights[rows])
            roc.plot(false_alarms, found, label=str(delivery))
    roc.set(xlabel="real images called AI", ylabel="AI images found", title="ROC")
    roc.legend()

    edges = np.linspace(0, 1, ECE_BINS + 1)
    mass, _ = np.histogram(probabilities, edges, weights=weights)
    said, _ = np.histogram(probabilities, edges, weights=weights * probabilities)
    seen, _ = np.histogram(probabilities, edges, weights=weights * table.labels)
    full = mass > 0
    reliability.plot((0, 1), (0, 1), color="0.7")
    reliability.plot(said[full] / mass[full], seen[full] / mass[full], marker="o")
    reliability.set(xlabel="probability", ylabel="share of AI images", title="Reliability")

    for label, name in ((0, "real"), (1, "AI")):
        rows = table.labels == label
        scores.hist(probabilities[rows], edges, weights=weights[rows], alpha=0.6, label=name)
    scores.axvline(threshold, color="0.3", linestyle="--")
    scores.set(xlabel="probability", title="Scores")
    scores.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)

"""Measure the product on labelled images: python -m scripts.evaluate --manifest dataset.csv --out report

Every image is measured by the production conductor as it is (clean) and as people send it on (web, hard), and judged by
the fusion artifact alone: provenance, which would only make the numbers better, is left out. evaluation.md holds the
tables, report.html also the plots and the worst mistakes: keep it on this machine, it shows the images.
"""

from __future__ import annotations

import argparse
import base64
import csv
import html
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix

from fusion import report
from fusion.estimators import FloatArray
from fusion.meta_model import FusionModel
from fusion.metrics import Interval, evaluate
from fusion.table import Table, TableError, families, read_table, source_weights
from inference.detector import FUSION_OF_PROFILE
from inference.registry import DETECTORS
from models.loaders import SHIPPED
from scripts import extract_features
from utils.deliveries import DELIVERIES
from utils.errors import VerifyError
from utils.ingress import Ingress
from utils.settings import load_settings

NAMES = ("real", "AI")
KNOWN = ("filepath", "generator", "kind", "content")
WORST = 12  # mistakes of each kind shown
THUMBNAIL = 256  # px, the longer side
ALONE = ("_prob", "_score", "_anomaly")  # features of detectors that are an opinion by themselves

Metrics = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Rows of the feature table, what the artifact says about them, and what the manifest says."""

    model: FusionModel
    threshold: float
    table: Table  # every feature column
    known: tuple[Mapping[str, str], ...]  # n; filepath, generator, kind, content
    probabilities: FloatArray

    @property
    def predicted(self) -> NDArray[np.int64]:
        return (self.probabilities >= self.threshold).astype(np.int64)

    def rows(self, chosen: NDArray[np.bool_]) -> Judged:
        known = tuple(each for each, keep in zip(self.known, chosen, strict=True) if keep)
        return Judged(self.model, self.threshold, self.table.rows(chosen), known, self.probabilities[chosen])

    def by_delivery(self) -> Iterator[tuple[str, Judged]]:
        present = [str(each) for each in np.unique(self.table.deliveries)]
        for name in sorted(present, key=lambda each: DELIVERIES.index(each) if each in DELIVERIES else len(DELIVERIES)):
            yield name, self.rows(self.table.deliveries == name)

    def values(self, key: str) -> NDArray[np.str_]:
        return np.array([each.get(key) or "" for each in self.known], dtype=np.str_)

    def measure(self, probabilities: FloatArray | None = None) -> Metrics | None:
        """value, low, high by metric; None where one of the labels is missing."""
        if len(np.unique(self.table.labels)) < 2:
            return None
        scores = self.probabilities if probabilities is None else probabilities
        return _plain(evaluate(self.table.labels, scores, self.table.sources, self.threshold))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    features = arguments.table or arguments.out / "features.csv"
    if arguments.table is None:
        command = ["--manifest", str(arguments.manifest), "--out", str(features), "--jobs", str(arguments.jobs)]
        extract_features.main(command)
    try:
        judged = judge(features, arguments.manifest, arguments.fusion, arguments.split)
    except (TableError, VerifyError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    sections = measure(judged)
    text = markdown(judged, sections)
    (arguments.out / "evaluation.md").write_text(text, encoding="utf-8")
    (arguments.out / "metrics.json").write_text(json.dumps(sections, indent=1), encoding="utf-8")
    plot = _plot(judged, arguments.out / "plots.png")
    page = _page(text, plot, judged, arguments.manifest)
    (arguments.out / "report.html").write_text(page, encoding="utf-8")
    print(text)
    return 0


def judge(features: Path, manifest: Path | None, fusion: str, split: str) -> Judged:
    """Apply the artifact to a feature table.

    Raises:
        TableError: the table lacks an input, a label, or every row of the split.
        FusionCorrupt, FusionMismatch: the artifact cannot be used.
    """
    settings = load_settings()
    name = fusion or settings.fusion or FUSION_OF_PROFILE[settings.profile]
    model = FusionModel.load(SHIPPED / name if (SHIPPED / name).is_dir() else Path(name))
    table = read_table(features)
    known = _known(features, manifest)
    if absent := sorted(set(model.inputs) - set(table.inputs)):
        raise TableError(f"{features} has no column {', '.join(absent)}, which {model.name} reads")
    threshold = model.thresholds.label if settings.threshold is None else settings.threshold
    judged = Judged(model, threshold, table, known, _probabilities(model, table, table.matrix))
    if split == "all":
        return judged
    if split not in table.splits:
        raise TableError(f"{features} has no rows of split {split}; choose another --split")
    return judged.rows(table.splits == split)


def _known(features: Path, manifest: Path | None) -> tuple[Mapping[str, str], ...]:
    """What is known of each real and AI row, in the order of ``read_table``."""
    more: dict[str, dict[str, str]] = {}
    if manifest is not None:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            more = {row["filepath"]: row for row in csv.DictReader(file)}
    with features.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in ("real", "ai")]
    return tuple(
        {key: row.get(key) or more.get(row.get("filepath", ""), {}).get(key, "") for key in KNOWN} for row in rows
    )


def _probabilities(model: FusionModel, table: Table, matrix: FloatArray) -> FloatArray:
    return model.probabilities(matrix[:, [table.inputs.index(name) for name in model.inputs]])


# --- what is measured


def measure(judged: Judged) -> dict[str, dict[str, Metrics]]:
    """Every table of the report: title -> row -> metric -> numbers."""
    sections: dict[str, dict[str, Metrics]] = {"By delivery": {}}
    for delivery, rows in judged.by_delivery():
        _add(sections["By delivery"], delivery, rows.measure())
        for content in np.unique(rows.values("content")):
            if content:
                matched = sections.setdefault("Content matched", {})
                _add(matched, f"{delivery}, {content}", rows.rows(rows.values("content") == content).measure())
        alone = sections.setdefault("Each detector alone", {})
        for name, scores in _detectors(rows.table):
            finite = np.isfinite(scores)
            _add(alone, f"{delivery}, {name}", rows.rows(finite).measure(scores[finite]))
        _add(alone, f"{delivery}, fusion", rows.measure())
        without = sections.setdefault("Fusion without", {})
        for name, columns in families(rows.table.inputs).items():
            if any(rows.table.inputs[column] in judged.model.inputs for column in columns):
                matrix = rows.table.matrix.copy()
                matrix[:, columns] = np.nan
                _add(without, f"{delivery}, {name}", rows.measure(_probabilities(judged.model, rows.table, matrix)))
    return {title: table for title, table in sections.items() if table}


def _add(table: dict[str, Metrics], name: str, metrics: Metrics | None) -> None:
    if metrics is not None:
        table[name] = metrics


def _detectors(table: Table) -> Iterator[tuple[str, FloatArray]]:
    """Opinions of the detectors that measured anything."""
    names = dict.fromkeys(name for spec in DETECTORS.values() for name in spec.features if name.endswith(ALONE))
    for name in names:
        if name in table.inputs:
            scores = table.matrix[:, table.inputs.index(name)]
            if np.isfinite(scores).any():
                yield name, scores


def shares(judged: Judged, label: int, key: str) -> list[tuple[str, int, int, dict[str, float]]]:
    """By generator or kind, worst first: name, images, sources, and the share judged rightly in each delivery."""
    rows = judged.rows(judged.table.labels == label)
    names = rows.values(key)
    names = np.where(names == "", rows.table.sources, names)
    found = []
    for name in np.unique(names):
        chosen = rows.rows(names == name)
        right = {delivery: float((each.predicted == label).mean()) for delivery, each in chosen.by_delivery()}
        images = len(set(chosen.values("filepath")))
        found.append((str(name), images, len(np.unique(chosen.table.sources)), right))
    return sorted(found, key=lambda each: np.mean(list(each[3].values())))


def _plain(metrics: Mapping[str, Interval]) -> Metrics:
    return {name: [round(value, 5) for value in (each.value, each.low, each.high)] for name, each in metrics.items()}


# --- what is written


def markdown(judged: Judged, sections: Mapping[str, Mapping[str, Metrics]]) -> str:
    """The tables of docs/evaluation.md."""
    counts = [
        f"{len(set(rows.values('filepath')))} {name} images of {len(np.unique(rows.table.sources))} sources"
        for label, name in enumerate(NAMES)
        if len((rows := judged.rows(judged.table.labels == label)).table)
    ]
    parts = [
        "# Evaluation",
        f"Fusion artifact `{judged.model.name}` at threshold {judged.threshold:.4f}, on {' and '.join(counts)}. Every "
        "source weighs the same within its label; 95 % bootstrap intervals over sources. Provenance is not used.",
    ]
    for title, table in sections.items():
        note = (
            "At the artifact's threshold, which is not theirs: compare the AUROC." if title.startswith("Each") else ""
        )
        parts += [f"## {title}", note, report.markdown_table("", table)]
    parts += ["## AI images found, by generator", _share_table(judged, 1, "generator")]
    parts += ["## Real images called real, by kind", _share_table(judged, 0, "kind")]
    for delivery, rows in judged.by_delivery():
        truth, said = ([NAMES[each] for each in values] for values in (rows.table.labels, rows.predicted))
        matrix = confusion_matrix(truth, said, labels=NAMES)
        parts += [
            f"## Images, {delivery}",
            "| | called real | called AI |\n|---|---|---|\n"
            + "\n".join(f"| {name} | {row[0]} | {row[1]} |" for name, row in zip(NAMES, matrix, strict=True)),
            f"```\n{classification_report(truth, said, labels=NAMES, zero_division=0)}```",
        ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _share_table(judged: Judged, label: int, key: str) -> str:
    deliveries = [name for name, _ in judged.by_delivery()]
    lines = [f"| {key} | images | sources | " + " | ".join(deliveries) + " |", "|---" * (3 + len(deliveries)) + "|"]
    for name, images, sources, right in shares(judged, label, key):
        cells = " | ".join(f"{right[each]:.0%}" if each in right else "" for each in deliveries)
        lines.append(f"| {name.replace('|', '/')} | {images} | {sources} | {cells} |")
    return "\n".join(lines)


def _plot(judged: Judged, path: Path) -> Path | None:
    weights = source_weights(judged.table.labels, judged.table.sources)
    try:
        report.plot(path, judged.table, judged.probabilities, weights, judged.threshold)
    except ImportError as error:
        print(f"evaluate: no plots, {error.name} is not installed", file=sys.stderr)
        return None
    return path


def _page(text: str, plot: Path | None, judged: Judged, manifest: Path | None) -> str:
    parts = ["<!doctype html><meta charset=utf-8><title>Evaluation</title>"]
    parts.append("<style>body{font-family:sans-serif;margin:2em}figure{display:inline-block;width:270px}</style>")
    if plot is not None:
        parts.append(f'<img src="{_data_uri(plot.read_bytes(), "png")}" alt="ROC, reliability and scores">')
    if manifest is not None:
        for label, title in ((0, "Worst false alarms"), (1, "Worst misses")):
            parts.append(f"<h2>{title}</h2>")
            parts += _figures(judged, label, manifest.parent)
    parts.append(f"<pre>{html.escape(text)}</pre>")
    return "\n".join(parts)


def _figures(judged: Judged, label: int, folder: Path) -> Iterator[str]:
    """The images most wrongly judged, each once."""
    rows = judged.rows((judged.table.labels == label) & (judged.predicted != label))
    order = np.argsort(rows.probabilities if label else -rows.probabilities, kind="stable")
    shown: dict[str, str] = {}
    for index in order:
        path = rows.known[index]["filepath"]
        if path not in shown and len(shown) < WORST:
            caption = f"{rows.probabilities[index]:.2f} {rows.table.deliveries[index]}, {rows.table.sources[index]}"
            image = f'<img src="{_thumbnail(folder / path)}" alt="">'
            shown[path] = f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
    yield from shown.values()


def _thumbnail(path: Path) -> str:
    with Ingress(load_settings()) as ingress:
        try:
            rgb = ingress.load(str(path)).upright
        except VerifyError:
            return ""
    scale = min(1.0, THUMBNAIL / max(rgb.shape[:2]))
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    out = BytesIO()
    Image.fromarray(np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA))).save(out, "JPEG", quality=80)
    return _data_uri(out.getvalue(), "jpeg")


def _data_uri(raw: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.evaluate", description=__doc__)
    parser.add_argument("--manifest", type=Path, help="CSV: filepath,label,source,split[,generator,kind,content]")
    parser.add_argument("--table", type=Path, help="a table of scripts.extract_features, instead of measuring now")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    parser.add_argument("--fusion", default="", help="artifact; default: that of the settings")
    parser.add_argument("--split", default="val", choices=("train", "val", "all"))
    parser.add_argument("--jobs", type=int, default=2, help="processes that measure")
    arguments = parser.parse_args(argv)
    if arguments.manifest is None and arguments.table is None:
        parser.error("give --manifest, --table, or both")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

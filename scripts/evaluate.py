"""Measure the product on labelled images: python -m scripts.evaluate --manifest dataset.csv --out report

Every image is measured by the production conductor as it is (clean) and as people send it on (web, hard), and judged by
the fusion artifact alone: provenance, which would only make the numbers better, is left out. evaluation.md (or the page
that --markdown names) holds the tables and may be published; report.html also shows the plots and the worst mistakes:
keep it on this machine, it shows the images.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import hashlib
import html
import json
import re
import shlex
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

from fusion.decision import TIERS
from fusion.estimators import FloatArray
from fusion.meta_model import FusionModel
from inference.detector import fusion_folder
from inference.registry import DETECTORS
from ingress.sources import Ingress
from scripts import extract_features
from training import fusion_card as report
from training import localisation
from training.datasets import read_rows
from training.deliveries import DELIVERIES
from training.feature_table import Table, families, read_columns, read_table, source_weights
from training.metrics import evaluate, plain
from training.thresholds import measure_tiers
from utils.errors import TableError, VerifyError
from utils.settings import load_settings

NAMES = ("real", "AI")
KNOWN = ("filepath", "generator", "kind", "content", "models")
WORST = 12  # mistakes of each kind shown
FEWEST = 5  # images of a generator or kind that has a row of its own: fewer say nothing
THUMBNAIL = 256  # px, the longer side
ALONE = ("_prob", "_score", "_anomaly")  # features of detectors that are an opinion by themselves

ALONE_METRICS = {"real_called_real": "real called real", "ai_called_ai": "AI called AI", "auroc": "AUROC"}

Metrics = Mapping[str, Sequence[float]]
Tiers = Mapping[str, Mapping[str, float | None]]  # tier -> coverage, error


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Rows of the feature table, what the artifact says about them, and what the manifest says."""

    model: FusionModel
    threshold: float
    table: Table  # every feature column
    known: tuple[Mapping[str, str], ...]  # n; by KNOWN
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

    def measure(self, scores: FloatArray | None = None, threshold: float | None = None) -> Metrics | None:
        """value, low, high by metric, of the fusion's or other scores; None where one of the labels is missing."""
        if len(np.unique(self.table.labels)) < 2:
            return None
        scores = self.probabilities if scores is None else scores
        threshold = self.threshold if threshold is None else threshold
        return plain(evaluate(self.table.labels, scores, self.table.sources, threshold))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    features = arguments.table or arguments.out / "features.csv"
    settings = load_settings()
    try:
        if arguments.table is None:
            command = ["--manifest", str(arguments.manifest), "--split", arguments.split]
            if status := extract_features.main([*command, "--out", str(features), "--jobs", str(arguments.jobs)]):
                return status
        folder = fusion_folder(settings.model_copy(update={"fusion": arguments.fusion or settings.fusion}))
        judged = judge(features, arguments.manifest, folder, arguments.split, settings.threshold)
        located = localisation.locate(arguments.masks, settings) if arguments.masks else None
    except VerifyError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    measured = measure(judged)
    text = "\n\n".join([_head(judged, folder, sys.argv[1:] if argv is None else argv), *markdown(judged, measured)])
    numbers = {**measured, "Tiers": tiers(judged)}
    if located is not None:
        text += f"\n\n## Localisation\n\n{localisation.markdown(located)}"
        numbers["Localisation"] = localisation.summarise(located.located)
    page = arguments.markdown or arguments.out / "evaluation.md"
    page.write_text(f"{text}\n", encoding="utf-8")
    (arguments.out / "metrics.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    plot = _plot(judged, arguments.out / "plots.png")
    (arguments.out / "report.html").write_text(_page(text, plot, judged, arguments.manifest), encoding="utf-8")
    print(text)
    return 0


def judge(features: Path, manifest: Path | None, artifact: Path, split: str, threshold: float | None = None) -> Judged:
    """Apply the artifact to a feature table.

    Args:
        threshold: of the label; None: the artifact's.

    Raises:
        TableError: the table lacks an input, a label, or every row of the split.
        FusionCorrupt, FusionMismatch: the artifact cannot be used.
    """
    model = FusionModel.load(artifact)
    table = read_table(features)
    known = _known(features, manifest)
    if absent := sorted(set(model.inputs) - set(table.inputs)):
        raise TableError(f"{features} has no column {', '.join(absent)}, which {model.name} reads")
    threshold = model.thresholds.label if threshold is None else threshold
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
        more = {row["filepath"]: row for row in read_rows(manifest, ("filepath",))}
    columns = {name: cells for name, cells in read_columns(features).items() if name in (*KNOWN, "label")}
    if "filepath" not in columns:
        raise TableError(f"{features} has no column filepath, which tells the images apart")
    rows = [dict(zip(columns, map(str, cells), strict=True)) for cells in zip(*columns.values(), strict=True)]
    return tuple(
        {key: row.get(key) or more.get(row["filepath"], {}).get(key, "") for key in KNOWN}
        for row in rows
        if row["label"] in ("real", "ai")
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
        for name, metrics in _alone(rows):
            sections.setdefault("Each detector alone", {})[f"{delivery}, {name}"] = metrics
        without = sections.setdefault("Fusion without", {})
        for name, columns in families(rows.table.inputs).items():
            read = any(rows.table.inputs[column] in judged.model.inputs for column in columns)
            if read and np.isfinite(rows.table.matrix[:, columns]).any():
                matrix = rows.table.matrix.copy()
                matrix[:, columns] = np.nan
                _add(without, f"{delivery}, {name}", rows.measure(_probabilities(judged.model, rows.table, matrix)))
    return {title: table for title, table in sections.items() if table}


def _add(table: dict[str, Metrics], name: str, metrics: Metrics | None) -> None:
    if metrics is not None:
        table[name] = metrics


def _alone(rows: Judged) -> Iterator[tuple[str, Metrics]]:
    """Fusion and each detector that measured anything, at the cut that calls as many real images real as fusion does.

    A detector that has no number for an image says nothing against it: the number is taken as 0.
    """
    fusion = rows.measure()
    if fusion is None:
        return
    yield "fusion", fusion
    weights = source_weights(rows.table.labels, rows.table.sources) * (rows.table.labels == 0)
    share = float(weights @ (rows.predicted == 0) / weights.sum())
    for name in dict.fromkeys(name for spec in DETECTORS.values() for name in spec.features if name.endswith(ALONE)):
        scores = rows.table.matrix[:, rows.table.inputs.index(name)] if name in rows.table.inputs else np.array(np.nan)
        if np.isfinite(scores).any():
            scores = np.nan_to_num(scores)
            metrics = rows.measure(scores, _cut_above_share(scores, weights, share))
            assert metrics is not None
            yield name, metrics


def _cut_above_share(scores: FloatArray, weights: FloatArray, share: float) -> float:
    """The lowest cut with at least ``share`` of the weight below it."""
    order = np.argsort(scores, kind="stable")
    below = np.cumsum(weights[order]) / weights.sum()
    last = min(int(np.searchsorted(below, share - 1e-9)), len(order) - 1)  # 1e-9: sums of weights are not exact
    return float(np.nextafter(scores[order][last], np.inf))


def tiers(judged: Judged) -> dict[str, Tiers]:
    """By delivery: what share of the images gets each tier, and how many of those the label gets wrong."""
    thresholds, label = judged.model.thresholds, judged.threshold
    return {
        name: measure_tiers(rows.table, rows.probabilities, thresholds, label) for name, rows in judged.by_delivery()
    }


def shares(judged: Judged, label: int, key: str) -> list[tuple[str, int, int, dict[str, float]]]:
    """By generator or kind, worst first: name, images, sources, and the share judged rightly in each delivery."""
    rows = judged.rows(judged.table.labels == label)
    names = rows.values(key)
    names = np.where(names == "", rows.table.sources, names)
    paths = rows.values("filepath")
    few = [name for name in np.unique(names) if len(set(paths[names == name])) < FEWEST]
    names = np.where(np.isin(names, few), f"{len(few)} with fewer than {FEWEST} images", names)
    found = []
    for name in np.unique(names):
        chosen = rows.rows(names == name)
        right = {delivery: float((each.predicted == label).mean()) for delivery, each in chosen.by_delivery()}
        images = len(set(chosen.values("filepath")))
        found.append((str(name), images, len(np.unique(chosen.table.sources)), right))
    return sorted(found, key=lambda each: np.mean(list(each[3].values())))


# --- what is written


def _head(judged: Judged, folder: Path, argv: Sequence[str]) -> str:
    """What was measured, when, by which command, and on how many images."""
    counts = [
        f"{len(set(rows.values('filepath')))} {name} images of {len(np.unique(rows.table.sources))} sources"
        for label, name in enumerate(NAMES)
        if len((rows := judged.rows(judged.table.labels == label)).table)
    ]
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    models = sorted(set(judged.values("models")) - {""})
    command = shlex.join(["python", "-m", "scripts.evaluate", *map(_without_folder, argv)])
    facts = [
        f"Fusion artifact `{judged.model.name}`, its manifest's sha256 `{digest[:12]}`; AI from {judged.threshold:.4f}",
        *(f"Detectors {', '.join(f'`{each}`' for each in names.split())}" for names in models),
        f"Feature table, sha256 `{judged.table.sha256[:12]}`",
        f"`{command}`",
    ]
    return (
        f"# Evaluation\n\n{datetime.datetime.now(datetime.UTC):%Y-%m-%d}: {' and '.join(counts)}. Every source weighs "
        "the same within its label, except in the tables by kind, by generator and of images, where every image does; "
        "95 % bootstrap intervals over sources. Provenance is not used.\n\n"
    ) + "\n".join(f"- {fact}" for fact in facts)


def _without_folder(argument: str) -> str:
    """Folders of this machine are nobody's business; those below the working folder stay."""
    return re.sub(r"(^|=)(?:/|~|\.\.).*/", r"\1", argument)


def markdown(judged: Judged, sections: Mapping[str, Mapping[str, Metrics]]) -> Iterator[str]:
    """The sections of docs/evaluation.md; mistakes about real images come first."""
    for title in ("By delivery", "Content matched"):
        if title in sections:
            yield f"## {title}"
            yield report.markdown_table("", sections[title])
    yield "## Real images called real, by kind"
    yield _share_table(judged, 0, "kind")
    yield "## AI images called AI, by generator"
    yield _share_table(judged, 1, "generator")
    yield "## Tiers"
    yield _tier_table(judged)
    yield "## Fusion and each detector alone"
    yield (
        "Each detector at the cut that calls at least as many real images real as fusion does in that delivery; "
        "the best of each delivery is bold."
    )
    yield from _alone_table(sections.get("Each detector alone", {}))
    if "Fusion without" in sections:
        yield "## Fusion without"
        yield report.markdown_table("", sections["Fusion without"])
    for delivery, rows in judged.by_delivery():
        truth, said = ([NAMES[each] for each in values] for values in (rows.table.labels, rows.predicted))
        matrix = confusion_matrix(truth, said, labels=NAMES)
        yield f"## Images, {delivery}"
        yield "| | called real | called AI |\n|---|---|---|\n" + "\n".join(
            f"| {name} | {row[0]} | {row[1]} |" for name, row in zip(NAMES, matrix, strict=True)
        )
        yield f"```\n{classification_report(truth, said, labels=NAMES, zero_division=0)}```"


def _tier_table(judged: Judged) -> str:
    cuts = judged.model.thresholds
    measured = tiers(judged)
    starts = dict(zip(TIERS, (0.0, cuts.real, cuts.likely_real, cuts.likely_ai, cuts.ai), strict=True))
    lines = [
        "Share of the images, classes equally frequent, and in brackets how many of them the label gets wrong.\n",
        f"| tier | probability from | {' | '.join(measured)} |",
        "|---" * (2 + len(measured)) + "|",
    ]
    for name in measured[next(iter(measured))]:
        start = f"{starts[name]:.3f}" if name in starts else ""
        cells = (f"{_percent(each[name]['coverage'])} ({_percent(each[name]['error'])})" for each in measured.values())
        lines.append(f"| {name.replace('_', ' ')} | {start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _alone_table(table: Mapping[str, Metrics]) -> Iterator[str]:
    """Fusion and the detectors by delivery, and in words who is ahead."""
    lines = [f"| | {' | '.join(ALONE_METRICS.values())} |", "|---" * (1 + len(ALONE_METRICS)) + "|"]
    words = []
    for delivery in dict.fromkeys(name.partition(", ")[0] for name in table):
        rows = {name.partition(", ")[2]: row for name, row in table.items() if name.startswith(f"{delivery}, ")}
        best = {metric: max(row[metric][0] for row in rows.values()) for metric in ("ai_called_ai", "auroc")}
        for name, row in rows.items():
            cells = []
            for metric in ALONE_METRICS:
                value, low, high = row[metric]
                mark = "**" if value == best.get(metric) else ""
                cells.append(f"{mark}{value:.3f}{mark} [{low:.3f}, {high:.3f}]")
            lines.append(f"| {delivery}, {name} | {' | '.join(cells)} |")
        if len(rows) > 1:
            words.append(f"- {delivery}: fusion {'; it '.join(_against_best(rows, metric) for metric in best)}.")
    yield "\n".join(lines)
    yield "\n".join(words) or "No detector measured anything."


def _against_best(rows: Mapping[str, Metrics], metric: str) -> str:
    """Whether fusion beats the best detector, and by how much."""
    fusion = rows["fusion"][metric][0]
    name = max((each for each in rows if each != "fusion"), key=lambda each: rows[each][metric][0])
    value, low, high = rows[name][metric]
    verb = "beats" if fusion > value else "does not beat"
    note = " (inside its interval)" if low <= fusion <= high else ""
    return f"{verb} `{name}` in {ALONE_METRICS[metric]}, {fusion:.3f} against {value:.3f}{note}"


def _share_table(judged: Judged, label: int, key: str) -> str:
    deliveries = [name for name, _ in judged.by_delivery()]
    lines = [f"| {key} | images | sources | " + " | ".join(deliveries) + " |", "|---" * (3 + len(deliveries)) + "|"]
    for name, images, sources, right in shares(judged, label, key):
        cells = " | ".join(f"{right[each]:.0%}" if each in right else "" for each in deliveries)
        lines.append(f"| {_slug(name)} | {images} | {sources} | {cells} |")
    return "\n".join(lines)


def _slug(name: str) -> str:
    """Fit for a table, and without the folders that a source or a generator may be named after."""
    return re.sub(r"[^\w.,:+ -]+", "-", name.rpartition("/")[2]).strip("- ")


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
    parser.add_argument("--table", type=Path, help="of scripts.extract_features, instead of measuring now")
    parser.add_argument("--masks", type=Path, help="CSV: filepath,label,source,mask; the manipulated rows are located")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    parser.add_argument("--markdown", type=Path, help="the page of tables, e.g. docs/evaluation.md; default: in --out")
    parser.add_argument("--fusion", default="", help="artifact; default: that of the settings")
    parser.add_argument("--split", default="val", choices=("train", "val", "all"))
    parser.add_argument("--jobs", type=int, default=2, help="processes that measure")
    arguments = parser.parse_args(argv)
    if arguments.manifest is None and arguments.table is None:
        parser.error("give --manifest, --table, or both")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

"""The pages of an evaluation: Markdown that may be published, HTML that shows the images. Measures nothing."""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix

from fusion.decision import TIERS
from ingress.sources import Ingress
from training import fusion_card as report
from training.evaluation import Judged, Metrics, rarity, shares, tiers
from training.feature_table import source_weights
from utils.errors import VerifyError
from utils.settings import load_settings

NAMES = ("real", "AI")
WORST = 12  # mistakes of each kind shown
THUMBNAIL = 256  # px, the longer side
ALONE_METRICS = {"real_called_real": "real called real", "ai_called_ai": "AI called AI", "auroc": "AUROC"}


def head(judged: Judged, folder: Path, argv: Sequence[str]) -> str:
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
    if found := rarity(judged):
        yield "## How rare a score is"
        yield (
            "Whether `reference` tells the truth of these images, all deliveries together. Of real images, so many "
            "should be told that at most that share of real ones scores as high; of AI images, that at most that share "
            "scores as low."
        )
        yield _rarity_table(found)
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


def _rarity_table(found: Mapping[float, Sequence[tuple[float, float, float]]]) -> str:
    lines = ["| told | of real images | of AI images |", "|---|---|---|"]
    for named, both in found.items():
        cells = (f"{value:.1%} [{low:.1%}, {high:.1%}]" for value, low, high in both)
        lines.append(f"| at most {named:.0%} | {' | '.join(cells)} |")
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


def plot(judged: Judged, path: Path) -> Path | None:
    weights = source_weights(judged.table.labels, judged.table.sources)
    try:
        report.plot(path, judged.table, judged.probabilities, weights, judged.threshold)
    except ImportError as error:
        print(f"evaluate: no plots, {error.name} is not installed", file=sys.stderr)
        return None
    return path


def page(text: str, plot: Path | None, judged: Judged, manifest: Path | None) -> str:
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
    with Ingress(load_settings().decode) as ingress:
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

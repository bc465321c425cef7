"""How well heatmaps find what was changed in an image, pixel by pixel, against its mask. No command.

Knows neither labels nor fusion: an image without anything changed, or changed all over, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fusion.estimators import FloatArray
from inference import edit_map
from inference.edit_map import EditMap
from inference.ensemble import Ensemble, build_ensemble
from inference.mantranet_compact import MARKED
from ingress.sources import Ingress
from models.loaders import Weights
from training.datasets import read_rows
from training.metrics import RESAMPLES, Interval, auroc
from utils.contracts import Heatmap, orient
from utils.errors import TableError, VerifyError
from utils.settings import DecodeSettings, ModelSettings
from utils.threads import limit_library_threads

# Heatmap -> from where a pixel counts as found. GhostNet's map is a probability of its own and has no other cut.
CUTS = {"edit_map": edit_map.CUT, "mantranet": MARKED, "ghostnet": 0.5}
FEATURES = {"mantranet": "mantra_anomaly", "ghostnet": "ghostnet_score"}  # what says why a heatmap is not there
METRICS = {"pixel_auroc": "pixel AUROC", "pixel_f1": "pixel F1", "best_f1": "pixel F1, best cut of each image"}


@dataclass(frozen=True, slots=True)
class Located:
    """One heatmap of one image against the mask."""

    heatmap: str
    source: str
    metrics: Mapping[str, float]  # by METRICS


@dataclass(frozen=True, slots=True)
class Localisation:
    """What was measured, and what was not."""

    located: tuple[Located, ...]
    images: int
    without_region: int  # masks of one value only
    unreadable: int
    unavailable: Mapping[str, str]  # heatmap -> why there is none


def locate(manifest: Path, models: ModelSettings, decode: DecodeSettings) -> Localisation:
    """Measure every image that the manifest labels ``manipulated``, whatever its split.

    Args:
        manifest: CSV with filepath, label, source and mask, an image that is bright where something was changed, in
            the image's upright orientation.

    Raises:
        TableError: the manifest cannot be read, or names no mask.
    """
    rows = [row for row in read_rows(manifest) if row["label"] == "manipulated" and row.get("mask")]
    if not rows:
        raise TableError(f"{manifest} has no row of label manipulated with a mask")
    built = build_ensemble(models)
    limit_library_threads()
    ensemble = Ensemble([each for each in built.detectors if each.name.startswith(tuple(CUTS))], [], built.unavailable)
    further = EditMap(Weights.at(models.weights_dir), models.device)
    located: list[Located] = []
    without_region = unreadable = 0
    with Ingress(decode) as ingress:
        for row in rows:
            try:
                sample = ingress.load(str(manifest.parent / row["filepath"]))
            except VerifyError:
                unreadable += 1
                continue
            # Not through the ingress: a mask may call its black or its white transparent, and means the colour.
            painted = cv2.imread(str(manifest.parent / row["mask"]), cv2.IMREAD_GRAYSCALE)
            if painted is None:
                unreadable += 1
                continue
            mask = painted > painted.max() / 2  # 0 and 1 as well as 0 and 255
            if mask.all() or not mask.any():
                without_region += 1
                continue
            (found,) = ensemble.measure([sample])
            drawn = found.heatmaps | further.draw(sample)
            maps = {name: orient(drawn[name], sample.orientation) for name in CUTS if name in drawn}
            located += (Located(name, row["source"], compare(heatmap, mask, name)) for name, heatmap in maps.items())
    reasons = {
        name: ensemble.unavailable[feature] for name, feature in FEATURES.items() if feature in built.unavailable
    }
    return Localisation(tuple(located), len(rows), without_region, unreadable, reasons)


def compare(heatmap: Heatmap, mask: NDArray[np.bool_], name: str) -> dict[str, float]:
    """METRICS of one heatmap, resampled to the mask. A pixel at which the detector did not look counts as not found."""
    height, width = mask.shape
    resized = cv2.resize(np.nan_to_num(heatmap), (width, height), interpolation=cv2.INTER_LINEAR)
    scores, truth = resized.ravel().astype(np.float64), mask.ravel()
    return {
        "pixel_auroc": float(auroc(truth.astype(np.int64), scores, np.ones((1, truth.size)))[0]),
        "pixel_f1": 2 * float((truth & (scores > CUTS[name])).sum()) / float(truth.sum() + (scores > CUTS[name]).sum()),
        "best_f1": _best_f1(truth, scores),
    }


def _best_f1(truth: NDArray[np.bool_], scores: FloatArray) -> float:
    """The highest F1 that any cut gives."""
    order = np.argsort(-scores, kind="stable")
    marked = np.arange(1, len(order) + 1)
    f1 = 2 * np.cumsum(truth[order]) / (marked + truth.sum())
    is_cut = np.append(np.diff(scores[order]) != 0, True)  # equal scores are marked together
    return float(f1[is_cut].max())


def summarise(located: Sequence[Located]) -> dict[str, dict[str, list[float]]]:
    """Metric -> value, low, high, for each heatmap and each heatmap on each source; and how many images and sources.

    Means over images; 95 % bootstrap intervals over sources, so none for a single source.
    """
    table: dict[str, dict[str, list[float]]] = {}
    for name, rows in _groups(located):
        sources = np.array([each.source for each in rows])
        table[name] = {"images": [len(rows)], "sources": [len(set(sources))]}
        for metric in METRICS:
            mean = mean_over_images(np.array([each.metrics[metric] for each in rows]), sources)
            table[name][metric] = [round(value, 5) for value in (mean.value, mean.low, mean.high)]
    return table


def _groups(located: Sequence[Located]) -> Iterator[tuple[str, list[Located]]]:
    for name in dict.fromkeys(each.heatmap for each in located):
        rows = [each for each in located if each.heatmap == name]
        yield name, rows
        for source in sorted({each.source for each in rows}):
            yield f"{name}, {source}", [each for each in rows if each.source == source]


def mean_over_images(values: FloatArray, sources: NDArray[np.str_], seed: int = 0) -> Interval:
    """The mean, and its 95 % percentile interval over resampled sources."""
    names, row_source = np.unique(sources, return_inverse=True)
    sums, sizes = np.bincount(row_source, values), np.bincount(row_source)
    shares = np.full(len(names), 1 / len(names))
    counts = np.random.default_rng(seed).multinomial(len(names), shares, size=RESAMPLES)
    low, high = np.percentile((counts @ sums) / (counts @ sizes), (2.5, 97.5))
    return Interval(float(values.mean()), float(low), float(high))


def markdown(found: Localisation) -> str:
    """The section of the report."""
    lines = [f"| heatmap | images | sources | {' | '.join(METRICS.values())} |", "|---" * (3 + len(METRICS)) + "|"]
    for name, row in summarise(found.located).items():
        (images,), (sources,) = row["images"], row["sources"]
        text = "{:.3f}" if sources == 1 else "{:.3f} [{:.3f}, {:.3f}]"
        lines.append(f"| {name} | {images} | {sources} | {' | '.join(text.format(*row[each]) for each in METRICS)} |")
    cuts = ", ".join(f"`{name}` {cut:g}" for name, cut in CUTS.items())
    notes = [
        f"{found.images} manipulated images with masks, as they are; {found.without_region} left out whose mask has "
        f"one value only, {found.unreadable} that could not be read. Each heatmap is resampled to its mask. Means over "
        f"images, 95 % bootstrap intervals over sources; pixel F1 at the detector's own cut ({cuts}).",
        "\n".join(lines) if found.located else "",
        *(f"No `{name}` heatmap: {why}." for name, why in found.unavailable.items()),
    ]
    return "\n\n".join(filter(None, notes))

"""Heatmaps as pictures and a self-contained HTML page for one judgement. Decides and measures nothing."""

from __future__ import annotations

import base64
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.detector import Judgement
from inference.registry import heatmap_titles
from inference.words import GRADE_WORDS, SHAPE_WORDS, TIER_WORDS, decided_by
from utils.contracts import Heatmap, RgbArray, Sample, Verdict, orient
from utils.pages import template
from utils.persistence import safe_name, write_atomic
from utils.verdict_json import dump, verdict_dict

log = logging.getLogger(__name__)

PREVIEW_SIDE = 1024  # px; a report is to be looked at and mailed, the original is the caller's
OPACITY = 0.6  # of a heatmap over the image
JPEG_QUALITY = 85


def write_artifacts(folder: Path, sample: Sample, judgement: Judgement) -> dict[str, str]:
    """Write heatmaps (PNG), a preview (JPEG), the verdict (JSON) and the report (HTML) into a folder of its own.

    Args:
        folder: is created; each image gets ``<name>-<sha256>`` below it.

    Returns:
        Artifact name -> path, as the verdict lists them.

    Raises:
        OSError: the disk is full, or the folder may not be written; see ``unwritten``.
    """
    verdict, further = _further(sample, judgement)
    name = sample.source.partition("?")[0].rstrip("/").rpartition("/")[2]
    home = folder / f"{safe_name(name)}-{sample.sha256}"
    home.mkdir(parents=True, exist_ok=True)
    preview = shrink(sample.upright)
    shown = _encode(".jpg", cv2.cvtColor(preview, cv2.COLOR_RGB2BGR))
    write_atomic(home / "preview.jpg", shown)
    written = {"preview": str(home / "preview.jpg")}
    overlays: dict[str, str] = {}
    for name, heatmap in (judgement.heatmaps | further).items():
        picture = colour(orient(heatmap, sample.orientation), preview.shape[1::-1])
        png = _encode(".png", picture)
        write_atomic(home / f"{name}.png", png)
        written[name] = str(home / f"{name}.png")
        overlays[name] = _data_url("image/png", png)
    reference, known = verdict.reference, judgement.reference
    histogram = known.histogram(reference.kind, reference.delivery) if reference and known else None
    page = template("inference", "report.html.j2").render(
        verdict=verdict,
        words=TIER_WORDS[verdict.tier],
        decided_by=decided_by(verdict),
        preview=_data_url("image/jpeg", shown),
        overlays=overlays,
        titles=heatmap_titles(),
        opacity=OPACITY,
        scale=max((abs(reason.contribution or 0) for reason in verdict.reasoning), default=0) or 1,
        histogram=histogram,
        here=histogram.position(verdict.fusion_prob) if histogram else None,
        claims=verdict.provenance["claims"],
        grades=GRADE_WORDS,
        shapes=SHAPE_WORDS,
        facts={name: facts for name, facts in verdict.provenance.items() if facts and name != "claims"},
    )
    write_atomic(home / "report.html", page.encode("utf-8", "backslashreplace"))  # a file name may be no text
    written |= {"report": str(home / "report.html"), "verdict": str(home / "verdict.json")}
    write_atomic(home / "verdict.json", dump(verdict_dict(verdict) | {"artifacts": written}, pretty=True).encode())
    return written


def _further(sample: Sample, judgement: Judgement) -> tuple[Verdict, dict[str, Heatmap]]:
    """The map that is drawn only now. A report is worth having without it, and its verdict says so."""
    verdict = judgement.verdict
    try:
        return verdict, judgement.further.draw(sample) if judgement.further else {}
    except Exception as error:
        log.exception("no map of edits of %s", sample.sha256)
        warning = f"no map of edits: {getattr(error, 'code', 'internal')}; the log says why"
        return replace(verdict, warnings=(*verdict.warnings, warning)), {}


def unwritten(verdict: Verdict, error: OSError) -> Verdict:
    """The same verdict, which says why it has no artifacts: a full disk does not take it away."""
    log.error("artifacts cannot be written: %s", error)
    warning = f"no heatmaps and no report: they cannot be written ({error.strerror})"
    return replace(verdict, warnings=(*verdict.warnings, warning))


def shrink(rgb: RgbArray) -> RgbArray:
    """At most PREVIEW_SIDE on the longer side; never enlarged."""
    scale = PREVIEW_SIDE / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    size = tuple(max(1, round(side * scale)) for side in rgb.shape[1::-1])
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def colour(heatmap: Heatmap, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """A heatmap in 0..1 as a BGRA picture of ``size`` (width, height); transparent where nobody looked (NaN)."""
    looked = np.isfinite(heatmap)
    grey = np.where(looked, heatmap, 0).clip(0, 1)
    grey, mask = (cv2.resize(each.astype(np.float32), size, interpolation=cv2.INTER_NEAREST) for each in (grey, looked))
    picture = cv2.cvtColor(cv2.applyColorMap((grey * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2BGRA)
    picture[..., 3] = (mask * 255).astype(np.uint8)
    return np.asarray(picture, dtype=np.uint8)


def _encode(suffix: str, picture: NDArray[Any]) -> bytes:
    done, data = cv2.imencode(suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else [])
    if not done:
        raise RuntimeError(f"OpenCV could not encode {suffix}")
    return bytes(data)


def _data_url(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"

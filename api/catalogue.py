"""What judges on this installation: profile, fusion artifact, detectors, weight files. Loads no network."""

from __future__ import annotations

from api.schemas import DetectorInfo, FusionInfo, GradeInfo, Models, WeightsFile
from fusion.meta_model import FusionModel
from inference.detector import fusion_folder
from inference.parts import load_forensics
from inference.registry import DETECTORS, heatmap_titles, select_detectors
from inference.words import GRADE_WORDS, SHAPE_WORDS, TIER_MEANINGS, TIER_WORDS
from models.loaders import Weights, find
from utils.contracts import PUBLIC_FEATURES
from utils.errors import WeightsMissing
from utils.persistence import Card
from utils.releases import Release
from utils.settings import ModelSettings


def catalogue(settings: ModelSettings, where: str, release: Release | None = None) -> Models:
    """As this machine sees it; workers on other machines may have other weights, and each verdict names its own.

    Args:
        release: that judges; None: what is installed does.

    Raises:
        SetupError: the fusion artifact or a card file is damaged.
    """
    weights = Weights.at(settings.weights_dir, release.models if release else None)
    enabled = select_detectors(settings.profile, settings.detectors)
    fusion = FusionModel.load(fusion_folder(settings, release))
    thresholds = fusion.thresholds.to_json()
    if settings.threshold is not None:
        thresholds["label"] = settings.threshold
    return Models(
        profile=settings.profile,
        release=release.name if release else "",
        runs="workers" if where == "workers" else "in process",
        fusion=FusionInfo(
            name=fusion.name,
            inputs=list(fusion.inputs),
            thresholds=thresholds,
            metrics=dict(fusion.metrics),
            histograms=fusion.reference.histograms() if fusion.reference else {},
        ),
        detectors=[_detector(name, weights, name in enabled) for name in DETECTORS],
        forensics=[each.name for each in load_forensics() if each.runs_in(settings.profile, fusion.inputs)],
        tiers=dict(TIER_WORDS),
        tier_meanings=dict(TIER_MEANINGS),
        grades={grade: GradeInfo(name=name, meaning=meaning) for grade, (name, meaning) in GRADE_WORDS.items()},
        numbers=list(PUBLIC_FEATURES),
        heatmaps=heatmap_titles(),
        shapes=dict(SHAPE_WORDS),
    )


def _detector(name: str, weights: Weights, enabled: bool) -> DetectorInfo:
    spec = DETECTORS[name]
    cards = weights.of(spec.model)
    reason = ""
    try:
        for card in cards:
            find(card, weights.folders)
    except WeightsMissing as error:
        reason = error.message
    return DetectorInfo(
        name=name,
        enabled=enabled,
        available=not reason,
        reason=reason,
        features=dict(spec.features),
        weights=[_file(card) for card in cards],
    )


def _file(card: Card) -> WeightsFile:
    return WeightsFile(
        name=card.name,
        file=card.file,
        sha256=card.sha256,
        size=card.size,
        licence=card.licence,
        commercial=card.commercial,
        upstream=card.upstream,
        install=card.command,
    )

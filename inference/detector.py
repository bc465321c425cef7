"""The conductor: images in, explained verdicts out. It composes; it measures nothing itself."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self, TypeAlias

from fusion.decision import AI_TIERS, decide
from fusion.explain import explain
from fusion.meta_model import FusionModel
from fusion.reference import ReferenceTable, most_like
from inference import regions, stability
from inference.edit_map import EditMap
from inference.ensemble import Ensemble, Findings, build_ensemble, class_of, placed
from inference.limits import CONTENT, is_measured, limits
from inference.parts import load_forensics
from inference.registry import DETECTORS, feature_meanings, select_detectors
from models.loaders import SHIPPED, Weights
from utils.contracts import (
    PUBLIC_FEATURES,
    VERDICT_SCHEMA_VERSION,
    Heatmap,
    Note,
    Opinion,
    Reason,
    Reference,
    Region,
    RgbArray,
    Sample,
    Stability,
    Verdict,
)
from utils.deliveries import nearest
from utils.errors import ReleaseUnusable
from utils.profiles import PROFILES
from utils.releases import Release, store_at
from utils.settings import ModelSettings

Searched: TypeAlias = Future[tuple[regions.Found, float]]  # what was found inside an image, in how many seconds
log = logging.getLogger(__name__)

COUNTS = "python -m scripts.build_profile full --dataset dataset.csv"  # makes detectors count that fusion does not know


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and the heatmaps that a report shows but JSON does not carry.

    Args:
        further: draws the one that is only made where a report is.
    """

    verdict: Verdict
    heatmaps: dict[str, Heatmap]
    reference: ReferenceTable | None = None  # that the verdict's own comes from
    further: EditMap | None = None
    failed: bool = False  # some part of it, which may not fail another time


@dataclass(frozen=True, slots=True)
class _Shown:
    """What label and tier are about: the image, or a picture inside it."""

    sample: Sample
    probability: float
    reasons: tuple[Reason, ...] = ()  # why it is not the image


class Verifier:
    """The ensemble and the fusion model. Refuses to exist when fusion wants an input that nobody produces.

    Use as a context manager where it does not live as long as the process: it closes the ensemble.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        fusion: FusionModel,
        meanings: Mapping[str, str],
        threshold: float | None = None,
        stability: bool = False,
        release: str = "",
        beside: Sequence[Opinion] = (),
        embedding: bool = False,
        edit_map: EditMap | None = None,
    ) -> None:
        """
        Args:
            release: the name under which fusion model and detectors were promoted together; empty: they were not.
            embedding: whether verdicts carry what drift compares beside the numbers.
            edit_map: for reports.
        """
        fusion.check_inputs(meanings)
        self.ensemble = ensemble
        self.fusion = fusion
        self.meanings = meanings
        self.threshold = threshold
        self.stability = stability
        self.release = release
        self.embedding = embedding
        self.edit_map = edit_map
        self.beside = tuple(each for each in beside if each.feature not in fusion.inputs)
        self.warnings = self._unused()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ensemble.close()

    def with_threshold(self, threshold: float | None) -> Self:
        """The same with another threshold of the label; None: the artifact's."""
        other = copy(self)
        other.threshold = threshold
        return other

    def _unused(self) -> tuple[str, ...]:
        """Opinions on AI that this artifact was not trained with: shown, not used. A map of changes is no opinion."""
        names = [name for detector in self.ensemble.detectors for name in detector.features]
        unused = [name for name in names if name.endswith(("_prob", "_score")) and name not in self.fusion.inputs]
        return (
            (f"fusion {self.fusion.name} was trained without {', '.join(unused)}: shown, not used; to use: {COUNTS}",)
            if unused
            else ()
        )

    def verify(
        self,
        samples: Sequence[Sample],
        job_ids: Sequence[str | None] | None = None,
        stability: Sequence[bool] = (),
    ) -> list[Judgement]:
        """Measure, fuse, decide and explain. Order is kept.

        Args:
            stability: of which images to find out whether the verdict holds; none when empty, all where this verifier
                was built for it.
        """
        inside = [self.ensemble.beside(_search, sample.rgb) for sample in samples]
        findings = self.ensemble.measure(samples) if samples else []
        job_ids = job_ids or [None] * len(samples)
        asked = [self.stability or each for each in stability or [False] * len(samples)]
        return [self._judge(*each) for each in zip(samples, findings, inside, job_ids, asked, strict=True)]

    def estimate(self, samples: Sequence[Sample], beside: Collection[str] = ()) -> list[tuple[float, dict[str, float]]]:
        """Of each image the probability of AI from its pixels, and what the parts that give it measured.

        Args:
            beside: further features that are wanted.
        """
        wanted = {*self.fusion.inputs, *beside}
        found = [each.features for each in self.ensemble.measure(samples, wanted)] if samples else []
        return [(self.fusion.probability(features), features) for features in found]

    def _judge(
        self,
        sample: Sample,
        found: Findings,
        inside: Searched,
        job_id: str | None,
        asked: bool,
    ) -> Judgement:
        features = {name: found.features.get(name, math.nan) for name in self.meanings}
        probability = self.fusion.probability(features)
        limited = list(limits(sample, features, self.fusion.inputs))
        shown = _Shown(sample, probability)
        pictures: tuple[Region, ...] = ()
        searched = 0.0  # on a thread of its own
        with self._extra("regions", found):
            seen, searched = inside.result()
            shown, pictures = self._inside(shown, limited, seen)
        found.timings["regions"] += searched
        held = None
        if asked:
            with self._extra("stability", found):
                held = self._stability(shown, limited)
        started = time.perf_counter()
        decision = decide(
            shown.probability,
            self.fusion.thresholds,
            found.claims,
            self.threshold,
            limited,
        )
        # Known images are ordinary ones: what is too small or too flat for a tier is not to be compared with them.
        reference = None if limited else self._reference(probability, sample, features)
        # Of the whole image, so not where a picture inside it decides.
        resembles = found.resembles if shown.sample is sample and decision.tier in AI_TIERS else None
        reasons = explain(self.fusion, features, self.meanings, found.claims, found.notes, reference, resembles)
        found.timings["fusion"] = time.perf_counter() - started
        values = {name: None if math.isnan(value) else round(float(value), 6) for name, value in features.items()}
        verdict = Verdict(
            schema_version=VERDICT_SCHEMA_VERSION,
            job_id=job_id,
            source=sample.source,
            sha256=sample.sha256,
            width=sample.width,
            height=sample.picture_height,
            format=sample.format,
            label=decision.label,
            fusion_prob=round(probability, 6),
            threshold=decision.threshold,
            confidence=round(decision.confidence, 6),
            reference=reference,
            stability=held,
            resembles=resembles,
            tier=decision.tier,
            decided_by=decision.decided_by,
            **{name: values[name] for name in PUBLIC_FEATURES},
            signals={name: value for name, value in values.items() if name not in PUBLIC_FEATURES},
            unavailable=found.unavailable,
            reasoning=(*shown.reasons, *decision.reasons, *reasons),
            provenance={"claims": [asdict(claim) for claim in found.claims], **found.facts},
            artifacts={},
            regions=pictures,
            beside=tuple(replace(each, value=values[each.feature]) for each in self.beside),
            embedding=(found.embedding or None) if self.embedding else None,
            models=({"release": self.release} if self.release else {})
            | {"fusion": self.fusion.name}
            | {detector.name: detector.version for detector in self.ensemble.detectors},
            timings_ms={name: round(seconds * 1000, 2) for name, seconds in found.timings.items()},
            warnings=(*sample.warnings, *(note.text for note in limited), *found.warnings, *self.warnings),
        )
        return Judgement(verdict, found.heatmaps, self.fusion.reference, self.edit_map, found.failed)

    @contextmanager
    def _extra(self, name: str, found: Findings) -> Iterator[None]:
        """Time a look at the image beyond measuring it; its failure is told and never costs the verdict."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            log.exception("%s failed", name)
            found.fail(name, (), error)
        found.timings[name] = time.perf_counter() - started

    def _stability(self, shown: _Shown, limited: list[Note]) -> Stability | None:
        """Judge again in other shapes what the label is about; a label that flips is added to the limits."""
        others = stability.variants(shown.sample)
        measured = self.estimate(list(others.values()))
        threshold = self.fusion.thresholds.label if self.threshold is None else self.threshold
        values = {
            name: value
            for name, (value, features) in zip(others, measured, strict=True)
            if is_measured(features, self.fusion.inputs)
        }
        if not values:
            return None
        compared = stability.compare(shown.probability, values, threshold)
        if compared.flips:
            limited.append(stability.unstable(compared, threshold))
        return compared

    def _inside(self, whole: _Shown, limited: list[Note], inside: regions.Found) -> tuple[_Shown, tuple[Region, ...]]:
        """Judge the pictures inside an image, and choose what label and tier are about.

        What a person asks of a screenshot is asked of its picture. Of several the most suspicious decides, among those
        at least half as large as the largest: a collage with one AI picture is no real image.
        """
        if not inside.boxes:
            if inside.is_screen:
                limited.append(regions.NOTHING_INSIDE)
            return whole, ()
        crops = [regions.crop(whole.sample, box) for box in inside.boxes]
        boxes = [(x, y + whole.sample.top, width, height) for x, y, width, height in inside.boxes]
        measured = self.estimate(crops, CONTENT)
        if not all(is_measured(features, self.fusion.inputs) for _, features in measured):
            return whole, ()  # a prior is not to be the most suspicious of them
        least = max(crop.rgb.size for crop in crops) / 2
        large = [index for index, crop in enumerate(crops) if crop.rgb.size >= least]
        chosen = max(large, key=lambda index: measured[index][0])
        probability, features = measured[chosen]
        kept = [note for note in limited if note.code not in regions.ANSWERED]
        limited[:] = [*kept, *limits(crops[chosen], features, self.fusion.inputs)]
        kind = regions.kind(inside.is_screen)
        listed = [
            Region(kind=kind, box=box, fusion_prob=round(value, 6), decides=index == chosen)
            for index, (box, (value, _)) in enumerate(zip(boxes, measured, strict=True))
        ]
        why = regions.decided_by(boxes[chosen], probability, inside.is_screen)
        return _Shown(crops[chosen], probability, (why,)), tuple(listed)

    def _reference(self, probability: float, sample: Sample, features: Mapping[str, float]) -> Reference | None:
        table = self.fusion.reference
        if table is None:
            return None
        kind, share = most_like(features)
        longest, quality = max(sample.width, sample.height), features.get("jpeg.quality", math.nan)
        return table.look_up(probability, nearest(longest, quality, table.of(kind)), kind, share)


def _search(rgb: RgbArray) -> tuple[regions.Found, float]:
    """What was found inside an image, and how many seconds that took."""
    started = time.perf_counter()
    return regions.find(rgb), time.perf_counter() - started


def build_verifier(settings: ModelSettings, release: Release | None = None) -> Verifier:
    """The product, ready to judge.

    Args:
        release: to judge with; None: the one that the settings' store points at, and where there is no store, what is
            installed.

    Raises:
        SetupError: as ``build_ensemble``, a corrupt fusion artifact, or a release that does not fit.
    """
    release = release or promoted(settings)
    fusion = FusionModel.load(fusion_folder(settings, release))
    ensemble, beside = build_ensemble(settings, release, fusion.inputs), opinions(settings)
    name = release.name if release else ""
    edit_map = EditMap(Weights.at(settings.weights_dir, release.models if release else None), settings.device)
    asked = settings.threshold, settings.stability, name, beside, settings.embedding, edit_map
    return Verifier(ensemble, fusion, feature_meanings(), *asked)


def opinions(settings: ModelSettings) -> list[Opinion]:
    """Of every detector that the settings ask for and that says AI or not, what is known beside its value."""
    weights, found = Weights.at(settings.weights_dir), []
    for name in select_detectors(settings.profile, settings.detectors):
        figures = next((card.figures for card in weights.of(DETECTORS[name].model) if card.figures), "")
        found += [
            Opinion(detector=name, feature=feature, value=None, used=False, figures=figures, command=COUNTS)
            for feature in DETECTORS[name].features
            if feature.endswith(("_prob", "_score"))
        ]
    return found


def build_head_verifier(settings: ModelSettings, folder: Path) -> Verifier:
    """A verifier of one's own head alone: its backbone, all forensics, provenance, and its own threshold.

    Raises:
        BackboneMismatch: the head was trained on another backbone than the one installed.
        SetupError: the head or its backbone is missing or damaged.
    """
    from inference.frozen import Head

    head, version = Head.open(folder)
    spec, weights = DETECTORS[head.detector], Weights.at(settings.weights_dir)
    detector = class_of(spec).with_head(head, version, weights, *placed(head.detector, settings))
    others = [each for each in DETECTORS.values() if each is not spec]
    unavailable = {name: f"judged by {folder} alone" for each in others for name in each.features}
    ensemble = Ensemble([detector], load_forensics(settings.c2pa_trust_anchors), unavailable, settings.threads)
    fusion = head.alone(f"head-{folder.resolve().name}")
    return Verifier(ensemble, fusion, feature_meanings(), settings.threshold, settings.stability)


def promoted(settings: ModelSettings) -> Release | None:
    """The release that the settings' store points at; None where they name no store.

    Raises:
        ReleaseUnusable: it is missing or damaged.
    """
    return store_at(settings.release).current() if settings.release else None


def fusion_folder(settings: ModelSettings, release: Release | None = None) -> Path:
    """Of the release, else of the artifact that the settings name, else the profile's.

    Raises:
        ReleaseUnusable: the release is for another profile.
    """
    if release:
        if release.profile != settings.profile:
            raise ReleaseUnusable(
                f"release {release.name} is for profile {release.profile}, and this is {settings.profile}: "
                f"set IMGV_PROFILE={release.profile}, or promote another release"
            )
        return release.fusion
    name = settings.fusion or PROFILES[settings.profile].fusion
    return SHIPPED / name if (SHIPPED / name).is_dir() else Path(name)

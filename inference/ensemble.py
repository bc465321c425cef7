"""Every detector and every forensic module, built once, over many images at a time: what each found in each image.

It knows nothing of what the numbers mean together; inference/detector.py does.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

from inference.graphs import GraphDetector
from inference.parts import Forensic, Reads, load_forensics
from inference.registry import DETECTORS, Spec, select_detectors
from models.loaders import Weights, find
from utils.contracts import Claim, Heatmap, Json, Measurement, Note, Resemblance, Sample
from utils.device import pick_device
from utils.errors import ReleaseUnusable, VerifyError, WeightsMissing
from utils.profiles import DEFAULT_PROFILE
from utils.releases import Release
from utils.settings import ModelSettings
from utils.threads import cores

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


class Part(Protocol):
    """Measures one image; several threads may call it at the same time. Every forensic module is one."""

    @property
    def name(self) -> str: ...
    @property
    def features(self) -> Mapping[str, str]: ...
    @property
    def reads(self) -> Reads: ...
    @property
    def measure(self) -> Callable[[Sample], Measurement]: ...


class ImageDetector(Part, Protocol):
    """A detector that takes images one at a time. For *_prob, *_score and *_anomaly higher means more likely AI."""

    @property
    def version(self) -> str: ...


@runtime_checkable
class BatchDetector(Protocol):
    """A detector that takes many images at a time, and every core or the GPU for them."""

    name: str
    features: Mapping[str, str]
    version: str

    def score(self, samples: Sequence[Sample]) -> list[Measurement]: ...


Detector: TypeAlias = ImageDetector | BatchDetector


class Ensemble:
    """Every part that measures images, built once; knows nothing of what the numbers mean together.

    Use as a context manager, or ``close`` it: it owns threads.

    Args:
        unavailable: features that nobody gives here, and why.
        threads: that share the (part, image) tasks; 0: one per core that this process may use.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        forensics: Sequence[Forensic],
        unavailable: Mapping[str, str],
        threads: int = 0,
    ) -> None:
        self.detectors = detectors
        self.forensics = forensics
        self.unavailable = dict(unavailable)
        self._batched: list[BatchDetector] = []
        self._parts: list[Part] = []
        for detector in detectors:
            if isinstance(detector, BatchDetector):
                self._batched.append(detector)
            else:
                self._parts.append(detector)
        self._parts += forensics
        self._pool = ThreadPoolExecutor(threads or cores(), "measure")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; nothing can be measured afterwards."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def beside(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Do something else on the threads that measure."""
        return self._pool.submit(work, *args, **kwargs)

    def measure(self, samples: Sequence[Sample], features: Collection[str] | None = None) -> list[Findings]:
        """Measure images. Order is kept, and one failing part never takes the others down.

        Memory: at most as many parts as there are threads work at a time, each on one image.

        Args:
            features: that are wanted; parts that give none of them rest. None: all.
        """
        findings = [Findings(dict(self.unavailable)) for _ in samples]
        parts = [part for part in self._parts if features is None or not part.features.keys().isdisjoint(features)]
        # Image by image, so that few parts of one kind, and few images, need their memory at a time. Of an image, the
        # detectors come first: they take longest.
        tasks = [[self._pool.submit(_timed, part, sample) for part in parts] for sample in samples]
        try:
            for detector in self._batched:  # meanwhile, on this thread
                if features is None or not detector.features.keys().isdisjoint(features):
                    self._detect(detector, samples, findings)
            for sample, found, row in zip(samples, findings, tasks, strict=True):
                for part, task in zip(parts, row, strict=True):
                    _collect(part, sample, found, *task.result())
        finally:  # interrupted: nobody waits for the rest
            for task in chain.from_iterable(tasks):
                task.cancel()
        return findings

    def _detect(self, detector: BatchDetector, samples: Sequence[Sample], findings: Sequence[Findings]) -> None:
        """One batched call for every frame of every image."""
        frames = [list(_frames(sample)) for sample in samples]
        started = time.perf_counter()
        try:
            measured = iter(detector.score([frame for group in frames for frame in group]))
        except Exception as error:
            log.exception("detector %s failed on %d images", detector.name, len(samples))
            if len(samples) > 1:  # one bad image must not cost the others this signal
                for sample, found in zip(samples, findings, strict=True):
                    self._detect(detector, [sample], [found])
            else:
                findings[0].fail(detector.name, detector.features, error)
            return
        seconds = (time.perf_counter() - started) / len(samples)
        for group, found in zip(frames, findings, strict=True):
            found.add(detector.name, _median([next(measured) for _ in group]), seconds)


def _timed(part: Part, sample: Sample) -> tuple[Measurement | Exception, float]:
    """What a part found in one image, or how it failed; and the seconds it took."""
    started = time.perf_counter()
    found: Measurement | Exception
    try:
        frames = _frames(sample) if part.reads == "pixels" else [sample]
        found = _median([part.measure(frame) for frame in frames])
    except Exception as error:  # noqa: BLE001 - logged where the others are in order
        found = error
    return found, time.perf_counter() - started


def _collect(part: Part, sample: Sample, found: Findings, measured: Measurement | Exception, seconds: float) -> None:
    if isinstance(measured, Exception):
        log.error("%s failed on %s", part.name, sample.sha256, exc_info=measured)
        found.fail(part.name, part.features, measured)
    else:
        found.add(part.name, measured, seconds)


class Findings:
    """What has been found about one image so far."""

    def __init__(self, unavailable: dict[str, str]) -> None:
        self.unavailable = unavailable
        self.features: dict[str, float] = {}
        self.notes: list[Note] = []
        self.heatmaps: dict[str, Heatmap] = {}
        self.claims: list[Claim] = []
        self.facts: dict[str, Json] = {}
        self.resembles: Resemblance | None = None
        self.embedding: tuple[float, ...] = ()
        self.timings: dict[str, float] = {}
        self.failed = False
        self.warnings: list[str] = []

    def add(self, name: str, measured: Measurement, seconds: float) -> None:
        self.features.update(measured.features)
        for feature, value in measured.features.items():
            if math.isnan(value):
                self.unavailable[feature] = measured.skipped or "not measured"
        self.notes.extend(measured.notes)
        self.heatmaps.update(measured.heatmaps)
        self.claims.extend(measured.claims)
        self.facts.update(measured.facts)
        self.resembles = measured.resembles or self.resembles
        self.embedding = measured.embedding or self.embedding
        self.timings[name] = seconds

    def fail(self, name: str, features: Iterable[str], error: Exception) -> None:
        """No number: say why. An uncoded error is ours, and its text may hold what a caller should not see."""
        why = f"{error.code}: {error}" if isinstance(error, VerifyError) else "internal error; see the log"
        self.unavailable.update(dict.fromkeys(features, f"{name} failed: {why}"))
        self.warnings.append(f"{name} failed: {why}")
        self.failed = True


def _frames(sample: Sample) -> Iterator[Sample]:
    """The image itself, then each further sampled frame as a still of its own, one at a time.

    What is derived of a frame (grey levels, shared quantities: some 100 MiB) is gone when the next one is measured.
    """
    yield sample
    for frame in sample.frames:
        yield replace(sample, rgb=frame, frames=(), alpha=None)


def _median(measured: list[Measurement]) -> Measurement:
    """One measurement of an animation: the median of each number over its frames; the rest from the first frame."""
    first = measured[0]
    if len(measured) == 1:
        return first
    columns = {name: [each.features[name] for each in measured] for name in first.features}
    finite = {name: [value for value in column if not math.isnan(value)] for name, column in columns.items()}
    features = {name: statistics.median(column) if column else math.nan for name, column in finite.items()}
    return replace(first, features=features, skipped=next((each.skipped for each in measured if each.skipped), None))


def build_ensemble(settings: ModelSettings, release: Release | None = None, inputs: Collection[str] = ()) -> Ensemble:
    """Load the detectors that the settings ask for, and forensics.

    A detector without weights is listed as unavailable, with the command that installs it; nothing is downloaded. So
    is what the settings leave out.

    Args:
        release: whose networks and heads come before the installed ones.
        inputs: features that the fusion reads: the forensics that give them run in every profile.

    Raises:
        SetupError: an unknown detector or device, or weights that are corrupt or do not fit.
    """
    detectors: list[Detector] = []
    unavailable: dict[str, str] = {}
    weights = Weights.at(settings.weights_dir, release.models if release else None)
    if release:
        _check_weights(release, weights)
    for name in select_detectors(settings.profile, settings.detectors):
        spec = DETECTORS[name]
        try:
            for card in weights.of(spec.model):  # before anything large is imported
                find(card, weights.folders)
            detectors.append(_load_detector(name, spec, weights, settings))
        except WeightsMissing as error:
            unavailable.update(dict.fromkeys(spec.features, str(error)))
    left_out = f"not in the {settings.profile} profile; IMGV_DETECTORS switches detectors on"
    asked_for = {*unavailable, *chain.from_iterable(detector.features for detector in detectors)}
    for spec in DETECTORS.values():
        unavailable |= {name: left_out for name in spec.features if name not in asked_for}
    forensics = []
    for each in load_forensics(settings.c2pa_trust_anchors):
        if each.runs_in(settings.profile, inputs):
            forensics.append(each)
        else:
            why = f"not in the {settings.profile} profile; IMGV_PROFILE={DEFAULT_PROFILE} measures it"
            unavailable |= dict.fromkeys(each.features, why)
    return Ensemble(detectors, forensics, unavailable, settings.threads)


def _check_weights(release: Release, weights: Weights) -> None:
    """
    Raises:
        ReleaseUnusable: a network or head is not the one that the release's fusion model was trained on.
    """
    for name, sha256 in release.weights.items():
        if weights.card(name).sha256 != sha256:
            raise ReleaseUnusable(f"release {release.name} was made with other weights of {name}; publish it with them")


def _load_detector(name: str, spec: Spec, weights: Weights, settings: ModelSettings) -> Detector:
    detector = class_of(spec)
    loaded: Detector
    if issubclass(detector, GraphDetector):
        loaded = detector.load(weights, settings.device)
    else:
        loaded = detector.load(weights, *placed(name, settings))
    return loaded


def class_of(spec: Spec) -> Any:
    """The class of a detector, imported only now."""
    module, _, cls = spec.path.partition(":")
    return getattr(import_module(module), cls)


def placed(name: str, settings: ModelSettings) -> tuple[str, torch.dtype]:
    """The device and the precision that a detector on torch runs with; both are told in the log."""
    import torch  # takes seconds and gigabytes, which nothing else needs

    device, reason = pick_device(settings.device)
    log.info("%s: device=%s (%s), %s", name, device, reason, settings.precision)
    precision: torch.dtype = getattr(torch, settings.precision)
    return device, precision

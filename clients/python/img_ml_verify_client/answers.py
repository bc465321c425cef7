"""Written from the API's OpenAPI document: python -m scripts.write_clients"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class BatchLine(TypedDict):
    """One line of a batch's answer. Lines come as images are done; `index` is the image's place in the request."""

    index: int
    source: str
    verdict: NotRequired[Verdict | None]
    error: NotRequired[Problem | None]


class Classification(TypedDict):
    """The answer of POST /classify and /classify_url, to the letter what older clients know; /predict has the
    tier."""

    classification: Literal["real", "fake"]
    # in the classification
    confidence: float


class Config(TypedDict):
    """The settings at run time."""

    # how often they were changed
    version: int
    # what holds now, by name
    values: dict[str, Any]
    # of these, what differs from the environment's settings by a change
    changed: list[str]
    # whose key made the last change
    by: str
    # when, ISO 8601
    at: str
    # how many changes can be undone
    can_undo: int


class DetectorInfo(TypedDict):
    name: str
    # part of this profile
    enabled: bool
    # its weights are installed
    available: bool
    # why it is not available, with the command that installs it
    reason: str
    # what it measures, and what the number means
    features: dict[str, str]
    weights: list[WeightsFile]


class FeedbackTaken(TypedDict):
    id: str
    # whether the image that was sent along is kept for review
    image_kept: bool


class FusionInfo(TypedDict):
    name: str
    inputs: list[str]
    thresholds: dict[str, Any]
    metrics: dict[str, Any]
    histograms: dict[str, dict[str, Histogram]]


class GradeInfo(TypedDict):
    """How hard a claim of this grade is to forge, in words."""

    name: str
    meaning: str


class Health(TypedDict):
    status: Literal["ok", "unavailable"]
    reason: NotRequired[str]


class Histogram(TypedDict):
    """Shares of real and of AI images by their log-odds: below the first edge, between edges, above the last."""

    edges: list[float]
    real: list[float]
    ai: list[float]


class JobAnswer(TypedDict):
    """Where a job stands. `verdict` when it is done, `error` when it failed."""

    job_id: str
    status: Literal["running", "done", "failed"]
    stage: Literal["queued", "fetching", "decoding", "judging", "reporting", "done", "failed"]
    # self, events
    links: dict[str, str]
    verdict: NotRequired[Verdict | None]
    error: NotRequired[Problem | None]


class ModelInfo(TypedDict):
    """The short answer of GET /model_info."""

    model: str
    version: str
    profile: str
    threshold: float
    # those that run
    detectors: list[str]
    features: int


class Models(TypedDict):
    """What judges here, and the words that go with its answers."""

    profile: str
    # promoted release that judges; empty: the installed models do
    release: str
    runs: Literal["in process", "workers"]
    fusion: FusionInfo
    detectors: list[DetectorInfo]
    forensics: list[str]
    tiers: dict[str, str]
    # what to make of an image of this tier, as a sentence
    tier_meanings: dict[str, str]
    # of a claim in `provenance`, the hardest to forge first
    grades: dict[str, GradeInfo]
    # whether POST /v1/feedback is taken, and images with it
    feedback: NotRequired[Literal["no", "reports", "images"]]
    # the verdict's own numbers, in order; `signals` has the others
    numbers: list[str]
    heatmaps: dict[str, str]
    # in what shape an image was judged again, by names of `stability`
    shapes: dict[str, str]


class Opinion(TypedDict):
    """What a detector says that the fusion artifact was not trained with: shown, without any weight in the
    verdict."""

    detector: str
    feature: str
    value: float | None
    used: bool
    figures: str
    command: str


class Prediction(TypedDict):
    """The short answer of POST /predict."""

    prediction: Literal["AI", "NON-AI"]
    # of AI, from the pixels
    probability: float
    # in the prediction
    confidence: float
    tier: Literal["real", "likely_real", "inconclusive", "likely_ai", "ai"]


class Problem(TypedDict):
    """RFC 9457 problem details; `code` is one of docs/errors.md and never changes its meaning."""

    type: str
    title: str
    status: int
    detail: str
    # `detail`, by the name that older clients read
    error: str
    code: str
    request_id: str


class Reason(TypedDict):
    """One line of the explanation. `contribution` is in log-odds towards AI; None for a plain fact."""

    code: str
    text: str
    feature: NotRequired[str | None]
    contribution: NotRequired[float | None]


class Reference(TypedDict):
    """How rare the score is among images of known origin; shares in 0..1 with 95 % intervals over sources."""

    kind: str
    kind_probability: float | None
    delivery: str
    real_as_high: float
    interval: tuple[float, float]
    ai_as_low: float
    ai_interval: tuple[float, float]


class Region(TypedDict):
    """A picture inside the picture, judged by itself."""

    kind: str
    box: tuple[int, int, int, int]
    fusion_prob: float
    decides: bool


class Resemblance(TypedDict):
    """The family of generators that an image looks most like. A hint for people, never a claim of origin."""

    family: str
    probability: float
    right: float


class Stability(TypedDict):
    """The probability of the same image delivered otherwise: as a web copy, a hard one, cropped, enlarged."""

    low: float
    high: float
    flips: bool
    probabilities: dict[str, float]


class Verdict(TypedDict):
    """What we tell the caller, and everything needed to explain it. Raw, final and why are kept apart:
    `fusion_prob` is what the pixels say, `label` and `tier` are what we conclude, `decided_by` says from what."""

    schema_version: str
    job_id: str | None
    source: str
    sha256: str
    width: int
    height: int
    format: str
    label: Literal["AI", "NON-AI"]
    fusion_prob: float
    threshold: float
    confidence: float
    reference: Reference | None
    stability: Stability | None
    resembles: Resemblance | None
    tier: Literal["real", "likely_real", "inconclusive", "likely_ai", "ai"]
    decided_by: Literal["fusion", "provenance"]
    dino_prob: float | None
    fatformer_prob: float | None
    ghostnet_score: float | None
    clip_h14_prob: float | None
    clip_bigg_prob: float | None
    mantra_anomaly: float | None
    exif_score: float | None
    image_entropy: float | None
    compression_level: float | None
    signals: dict[str, float | None]
    unavailable: dict[str, str]
    reasoning: list[Reason]
    provenance: dict[str, Any]
    artifacts: dict[str, str]
    regions: list[Region]
    beside: list[Opinion]
    embedding: list[float] | None
    models: dict[str, str]
    timings_ms: dict[str, float]
    warnings: list[str]


class WeightsFile(TypedDict):
    """One weight file's card."""

    name: str
    file: str
    sha256: str
    size: int
    licence: str
    commercial: bool
    upstream: str
    install: str

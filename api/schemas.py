"""What crosses the wire besides the verdict (utils/contracts.py), as types; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.jobs import Stage
from fusion.reference import Histogram
from utils.contracts import Grade, Label, Tier, Verdict

MAX_WAIT_SECONDS = 300.0
_MOST_TEXT = 8192  # characters of a URL; what browsers and servers accept


class Extras(BaseModel):
    """What an image is asked for beyond a verdict."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    artifacts: bool = Field(False, description="also make heatmaps, a preview and an HTML report")
    stability: bool = Field(
        False, description="also judge the image as delivered otherwise: does the label hold? Counts as five images"
    )


class Options(Extras):
    """How an answer is given. In the query, or beside the image in the body, which comes first."""

    run_async: bool = Field(False, alias="async", description="answer 202 with the job at once")
    wait_seconds: float | None = Field(
        None,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="deadline of a synchronous answer; when it passes, 202 with the job",
    )


class Item(BaseModel):
    """One image in JSON: ``url`` or ``image_base64``."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    url: str | None = Field(
        None,
        max_length=_MOST_TEXT,
        description="public http(s) address of an image",
        json_schema_extra={"format": "uri"},
    )
    image_base64: str | None = Field(
        None, description="the file, RFC 4648 base64 without line breaks, alone or as a data: URI"
    )
    filename: str = Field("", max_length=1000, description="a name for the verdict's source")


class VerifyRequest(Item, Options):
    """The JSON body of POST /v1/verify."""


class BatchRequest(Extras):
    """The JSON body of POST /v1/verify/batch. What is asked for is asked of every image."""

    images: list[Item] = Field(min_length=1)


class UrlRequest(BaseModel):
    """The JSON body of POST /classify_url."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=_MOST_TEXT, json_schema_extra={"format": "uri"})


class Problem(BaseModel):
    """RFC 9457 problem details; ``code`` is one of docs/errors.md and never changes its meaning."""

    type: str
    title: str
    status: int
    detail: str
    error: str = Field(description="`detail`, by the name that older clients read")
    code: str
    request_id: str


class JobAnswer(BaseModel):
    """Where a job stands. ``verdict`` when it is done, ``error`` when it failed."""

    job_id: str
    status: Literal["running", "done", "failed"]
    stage: Stage
    links: dict[str, str] = Field(description="self, events")
    verdict: Verdict | None = None
    error: Problem | None = None


class BatchLine(BaseModel):
    """One line of a batch's answer. Lines come as images are done; ``index`` is the image's place in the request."""

    index: int
    source: str
    verdict: Verdict | None = None
    error: Problem | None = None


class WeightsFile(BaseModel):
    """One weight file's card."""

    name: str
    file: str
    sha256: str
    size: int
    licence: str
    commercial: bool
    upstream: str
    install: str


class DetectorInfo(BaseModel):
    name: str
    enabled: bool = Field(description="part of this profile")
    available: bool = Field(description="its weights are installed")
    reason: str = Field(description="why it is not available, with the command that installs it")
    features: dict[str, str] = Field(description="what it measures, and what the number means")
    weights: list[WeightsFile]


class FusionInfo(BaseModel):
    name: str
    inputs: list[str]
    thresholds: dict[str, Any]
    metrics: dict[str, Any]
    histograms: dict[str, dict[str, Histogram]]  # of scores, by the kind and the delivery that ``reference`` names


class GradeInfo(BaseModel):
    """How hard a claim of this grade is to forge, in words."""

    name: str
    meaning: str


class Models(BaseModel):
    """What judges here, and the words that go with its answers."""

    profile: str
    release: str = Field(description="promoted release that judges; empty: the installed models do")
    runs: Literal["in process", "workers"]
    fusion: FusionInfo
    detectors: list[DetectorInfo]
    forensics: list[str]
    tiers: dict[Tier, str]
    tier_meanings: dict[Tier, str] = Field(description="what to make of an image of this tier, as a sentence")
    grades: dict[Grade, GradeInfo] = Field(description="of a claim in `provenance`, the hardest to forge first")
    feedback: Literal["no", "reports", "images"] = Field(
        "no", description="whether POST /v1/feedback is taken, and images with it"
    )
    numbers: list[str] = Field(description="the verdict's own numbers, in order; `signals` has the others")
    heatmaps: dict[str, str]
    shapes: dict[str, str] = Field(description="in what shape an image was judged again, by names of `stability`")


class Feedback(BaseModel):
    """What was wrong with a verdict, and what would be right."""

    model_config = ConfigDict(extra="forbid")

    job_id: str | None = Field(None, max_length=200)
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="of the image, as its verdict says")
    label: Literal["real", "ai"] = Field(description="what the image is")
    why: str = Field("", max_length=2000, description="how that is known")
    image_base64: str | None = Field(None, description="the image, where the server keeps images for review")

    @model_validator(mode="after")
    def _names_an_image(self) -> Self:
        if self.job_id is None and self.sha256 is None:
            raise ValueError("give job_id or sha256")
        return self


class FeedbackTaken(BaseModel):
    id: str
    image_kept: bool = Field(description="whether the image that was sent along is kept for review")


class Health(BaseModel):
    status: Literal["ok", "unavailable"]
    reason: str = ""


class Classification(BaseModel):
    """The answer of POST /classify and /classify_url, to the letter what older clients know; /predict has the tier."""

    classification: Literal["real", "fake"]
    confidence: float = Field(ge=0, le=1, description="in the classification")


class Prediction(BaseModel):
    """The short answer of POST /predict."""

    prediction: Label
    probability: float = Field(ge=0, le=1, description="of AI, from the pixels")
    confidence: float = Field(ge=0, le=1, description="in the prediction")
    tier: Tier


class ModelInfo(BaseModel):
    """The short answer of GET /model_info."""

    model: str
    version: str
    profile: str
    threshold: float
    detectors: list[str] = Field(description="those that run")
    features: int

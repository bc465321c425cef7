"""The types that flow: Sample -> Measurement -> Verdict. Frozen inside; a dict crosses a boundary only as JSON."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

Json: TypeAlias = Any  # a JSON value; mypy has no finite recursive form that pydantic also accepts
RgbArray: TypeAlias = NDArray[np.uint8]  # H x W x 3
Heatmap: TypeAlias = NDArray[np.float32]  # h x w in 0..1, any resolution, at the stored image's aspect

VERDICT_SCHEMA_VERSION = "1"

# 4.2 megapixels hold every statistic we take many times over, and keep a 100-megapixel photograph within the time and
# memory of a phone photograph.
WINDOW_PIXELS = 2048 * 2048

PublicNumber: TypeAlias = float | None  # None: not measured, and ``Verdict.unavailable`` says why
Label: TypeAlias = Literal["AI", "NON-AI"]
Tier: TypeAlias = Literal["real", "likely_real", "inconclusive", "likely_ai", "ai"]
DecidedBy: TypeAlias = Literal["fusion", "provenance"]
ClaimKind: TypeAlias = Literal["generated", "edited_with_ai", "captured", "edited"]
Grade: TypeAlias = Literal["forgeable_metadata", "pixel_watermark", "signed_untrusted", "cryptographic"]

# From the easiest to forge to the hardest: the one ranking of claims.
GRADES: Final[tuple[Grade, ...]] = get_args(Grade)
AI_KINDS: Final[tuple[ClaimKind, ...]] = ("generated", "edited_with_ai")


@dataclass(frozen=True, slots=True)
class Field:
    """One text that a file carries."""

    source: str  # png_text | xmp | exif | iptc | comment | app | trailer
    name: str  # PNG keyword, EXIF tag, IIM dataset as "2:110", XMP property as "{namespace}name", APP marker
    value: str  # decoded, otherwise as written: ingress.texts.clean before showing it


@dataclass(frozen=True, slots=True)
class Exif:
    """An EXIF record by the names of its tags, those of the GPS directory beginning with "GPS"."""

    texts: Mapping[str, str] = field(default_factory=dict)  # the beginning of each
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # never empty; a fraction x/0 is NaN
    maker_note: bytes = b""  # its beginning
    thumbnail: bytes = b""  # a JPEG, when there is one

    # For pydantic, which checks what comes back from the child that decodes.
    __pydantic_config__: ClassVar = {"ser_json_bytes": "base64", "val_json_bytes": "base64", "strict": True}

    def __contains__(self, name: str) -> bool:
        return name in self.texts or name in self.numbers or (name == "MakerNote" and bool(self.maker_note))

    def text(self, name: str) -> str:
        return self.texts.get(name, "")

    def number(self, name: str) -> float | None:
        """First number of a tag; None when it is absent, no number, undefined or infinite."""
        value = self.numbers.get(name, (math.nan,))[0]
        return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Metadata:
    """Everything that a file says about itself, read once, with the pixels (ingress.metadata)."""

    fields: tuple[Field, ...] = ()
    exif: Exif | None = None
    has_c2pa: bool = False  # whether there is a C2PA manifest, or what should be one
    damaged: tuple[str, ...] = ()  # what was there and could not be read, or not to its end: "exif", "xmp"

    def values(self, source: str, name: str) -> Iterator[str]:
        return (each.value for each in self.fields if each.source == source and each.name == name)

    @property
    def nbytes(self) -> int:
        """About what its texts take in memory."""
        return sum(len(each.value) for each in self.fields)


@dataclass(frozen=True, eq=False)
class Sample:
    """One image: the bytes as received and the pixels they decode to.

    No slots: the cached properties live in ``__dict__``.
    """

    source: str  # path, URL or "-": a name for people, never opened again
    raw: bytes  # as received; JPEG tables and C2PA manifests are read from here
    rgb: RgbArray  # first frame as stored (before EXIF orientation), sRGB; H x W x 3; if damaged, the part there is
    format: str  # Pillow's name: JPEG MPO PNG WEBP GIF TIFF BMP AVIF HEIF
    mode: str = "RGB"  # Pillow's mode of the file: L, P, RGBA, CMYK, I;16, ...
    orientation: int = 1  # EXIF orientation, 1..8
    alpha: NDArray[np.uint8] | None = None  # H x W, when the file has one
    frames: tuple[RgbArray, ...] = ()  # sampled frames after the first; empty for a still
    frame_count: int = 1
    trailing_bytes: int = 0  # bytes after the end of the image
    truncated: bool = False  # pixels are missing, or the file ends before its own end mark
    # Share of the picture (0..1) that the file does not hold, or holds in a state not to be trusted; 1: any part of it.
    missing: float = 0.0
    top: int = 0  # row of the whole picture, as stored, that is the first of rgb
    whole_height: int | None = None  # rows of the whole picture as stored; None: rgb holds them all
    warnings: tuple[str, ...] = ()  # one line each, for the verdict
    metadata: Metadata = field(default_factory=Metadata)

    def __post_init__(self) -> None:
        if self.rgb.dtype != np.uint8 or self.rgb.ndim != 3 or self.rgb.shape[2] != 3 or not self.rgb.size:
            raise ValueError(f"rgb must be uint8 H x W x 3, got {self.rgb.dtype} {self.rgb.shape}")
        if self.orientation not in range(1, 9):
            raise ValueError(f"orientation must be 1..8, got {self.orientation}")
        if not 0 <= self.missing <= 1 or not 0 <= self.top <= self.picture_height - self.height:
            raise ValueError(f"rows {self.top} and {self.height} on of {self.picture_height}, {self.missing} missing")

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it holds: file, texts, pixels of every frame, alpha; not what measuring derives."""
        pixels = [self.rgb, *self.frames, *([] if self.alpha is None else [self.alpha])]
        return len(self.raw) + self.metadata.nbytes + sum(each.nbytes for each in pixels)

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def picture_height(self) -> int:
        """Rows of the whole picture, those that are missing included; its width is always ``width``."""
        return self.height if self.whole_height is None else self.whole_height

    @cached_property
    def upright(self) -> RgbArray:
        """The first frame with the EXIF orientation applied: what a person sees."""
        return orient(self.rgb, self.orientation)

    @property
    def _window_scale(self) -> float:
        return min(1.0, math.sqrt(WINDOW_PIXELS / (self.height * self.width)))

    @cached_property
    def window_origin(self) -> tuple[int, int]:
        """Row and column of the window's first pixel; multiples of 8, so that JPEG's block grid keeps its phase."""
        top, left = (int(side * (1 - self._window_scale) / 2) // 8 * 8 for side in (self.height, self.width))
        return top, left

    @cached_property
    def window(self) -> RgbArray:
        """The centre of the stored pixels at native resolution, at most about WINDOW_PIXELS; a view, not a copy.

        Forensic measurements look here: native pixels matter to them, and time and memory stay bounded.
        """
        top, left = self.window_origin
        height, width = (max(1, round(side * self._window_scale)) for side in (self.height, self.width))
        return self.rgb[top : top + height, left : left + width]

    @cached_property
    def grey(self) -> NDArray[np.float32]:
        """Luma of the window in 0..255 (ITU-R BT.601 weights, as in JPEG)."""
        weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
        return np.asarray(self.window @ weights, dtype=np.float32)

    @cached_property
    def _shared(self) -> dict[Callable[[Sample], Any], Any]:
        return {}

    def shared(self, quantity: Callable[[Sample], T]) -> T:
        """``quantity(self)``, kept for the next module that needs the same; two threads may both compute it."""
        if quantity not in self._shared:
            self._shared[quantity] = quantity(self)
        result: T = self._shared[quantity]
        return result

    def window_to_image(self, heatmap: Heatmap) -> Heatmap:
        """Place a heatmap of the window into one at the whole image's aspect; NaN where nobody looked."""
        if self.window.shape == self.rgb.shape:
            return heatmap
        rows, columns = heatmap.shape
        per_row, per_column = rows / self.window.shape[0], columns / self.window.shape[1]
        canvas = np.full((round(self.height * per_row), round(self.width * per_column)), np.nan, dtype=np.float32)
        top, left = round(self.window_origin[0] * per_row), round(self.window_origin[1] * per_column)
        placed = heatmap[: canvas.shape[0] - top, : canvas.shape[1] - left]
        canvas[top : top + placed.shape[0], left : left + placed.shape[1]] = placed
        return canvas


def orient(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply EXIF orientation 1..8 (CIPA DC-008, tag 0x0112) to an H x W or H x W x C array."""
    if orientation >= 5:  # 5..8 store the image transposed
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@dataclass(frozen=True, slots=True)
class Note:
    """A fact worth telling a person, that the numbers alone do not say."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What an image says about its own origin, and how hard that is to forge."""

    source: str  # where it was found: c2pa xmp iptc png_text exif comment app trailer tc260 stealth pixel_watermark
    kind: ClaimKind
    grade: Grade
    generator: str  # product or program; empty when the claim names none
    text: str  # one line for a person

    def __post_init__(self) -> None:
        if self.kind not in get_args(ClaimKind) or self.grade not in GRADES:
            raise ValueError(f"not a claim we know: kind {self.kind!r}, grade {self.grade!r}")

    @property
    def rank(self) -> int:
        """The grade's place in GRADES; higher is harder to forge."""
        return GRADES.index(self.grade)


def strongest(claims: Iterable[Claim]) -> Claim | None:
    """The claim that is hardest to forge; of equals one for the whole image, then one with a name, then the first."""
    return max(claims, key=lambda claim: (claim.rank, claim.kind == "generated", bool(claim.generator)), default=None)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one detector or one forensic module found in one image.

    ``features`` holds every name the module declares; NaN means missing, and ``skipped`` says why.
    """

    features: Mapping[str, float]
    notes: tuple[Note, ...] = ()
    heatmaps: Mapping[str, Heatmap] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    facts: Mapping[str, Json] = field(default_factory=dict)  # structured findings for the verdict
    skipped: str | None = None
    resembles: Resemblance | None = None
    embedding: tuple[float, ...] = ()  # what is shown, as numbers that mean nothing one by one

    def __post_init__(self) -> None:
        missing = [name for name, value in self.features.items() if math.isnan(value)]
        if missing and not self.skipped:
            raise ValueError(f"missing features need a reason: {missing}")
        for name, value in self.features.items():
            if math.isinf(value):
                raise ValueError(f"{name} is infinite")


@dataclass(frozen=True, slots=True)
class Reason:
    """One line of the explanation. ``contribution`` is in log-odds towards AI; None for a plain fact."""

    code: str
    text: str
    feature: str | None = None
    contribution: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """How rare the score is among images of known origin; shares in 0..1 with 95 % intervals over sources."""

    kind: str  # of image that it was compared with: photo, art, screen; all: any
    kind_probability: float | None  # that it is of this kind; None: of any
    delivery: str  # that the image looks most like: clean, web, hard; all: any
    real_as_high: float  # share of real images that score at least as high
    interval: tuple[float, float]
    ai_as_low: float  # share of AI images that score at most as low
    ai_interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resemblance:
    """The family of generators that an image looks most like. A hint for people, never a claim of origin."""

    UNKNOWN: ClassVar[str] = "unknown"

    family: str  # a word of the data set's vocabulary, or UNKNOWN
    probability: float  # of the likeliest family, named or not, given that the image is generated
    right: float  # how often a named family was the true one, on sources that were new to the head


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """The probability of the same image delivered otherwise: as a web copy, a hard one, cropped, enlarged."""

    low: float
    high: float
    flips: bool  # the label is not the same for all
    probabilities: dict[str, float]  # as_is web hard crop enlarged


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A picture inside the picture, judged by itself."""

    kind: str  # picture in a screenshot, or picture in a picture (a frame, a collage)
    box: tuple[int, int, int, int]  # x, y, width, height in pixels of the whole picture as stored
    fusion_prob: float
    decides: bool  # label and tier follow it


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What a detector says that the fusion artifact was not trained with: shown, without any weight in the verdict."""

    detector: str
    feature: str
    value: float | None  # None: not installed, or it failed; ``unavailable`` says why
    used: bool  # always false: what is used is in ``reasoning``
    figures: str  # what was published of how often it is right; empty: nothing
    command: str  # that would make it count


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What we tell the caller, and everything needed to explain it.

    Raw, final and why are kept apart: ``fusion_prob`` is what the pixels say, ``label`` and ``tier`` are what we
    conclude, ``decided_by`` says from what.
    """

    schema_version: str
    job_id: str | None
    source: str
    sha256: str
    width: int
    height: int
    format: str
    label: Label
    fusion_prob: float
    threshold: float
    confidence: float
    reference: Reference | None  # None: the fusion artifact has no table
    stability: Stability | None  # None: nobody asked
    resembles: Resemblance | None  # None: not in an AI tier, or nothing tells families apart
    tier: Tier
    decided_by: DecidedBy
    # The nine public numbers. Higher means more likely AI for every *_prob, *_score and *_anomaly, except exif_score,
    # where 1 is a complete and plausible camera record.
    dino_prob: PublicNumber
    fatformer_prob: PublicNumber
    ghostnet_score: PublicNumber
    clip_h14_prob: PublicNumber
    clip_bigg_prob: PublicNumber
    mantra_anomaly: PublicNumber
    exif_score: PublicNumber
    image_entropy: PublicNumber
    compression_level: PublicNumber
    signals: dict[str, float | None]
    unavailable: dict[str, str]
    reasoning: tuple[Reason, ...]
    provenance: dict[str, Json]
    artifacts: dict[str, str]
    regions: tuple[Region, ...]
    beside: tuple[Opinion, ...]  # detectors of the profile that fusion does not use
    embedding: tuple[float, ...] | None  # what is shown, for drift; None: nobody asked, or nothing here gives one
    models: dict[str, str]
    timings_ms: dict[str, float]
    warnings: tuple[str, ...]

    @property
    def numbers(self) -> dict[str, float | None]:
        """The nine public ones, then ``signals``."""
        return {name: getattr(self, name) for name in PUBLIC_FEATURES} | self.signals


# In the order in which every feature vector starts.
PUBLIC_FEATURES: Final = tuple(field.name for field in fields(Verdict) if field.type == "PublicNumber")

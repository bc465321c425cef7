"""Is the EXIF record complete and plausible as a camera's? Physics, dates, vendor habits, thumbnail.

EXIF is easy to strip and to forge: its absence says nothing, so every number is then missing, and a good record is
weak evidence. Does not name generators beyond a flag: provenance.claims grades them.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ingress.pillow import ignore_pillow_warnings
from ingress.texts import clean
from provenance import generators
from utils.contracts import Exif, Json, Measurement, Note, RgbArray, Sample

FEATURES: Mapping[str, str] = {
    "exif_score": "0..1: share of camera fields present, halved for each anomaly, 0 when a generator signed; "
    "1 is a complete and plausible camera record",
    "exif.present": "1 when the file has a readable EXIF block, else 0",
    "exif.software_editor": "1 when a field for the writing program names a known image editor, else 0",
    "exif.software_generator": "1 when an AI generator's signature stands in the EXIF or program fields, else 0",
    "exif.camera_fields": "share of the eight fields a camera writes that are present, 0..1",
    "exif.maker_note": "1 when there is a maker note, else 0",
    "exif.maker_conflict": "1 when make, model and maker note name different vendors, else 0",
    "exif.exposure_conflict": "1 when exposure, aperture or ISO is impossible or contradicts its APEX twin, else 0",
    "exif.date_conflict": "1 when dates are unreadable or out of order, else 0; missing without dates",
    "exif.gps_anomaly": "1 when the position is impossible or exactly 0 N 0 E, else 0; missing without a position",
    "exif.size_conflict": "1 when the recorded pixel dimensions are not the image's, else 0; missing when unrecorded",
    "exif.thumbnail_mismatch": "1 minus the correlation of thumbnail and image, 0..1; missing without a thumbnail",
}

_CAMERA_FIELDS: Final = (
    ("Make",),
    ("Model",),
    ("ExposureTime", "ShutterSpeedValue"),
    ("FNumber", "ApertureValue"),
    ("ISO",),
    ("FocalLength",),
    ("DateTimeOriginal",),
    ("LensModel", "LensSpecification", "MakerNote"),  # a fixed lens is often named in the maker note only
)

# How vendors spell their names, the beginnings of their model names, and the signatures of their maker notes
# (exiftool.org/TagNames and exiv2's makernote pages list these). Canon's and Samsung's notes have no signature.
# A note may be shared: Leica's compact cameras are Panasonic's, Ricoh continues Pentax.
_MODEL_PREFIXES: Final[dict[str, tuple[str, ...]]] = {
    "iPhone": ("apple",),
    "iPad": ("apple",),
    "Canon ": ("canon",),
    "NIKON ": ("nikon",),
    "COOLPIX": ("nikon",),
    "Pixel ": ("google",),
    "SM-": ("samsung",),
    "ILCE-": ("sony",),
    "DSC-": ("sony",),
    "DMC-": ("panasonic",),
    "FinePix": ("fuji",),
}
_NOTE_SIGNATURES: Final[dict[bytes, tuple[str, ...]]] = {
    b"Apple iOS\0": ("apple",),
    b"Nikon\0": ("nikon",),
    b"OLYMP": ("olympus", "om digital"),
    b"OM SYSTEM\0": ("om digital", "olympus"),
    b"FUJIFILM": ("fuji", "general electric"),
    b"Panasonic\0": ("panasonic", "leica"),
    b"LEICA": ("leica", "panasonic"),
    b"PENTAX \0": ("pentax", "ricoh"),
    b"AOC\0": ("pentax", "ricoh", "samsung", "asahi"),
    b"SONY ": ("sony", "hasselblad"),
    b"SIGMA\0": ("sigma",),
    b"FOVEON\0": ("sigma",),
    b"RICOH\0": ("ricoh", "pentax"),
    b"Ricoh\0": ("ricoh", "pentax"),
}

# Physical limits with room to spare: fastest electronic shutters 1/180,000 s, exposures of an hour; f/0.5 to
# pinholes; ISO 1 to 5 million; scenes from a moonless night (EV100 -8) to the sun itself (about 20 with filters).
_LIMITS: Final = {"ExposureTime": (1e-6, 7200.0), "FNumber": (0.5, 400.0), "ISO": (1.0, 5e6)}
_SCENE_EV: Final = (-12.0, 22.0)
_APEX_TOLERANCE: Final = 0.7  # stops; nominal values such as 1/60 s or f/22 are off by up to a third each
_CLOCK_TOLERANCE: Final = timedelta(hours=26)  # the same moment written in two time zones
_THUMBNAIL_GRID: Final = 64  # pixels a side on which image and thumbnail are compared
_MAX_THUMBNAIL_PIXELS: Final = 2**21
# 64 files as published: at most 0.05; 85 cropped ones that kept the thumbnail: 99 % above.
_OTHER_PICTURE: Final = 0.2


@dataclass(frozen=True, slots=True)
class _Check:
    """The outcome of one plausibility check: its feature's value (NaN: does not apply), and the anomaly in words."""

    feature: str
    code: str
    anomaly: str = ""
    value: float = 0.0


def _anomaly(feature: str, code: str, anomaly: str) -> _Check:
    return _Check(feature, code, anomaly, float(bool(anomaly)))


def measure(sample: Sample) -> Measurement:
    """Measure the EXIF record; everything but the flags is missing when there is none."""
    found = sample.metadata
    is_generator = any(hit.kind == "generated" and hit.source in ("exif", "xmp") for hit in generators.find(found))
    features = dict.fromkeys(FEATURES, math.nan) | {
        "exif.present": float(found.exif is not None),
        "exif.software_editor": float(generators.find_editor(found) is not None),
        "exif.software_generator": float(is_generator),
    }
    exif = found.exif
    if exif is None:
        why = "the EXIF block is damaged" if "exif" in found.damaged else "the file has no EXIF"
        return Measurement(features, facts={"camera": None}, skipped=why)

    checks = (
        _check_vendor(exif),
        _check_exposure(exif),
        _check_dates(exif),
        _check_gps(exif),
        _check_size(exif, sample),
        _check_thumbnail(exif, sample),
    )
    anomalies = tuple(Note(check.code, f"EXIF: {check.anomaly}.") for check in checks if check.anomaly)
    features |= {check.feature: check.value for check in checks}
    features["exif.maker_note"] = float("MakerNote" in exif)
    fields = float(np.mean([any(name in exif for name in names) for names in _CAMERA_FIELDS]))
    features["exif.camera_fields"] = fields
    if is_generator:
        features["exif_score"] = 0.0
    elif fields:  # a block without any camera field is as good as none
        features["exif_score"] = fields * 0.5 ** len(anomalies)
    missing = [name for name, value in features.items() if math.isnan(value)]
    skipped = f"the EXIF block does not record what {', '.join(missing)} need" if missing else None
    return Measurement(features, anomalies, facts={"camera": _camera(exif)}, skipped=skipped)


def _check_vendor(exif: Exif) -> _Check:
    make, model, note = exif.text("Make").lower(), exif.text("Model"), exif.maker_note
    anomaly = ""
    for prefix, vendors in _MODEL_PREFIXES.items():
        if make and model.startswith(prefix) and not any(v in make for v in vendors):
            anomaly = f"model {clean(model, 40)} is not made by {clean(make, 40)}"
    for signature, vendors in _NOTE_SIGNATURES.items():
        if make and note.startswith(signature) and not any(v in make for v in vendors):
            anomaly = f"the maker note is not one of {clean(make, 40)}"
    return _anomaly("exif.maker_conflict", "exif_vendor", anomaly)


def _check_exposure(exif: Exif) -> _Check:
    anomaly = next(_exposure_anomalies(exif), "")
    return _anomaly("exif.exposure_conflict", "exif_exposure", anomaly)


def _exposure_anomalies(exif: Exif) -> Iterator[str]:
    """Zero and undefined values mean unknown, as with a manual lens."""
    values = {name: exif.number(name) for name in _LIMITS}
    known = {name: value for name, value in values.items() if value and math.isfinite(value)}
    for name, value in known.items():
        low, high = _LIMITS[name]
        if not low <= value <= high:
            yield f"{name} {value:g} is impossible"
            return
    if len(known) == len(_LIMITS):
        scene = math.log2(known["FNumber"] ** 2 / known["ExposureTime"]) - math.log2(known["ISO"] / 100)
        if not _SCENE_EV[0] <= scene <= _SCENE_EV[1]:
            yield f"exposure, aperture and ISO suppose a scene of EV {scene:.0f}"
    for name, twin, factor in (("ExposureTime", "ShutterSpeedValue", -1), ("FNumber", "ApertureValue", 2)):
        apex = exif.number(twin)
        if name not in known or not apex or apex == known[name]:  # some Samsung phones write seconds here
            continue
        if abs(factor * math.log2(known[name]) - apex) > _APEX_TOLERANCE:
            yield f"{twin} contradicts {name}"


def _check_dates(exif: Exif) -> _Check:
    """Taken, then digitised, then saved; a program may write the same moment in another time zone."""
    texts = [exif.text(name) for name in ("DateTimeOriginal", "DateTimeDigitized", "DateTime")]
    written = [bool(text.strip("0: -")) for text in texts]  # blank or all zero: a clock never set
    dates = [_date(text) for text in texts]
    taken, digitised, saved = dates
    anomaly = ""
    if any(has_text and date is None for has_text, date in zip(written, dates, strict=True)):
        anomaly = "a date cannot be read"
    for earlier, later, text in (
        (taken, saved, "taken after it was saved"),
        (digitised, saved, "digitised after it was saved"),
        (taken, digitised, "taken after it was digitised"),
    ):
        if earlier and later and earlier - later > _CLOCK_TOLERANCE:
            anomaly = f"the picture was {text}"
    value = float(bool(anomaly)) if any(written) else math.nan
    return _Check("exif.date_conflict", "exif_date", anomaly, value)


# The date in EXIF's form, or with the signs of ISO 8601 or of a country, which programs and some cameras write; then
# the time, which some leave out, with or without seconds, fractions, half of the day and zone. Words in between are
# the half of the day in another language.
_DATE: Final = re.compile(
    r"(\d{4})[:/.\s-]+(\d{1,2})[:/.\s-]+(\d{1,2})(?:[T\s]+[^\d+-]{0,20}(\d{1,2})[:.](\d{1,2})(?:[:.](\d{1,2}))?(?:[.,:]\d+)?"
    r"\s*(am|pm)?\s*(?:Z|UTC|GMT|[+-]\d{1,2}(?::?\d{2})?)?)?\W*",
    re.IGNORECASE,
)


def _date(text: str) -> datetime | None:
    """The moment that a clock wrote, without its zone, as EXIF has none; None when it is no date.

    An hour 24 is the midnight that begins the day: so the camera of the Nexus phones wrote it.
    """
    match = _DATE.fullmatch(text.strip().strip("\0"))
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    half = (match[7] or "").lower()
    if half and 1 <= hour <= 12:
        hour = hour % 12 + 12 * (half == "pm")
    with contextlib.suppress(ValueError):
        return datetime(year, month, day, hour % 24 if hour == 24 else hour, minute, min(second, 59), tzinfo=UTC)
    return None


def _check_gps(exif: Exif) -> _Check:
    """A position must be on the globe; exactly 0 N 0 E is a default, not a place."""
    latitude, longitude = (_degrees(exif.numbers.get(name)) for name in ("GPSLatitude", "GPSLongitude"))
    if latitude is None or longitude is None:
        return _Check("exif.gps_anomaly", "exif_gps", value=math.nan)
    anomaly = ""
    if not (0 <= latitude <= 90 and 0 <= longitude <= 180):
        anomaly = "the position is not on the globe"
    elif latitude == longitude == 0:
        anomaly = "the position is exactly 0 N 0 E"
    elif exif.text("GPSLatitudeRef") not in ("N", "S") or exif.text("GPSLongitudeRef") not in ("E", "W"):
        anomaly = "the position lacks its hemisphere"
    fixed, taken = _date(exif.text("GPSDateStamp")), _date(exif.text("DateTimeOriginal"))
    if fixed and taken and abs(taken - fixed) > _CLOCK_TOLERANCE + timedelta(days=1):  # the stamp is a day in UTC
        anomaly = "the position was fixed on another day than the picture was taken"
    return _anomaly("exif.gps_anomaly", "exif_gps", anomaly)


def _degrees(value: tuple[float, ...] | None) -> float | None:
    """Degrees, minutes, seconds; None when it is not that. Receivers without a fix write 0/0."""
    if value is None or len(value) != 3 or not all(map(math.isfinite, value)):
        return None
    degrees, minutes, seconds = value
    return degrees + minutes / 60 + seconds / 3600 if minutes <= 60 and seconds <= 60 else math.inf


def _check_size(exif: Exif, sample: Sample) -> _Check:
    """A picture that was cropped or made smaller says nothing against its record; one that grew does."""
    recorded = [exif.number(name) for name in ("PixelXDimension", "PixelYDimension")]
    if not all(recorded):
        return _Check("exif.size_conflict", "exif_size", value=math.nan)
    width, height = (int(side or 0) for side in recorded)
    actual = (sample.width, sample.picture_height)
    is_same = sorted((width, height)) == sorted(actual)  # some programs rotate one of the two
    has_grown = actual[0] * actual[1] > width * height
    text = f"recorded as {width} x {height}, but it is {actual[0]} x {actual[1]} pixels" if has_grown else ""
    return _Check("exif.size_conflict", "exif_size", text, value=float(not is_same))


def _check_thumbnail(exif: Exif, sample: Sample) -> _Check:
    mismatch = _thumbnail_mismatch(exif.thumbnail, sample.rgb)
    text = (
        "the embedded thumbnail is not of this picture as it is now (cropped, or another one)"
        if mismatch > _OTHER_PICTURE
        else ""
    )
    return _Check("exif.thumbnail_mismatch", "exif_thumbnail", text, mismatch)


def _thumbnail_mismatch(data: bytes | None, rgb: RgbArray) -> float:
    """1 - the best correlation of grey values over the ways a thumbnail is made; NaN without one or without contrast.

    Cameras pad a 3:2 picture to a 4:3 thumbnail with black bars; others crop; programs rotate only one of the two.
    """
    thumbnail = _decode_thumbnail(data)
    if thumbnail is None:
        return math.nan
    picture = rgb[:: max(1, rgb.shape[0] // 512), :: max(1, rgb.shape[1] // 512)]
    aspect = rgb.shape[1] / rgb.shape[0]
    whole, best = _reduce(picture), math.nan
    for turns in range(4):
        turned = np.rot90(thumbnail, turns)
        cropped = _centre(picture, turned.shape[1] / turned.shape[0] / aspect * picture.shape[1] / picture.shape[0])
        pairs = (
            (_reduce(turned), whole),
            (_reduce(_centre(turned, aspect)), whole),
            (_reduce(turned), _reduce(cropped)),
        )
        best = float(np.fmax(best, np.fmax.reduce([_correlation(*pair) for pair in pairs])))
    return float(np.clip(1 - best, 0, 1))


def _decode_thumbnail(data: bytes | None) -> NDArray[np.uint8] | None:
    if not data:
        return None
    ignore_pillow_warnings()
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.width * image.height > _MAX_THUMBNAIL_PIXELS:
                return None
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _centre(pixels: NDArray[np.uint8], aspect: float) -> NDArray[np.uint8]:
    """The largest centred part whose width is ``aspect`` times its height."""
    height, width = pixels.shape[:2]
    new_height, new_width = min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return pixels[top : top + new_height, left : left + new_width]


def _reduce(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    side = (_THUMBNAIL_GRID, _THUMBNAIL_GRID)
    grey = Image.fromarray(np.ascontiguousarray(pixels)).convert("L").resize(side, Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float64)


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Pearson's r; NaN when either has no contrast."""
    one, other = one - one.mean(), other - other.mean()
    norm = math.sqrt(float((one**2).sum() * (other**2).sum()))
    # One grey level of standard deviation: below it, only rounding and compression would be compared.
    is_flat = min(one.std(), other.std()) < 1
    return math.nan if is_flat else float((one * other).sum()) / norm


def _camera(exif: Exif) -> dict[str, Json]:
    """What to show of the camera. Where the picture was taken is nobody's business here: only that it is recorded."""
    exposure = exif.number("ExposureTime")
    return {
        "make": clean(exif.text("Make")),
        "model": clean(exif.text("Model")),
        "lens": clean(exif.text("LensModel")),
        "exposure": _shutter(exposure) if exposure and 0 < exposure < math.inf else "",
        "f_number": _finite(exif.number("FNumber")),
        "iso": _finite(exif.number("ISO")),
        "focal_length_mm": _finite(exif.number("FocalLength")),
        "date": clean(exif.text("DateTimeOriginal") or exif.text("DateTime"), 40),
        "software": clean(exif.text("Software")),
        "has_gps": "GPSLatitude" in exif,
        "has_maker_note": "MakerNote" in exif,
        "has_thumbnail": bool(exif.thumbnail),
    }


def _shutter(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 0.3 else f"1/{1 / seconds:.0f} s"


def _finite(value: float | None) -> float | None:
    return round(value, 2) if value is not None and math.isfinite(value) else None
